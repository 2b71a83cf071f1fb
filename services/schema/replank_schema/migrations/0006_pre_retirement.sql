-- The end of a migration: nothing of it is left in the databases but what was asked for.

alter table migration
    drop constraint phase_is_known,
    drop constraint moves_somewhere,
    add constraint phase_is_known check (phase in (
        'planned', 'capturing', 'backfilling', 'verifying', 'shadow_reads', 'new_with_fallback', 'new_only',
        'completed', 'rolling_back', 'rolled_back', 'cancelled', 'retiring', 'retired')),
    add constraint moves_somewhere check (
        moving_to is null and phase not in ('rolling_back', 'retiring')
        or phase = 'new_with_fallback' and moving_to = 'new_only'
        or phase = 'rolling_back'
           and moving_to in ('verifying', 'shadow_reads', 'new_with_fallback', 'rolled_back', 'cancelled')
        or phase = 'retiring' and moving_to = 'retired');

drop index one_under_way_by_name, migration_to_work_on;
create unique index one_under_way_by_name on migration (name)
    where phase not in ('planned', 'rolled_back', 'cancelled', 'retired');
create index migration_to_work_on on migration (id)
    where phase not in ('planned', 'rolled_back', 'cancelled', 'retired');
