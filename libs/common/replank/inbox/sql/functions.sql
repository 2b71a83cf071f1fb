-- Replaced as a whole by every install.

-- The smallest UUIDv7 of a moment: what partition bounds are made of.
create or replace function replank_inbox.uuid_at(moment timestamptz) returns uuid
language sql immutable strict parallel safe
return (
    lpad(to_hex((extract(epoch from moment) * 1000)::bigint), 12, '0') || '70008000000000000000'
)::uuid;

-- Partitions are called after the UTC day at which they begin; each ends where the next one begins.
create or replace view replank_inbox.applied_partition as
select
    c.relname::text as name,
    case
        when c.relname <> 'applied_first'
        then to_date(substr(c.relname, length('applied_') + 1), 'YYYYMMDD')::timestamp at time zone 'UTC'
    end as begins
from pg_catalog.pg_inherits i
join pg_catalog.pg_class c on c.oid = i.inhrelid
where i.inhparent = 'replank_inbox.applied'::regclass;

-- Make partitions for `days_ahead` days to come, and drop those that are wholly older than `retention` (null: none).
-- Answers what was made and dropped; nothing if somebody else is at it. Readers and writers of `applied` wait only while
-- the catalogue changes; to get that far it waits for them two seconds at most, and then fails with lock_not_available.
create or replace function replank_inbox.maintain(retention interval, days_ahead integer)
returns table (change text, partition_name text)
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
    today constant timestamptz := date_trunc('day', now() at time zone 'UTC') at time zone 'UTC';
    horizon constant timestamptz := today + days_ahead * interval '24 hours';
    last record;
    closes timestamptz;
    day timestamptz;
    old record;
begin
    if not pg_try_advisory_xact_lock(hashtextextended('replank_inbox.maintain', 0)) then
        return;
    end if;

    select p.name, p.begins into strict last
    from replank_inbox.applied_partition p order by p.begins desc nulls last limit 1;

    if last.begins is null or last.begins < horizon then
        -- In time, the open-ended partition is still in the future and empty. Late, it is closed at the end of today.
        closes := greatest(last.begins, today) + interval '24 hours';
        execute format('alter table replank_inbox.applied detach partition replank_inbox.%I', last.name);
        for day in select generate_series(closes, horizon, interval '24 hours') loop
            partition_name := 'applied_' || to_char(day at time zone 'UTC', 'YYYYMMDD');
            change := 'created';
            execute format(
                'create table replank_inbox.%I partition of replank_inbox.applied for values from (%L) to (%s)',
                partition_name,
                replank_inbox.uuid_at(day),
                case when day >= horizon then 'maxvalue'
                     else quote_literal(replank_inbox.uuid_at(day + interval '24 hours')) end
            );
            return next;
        end loop;
        -- Ids from a clock that runs ahead belong to the partitions that exist only now.
        execute format(
            'with moved as (delete from replank_inbox.%I where event_id >= $1 returning *)
             insert into replank_inbox.applied select * from moved',
            last.name
        ) using replank_inbox.uuid_at(closes);
        execute format(
            'alter table replank_inbox.applied attach partition replank_inbox.%I for values from (%s) to (%L)',
            last.name,
            case when last.begins is null then 'minvalue' else quote_literal(replank_inbox.uuid_at(last.begins)) end,
            replank_inbox.uuid_at(closes)
        );
    end if;

    for old in
        select p.name
        from (
            select q.name, q.begins, lead(q.begins) over (order by q.begins nulls first) as ends
            from replank_inbox.applied_partition q
        ) p
        where p.ends <= now() - retention
        order by p.begins nulls first
    loop
        execute format('drop table replank_inbox.%I', old.name);
        change := 'dropped';
        partition_name := old.name;
        return next;
    end loop;
end $$;
