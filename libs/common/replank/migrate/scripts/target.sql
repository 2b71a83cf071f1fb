-- The tables' side: refuses writes while the key-value store is the authority, and tells of them once the tables are.

-- Puts the transactions that change one record, by whichever of its rows, one after the other. A transaction with very
-- many records would fill the lock table, so it trades their locks for the lock of all.
create or replace function :"schema".lock_records(keys text[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    every  constant bigint := hashtextextended(:'schema', 7203685043);
    held   constant integer := coalesce(nullif(current_setting('replank_migrate.locks_held', true), ''), '0')::integer;
    record_lock bigint;
begin
    if held + cardinality(keys) > 256 then
        perform pg_advisory_xact_lock(every);
        return;
    end if;
    perform pg_advisory_xact_lock_shared(every);
    -- In one order for all, so that two statements cannot wait for each other.
    for record_lock in select distinct hashtextextended(k.key, every) as h from unnest(keys) as k(key) order by h loop
        perform pg_advisory_xact_lock(record_lock);
    end loop;
    perform set_config('replank_migrate.locks_held', (held + cardinality(keys))::text, true);
end
$$;

-- How many reads of each endpoint were compared, and how that went; see `replank.migrate.client.reads`.
create table if not exists :"schema".compared_read (
    endpoint text        not null,
    outcome  text        not null,
    reads    bigint      not null,
    first_at timestamptz not null default clock_timestamp(),
    last_at  timestamptz not null default clock_timestamp(),
    primary key (endpoint, outcome)
);
create or replace function :"schema".count_reads(endpoints text[], outcomes text[], counts bigint[]) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    -- In one order for all, so that two processes cannot wait for each other.
    insert into :"schema".compared_read as known (endpoint, outcome, reads)
    select c.endpoint, c.outcome, c.reads from unnest(endpoints, outcomes, counts) as c(endpoint, outcome, reads)
     order by c.endpoint, c.outcome
    on conflict (endpoint, outcome) do update set reads = known.reads + excluded.reads, last_at = clock_timestamp()
$$;
