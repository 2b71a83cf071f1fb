-- One change as it travels: `replank.contracts.schema.RecordChanged`. What is too large to travel is fetched.
create or replace function :"schema".change(key text, version bigint, body text) returns bytea
language sql stable
as $$
    select convert_to(
        '{"version": ' || version || ', "key": ' || to_json(key)
        || case when body is null then ', "op": "delete"}'
                when octet_length(body) > 262144 then ', "op": "upsert", "fetch": true}'
                else ', "op": "upsert", "value": ' || body || '}' end, 'UTF8')
$$;

-- The changes of some records, as they are now. Row by row on purpose: the plan is kept for the session, whatever number
-- of rows it was first made for.
create or replace function :"schema".changes(keys text[], version bigint) returns bytea[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
begin
    return array(select :"schema".change(r.key, version, r.body)
                   from (select k.key, k.place, (select s.:"value"::text from :"table_schema".:"table" s
                                                  where s.:"key" = k.key) as body
                           from unnest(keys) with ordinality as k(key, place) offset 0) as r
                  order by r.place);
end
$$;

-- Tells of the records with these keys, as they are now, each key once: not as the statement left them, since a trigger
-- of somebody else may have changed them again. Of many records it tells the keys alone: to read and write all their
-- values a second time would cost the writer more than his own write; they are read by whoever applies them, once, and
-- are then as new as the change, or newer. Whoever has changed a record holds its row's lock, so the versions of a key
-- grow in the order of commits, and the outbox need not lock the keys again.
create or replace function :"schema".carry(keys text[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off  -- a plan that is kept was perhaps made when the table was small
as $$
declare
    version constant bigint := nextval(:'version_sequence'::regclass);
    body    text;
    changes bytea[];
    nothing text;
begin
    if cardinality(keys) = 1 then
        select s.:"value"::text into body from :"table_schema".:"table" s where s.:"key" = keys[1];
        changes := array[:"schema".change(keys[1], version, body)];
    elsif keys = '{}' then
        return;
    elsif cardinality(keys) <= 20 then
        changes := :"schema".changes(keys, version);
    else
        changes := array(select convert_to('{"version": ' || version || ', "key": ' || to_json(k.key)
                                           || ', "op": "upsert", "fetch": true}', 'UTF8')
                           from unnest(keys) with ordinality as k(key, place) order by k.place);
    end if;
    nothing := replank_outbox.append_ordered(
        :'topic', :'type', keys, changes, nullif(current_setting('replank.traceparent', true), ''));
    nothing := :"schema".remember('replank_migrate.source_versions', keys, version);
end
$$;

-- For a writer who repeats a write, and wants to read it though he may have changed nothing: the records that are there
-- are told once more, since nobody knows what is still on its way of them. A record that is not there has no row to lock,
-- and no version could be drawn in order; if its deletion is among the last changes, that is what is remembered.
create or replace function :"schema".retell_source(keys text[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    present text[];
    gone    record;
begin
    lock table only :"table_schema".:"table" in row exclusive mode;
    perform :"schema".require_open('source');
    perform from :"table_schema".:"table" s where s.:"key" = any (keys) order by s.:"key" for no key update;
    -- A statement of its own, after the locks.
    present := array(select s.:"key" from :"table_schema".:"table" s where s.:"key" = any (keys));
    if present <> '{}' then
        perform :"schema".carry(present);
    end if;
    if not keys <@ present then
        for gone in select t.key, t.version from :"schema".told_by_source(0, 10000) as t
                     where t.key = any (keys) and t.key <> all (present) loop
            perform :"schema".remember('replank_migrate.source_versions', array[gone.key], gone.version);
        end loop;
    end if;
end
$$;
