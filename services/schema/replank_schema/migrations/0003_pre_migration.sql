-- From a plan that becomes ready to a migration that runs.

alter table migration
    add column target text not null default '',
    add column moving_to text,
    add column paused boolean not null default false,
    add column run integer not null default 0 check (run >= 0),
    add column tables text not null default 'keep' check (tables in ('keep', 'drop')),
    add column phase_since timestamptz not null default clock_timestamp(),
    add column settings jsonb not null default '{}',
    add column facts jsonb not null default '{}',
    drop constraint migration_phase_check,
    drop constraint ready_says_when;

-- A plan of the days before mappings can be kept and shown, not started.
update migration set phase = 'cancelled' where not plan ? 'mapping';

alter table migration
    add constraint phase_is_known check (phase in (
        'planned', 'capturing', 'backfilling', 'verifying', 'shadow_reads', 'new_with_fallback', 'new_only',
        'completed', 'rolling_back', 'rolled_back', 'cancelled')),
    add constraint moves_somewhere check (
        moving_to is null and phase <> 'rolling_back'
        or phase = 'new_with_fallback' and moving_to = 'new_only'
        or phase = 'rolling_back'
           and moving_to in ('verifying', 'shadow_reads', 'new_with_fallback', 'rolled_back', 'cancelled')),
    add constraint pauses_what_runs check (not paused or phase in (
        'capturing', 'backfilling', 'verifying', 'shadow_reads', 'new_with_fallback', 'new_only'));
comment on column migration.ready_at is 'When the checklist was met for the first time, which was said then.';
comment on column migration.moving_to is 'Where it was asked to go, and the work has to get it first.';
comment on column migration.run is 'How often it was started. Facts and reports belong to a run.';
comment on column migration.tables is 'What becomes of the target''s tables when it is taken back.';
comment on column migration.settings is 'The live knobs, read again by running work.';
comment on column migration.facts is 'What has been reached in this run (replank_schema.migration.report.Facts).';

-- Schemas, topics and flags are named after a migration: two of one name cannot be under way.
create unique index one_under_way_by_name on migration (name)
    where phase not in ('planned', 'rolled_back', 'cancelled');
-- What the workers look for, every second.
create index migration_to_work_on on migration (id) where phase not in ('planned', 'rolled_back', 'cancelled');
create index migration_by_name on migration (name, id);
