-- What comparing the two stores of a migration found, and what was asked about it.

create table comparison (
    id uuid primary key,
    migration_id uuid not null references migration on delete cascade,
    state text not null default 'asked' check (state in ('asked', 'running', 'done', 'cancelled')),
    direction text check (direction in ('forward', 'reverse')),
    asked_by text not null,
    asked_at timestamptz not null,
    started_at timestamptz,
    ended_at timestamptz,
    progress jsonb,
    constraint runs_since check (state not in ('running', 'done') or started_at is not null),
    constraint ended_says_when check ((state in ('done', 'cancelled')) = (ended_at is not null))
);
comment on table comparison is 'Comparisons of everything, asked for and done. Ids are UUIDv7.';
comment on column comparison.progress is
    'How far it has come (replank.migrate.comparison.Progress): a run that was interrupted goes on from here.';
create index comparison_of_migration on comparison (migration_id, id);
create unique index one_comparison_at_a_time on comparison (migration_id) where state in ('asked', 'running');

create table mismatch (
    id uuid primary key,
    migration_id uuid not null references migration on delete cascade,
    comparison_id uuid references comparison on delete set null,
    key text not null,
    entity text not null,
    kind text not null check (kind in ('missing', 'extra', 'different', 'stale', 'rejected')),
    fields text[] not null,
    trace_id text,
    first_seen timestamptz not null,
    last_seen timestamptz not null,
    resolved_at timestamptz
);
comment on table mismatch is 'Keys whose record and rows disagreed, from when to when. Names of fields, never values.';
comment on column mismatch.comparison_id is 'The comparison that saw it last; none: a sample.';
comment on column mismatch.trace_id is 'Whose write it was that the following store holds.';
create index mismatch_of_migration on mismatch (migration_id, id);
create index open_mismatch_of_migration on mismatch (migration_id, id) where resolved_at is null;
-- By digest, because a key may be longer than what an index of two columns takes.
create unique index one_open_mismatch_a_key on mismatch (migration_id, md5(key)) where resolved_at is null;

create table comparison_sample (
    migration_id uuid not null references migration on delete cascade,
    at timestamptz not null default clock_timestamp(),
    compared integer not null check (compared >= 0),
    different integer not null check (different between 0 and compared)
);
comment on table comparison_sample is 'What samples found lately: the sliding window of the consistency of samples.';
create index comparison_sample_at on comparison_sample (migration_id, at);

create table consistency_alert (
    migration_id uuid primary key references migration on delete cascade,
    since timestamptz not null,
    percent double precision not null
);
comment on table consistency_alert is
    'Migrations whose consistency fell below its threshold and has not come back: each fall is told once.';

create table repair (
    id uuid primary key,
    migration_id uuid not null references migration on delete cascade,
    state text not null default 'asked' check (state in ('asked', 'done')),
    dry_run boolean not null,
    keys text[] not null,
    asked_by text not null,
    asked_at timestamptz not null,
    ended_at timestamptz,
    actions jsonb,
    constraint done_says_what check ((state = 'done') = (ended_at is not null and actions is not null))
);
comment on table repair is 'Keys whose record was to be applied once more, by whom it was asked, and what was done.';
create index repair_of_migration on repair (migration_id, id);
create index repair_to_do on repair (migration_id, id) where state = 'asked';
