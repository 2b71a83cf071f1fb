-- One change as it travels: `replank.contracts.schema.RecordChanged`. What is too large to travel is fetched.
create or replace function :"schema".change(key text, version bigint, body text) returns bytea
language sql stable
as $$
    select convert_to(
        '{"key": ' || to_json(key) || ', "version": ' || version
        || case when body is null then ', "op": "delete"}'
                when octet_length(body) > 262144 then ', "op": "upsert", "fetch": true}'
                else ', "op": "upsert", "value": ' || body || '}' end, 'UTF8')
$$;

-- Tells of the records with these keys, as they are now, each key once: not as the statement left them, since a trigger
-- of somebody else may have changed them again. Whoever has changed a record holds its row's lock, so the versions of a
-- key grow in the order of commits, and the outbox need not lock the keys again.
create or replace function :"schema".carry(keys text[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off  -- a plan that is kept was perhaps made when the table was small
set jit = off
as $$
declare
    version     constant bigint := nextval(:'version_sequence'::regclass);
    traceparent constant text := nullif(current_setting('replank.traceparent', true), '');
    body        text;
    changes     bytea[];
    -- Not by a clause of the function: for a setting that is nobody's, those are for superusers.
    ordered     constant text := coalesce(current_setting('replank_outbox.ordered_by_caller', true), '');
begin
    perform set_config('replank_outbox.ordered_by_caller', 'on', true);
    if cardinality(keys) = 1 then
        select s.:"value"::text into body from :"table_schema".:"table" s where s.:"key" = keys[1];
        perform replank_outbox.append(:'topic', keys[1], :'type', :"schema".change(keys[1], version, body),
                                      traceparent => traceparent);
    else
        -- Row by row on purpose: the plan is kept for the session, whatever number of rows it was first made for.
        select array_agg(:"schema".change(r.key, version, r.body) order by r.place)
          into changes
          from (select k.key, k.place,
                       (select s.:"value"::text from :"table_schema".:"table" s where s.:"key" = k.key) as body
                  from unnest(keys) with ordinality as k(key, place) offset 0) as r;
        perform replank_outbox.append_many(
            array_fill(:'topic'::text, array[cardinality(keys)]), keys,
            array_fill(:'type'::text, array[cardinality(keys)]), changes, traceparent => traceparent);
    end if;
    perform set_config('replank_outbox.ordered_by_caller', ordered, true);
    perform :"schema".remember('replank_migrate.source_versions', keys, version);
end
$$;
