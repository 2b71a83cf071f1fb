-- The key-value store's side: every change of a record is appended to the outbox, and changes of the tables come back.

create table if not exists :"schema".restored (
    key         text collate "C" primary key,
    version     bigint      not null,
    deleted     boolean     not null,
    traceparent text,
    at          timestamptz not null default clock_timestamp()
);
comment on table :"schema".restored is 'the newest version of each record that came back from the tables';

-- For each statement on the key-value table. Rows by the transition table, records by `carry`.
create or replace function :"schema".capture() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    touched text[];
    batch   text[];
    nothing text;
begin
    if current_setting('replank_migrate.applier', true) = :'name' then
        if exists (select from changed) then
            perform :"schema".require_not_open('source');
        end if;
        return null;
    end if;
    -- Also for a statement that found no row: what it looked for may be in the other store.
    nothing := :"schema".require_open('source');

    -- A record whose key was changed is gone under the old one. No pattern of a mapping matches an empty key, and no
    -- event can have one. What is assigned and not performed is not a query more, in every write.
    touched := array(select c.:"key" from changed c limit 1001);
    if touched = '{}' then
        return null;
    elsif cardinality(touched) <= 1000 then
        if tg_op = 'UPDATE' and cardinality(touched) <= 20 then
            touched := touched || array(select p.:"key" from previous p where p.:"key" <> all (touched));
        elsif tg_op = 'UPDATE' then
            touched := array(select c.:"key" from changed c union select p.:"key" from previous p);
        end if;
        nothing := :"schema".carry(array_remove(touched, ''));
    elsif tg_op = 'UPDATE' then
        -- In batches, because the keys of a large statement do not fit into one array.
        for batch in
            select array_agg(k.key)
              from (select u.key, (row_number() over () - 1) / 1000 as part
                      from (select c.:"key" as key from changed c union select p.:"key" from previous p) as u
                     where u.key <> '') as k
             group by k.part
        loop
            nothing := :"schema".carry(batch);
        end loop;
    else
        for batch in
            select array_agg(k.key)
              from (select c.:"key" as key, (row_number() over () - 1) / 1000 as part
                      from changed c where c.:"key" <> '') as k
             group by k.part
        loop
            nothing := :"schema".carry(batch);
        end loop;
    end if;
    return null;
end
$$;

-- The same for a writer that tells of its changes itself, where there are no triggers. It has locked the table when it
-- wrote; one that tells first is let in all the same, and so must be seen to write. Without keys it tells of nothing.
create or replace function :"schema".written(keys text[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    lock table only :"table_schema".:"table" in row exclusive mode;
    perform :"schema".require_open('source');
    if cardinality(keys) > 0 then
        perform :"schema".carry(keys);
    end if;
end
$$;

-- Changes that come back from the tables: the newest version of a record holds, whatever order they come in. A null in
-- `vals` is a deletion.
create or replace function :"schema".restore(
    keys text[], vals jsonb[], versions bigint[], traceparents text[]
) returns table (key text, outcome text, problem text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off  -- a plan that is kept was perhaps made when the table was small
set jit = off
as $$
#variable_conflict use_column
declare
    -- Who writes when the function begins, and at its end again. Not by a clause of the function: for a setting that is
    -- nobody's, those are for superusers.
    writer         text := coalesce(current_setting('replank_migrate.applier', true), '');
    taken_keys     text[];
    taken_versions bigint[];
begin
    perform set_config('replank_migrate.applier', :'name', true);
    with newest as (
        select distinct on (g.key collate "C") g.key, g.val, g.version, g.traceparent
          from unnest(keys, vals, versions, traceparents) as g(key, val, version, traceparent)
         order by g.key collate "C", g.version desc
    ), taken as (
        insert into :"schema".restored as known (key, version, deleted, traceparent)
        select n.key, n.version, n.val is null, n.traceparent from newest n order by n.key collate "C"
        on conflict (key) do update
           set version = excluded.version, deleted = excluded.deleted, traceparent = excluded.traceparent,
               at = clock_timestamp()
         where excluded.version > known.version
        returning key, version
    ), removed as (
        delete from :"table_schema".:"table" s
         using taken t, newest n
         where n.key = t.key and n.val is null and s.:"key" = t.key
    ), written as (
        insert into :"table_schema".:"table" as s (:"key", :"value")
        select n.key, n.val from newest n join taken t on t.key = n.key where n.val is not null order by n.key collate "C"
        on conflict (:"key") do update set :"value" = excluded.:"value"
         where s.:"value" is distinct from excluded.:"value"
    )
    select array_agg(t.key), array_agg(t.version) into taken_keys, taken_versions from taken t;
    perform set_config('replank_migrate.applier', writer, true);
    if taken_keys is not null then
        -- As the triggers say, which not every kind of capture has.
        perform :"schema".require_not_open('source');
    end if;
    return query
        select g.key, case when t.key is null then 'stale' else 'applied' end, null::text
          from unnest(keys, versions) as g(key, version)
          left join unnest(taken_keys, taken_versions) as t(key, version) on t.key = g.key and t.version = g.version;
end
$$;
