-- Writes the records with these keys, as they are now, to the key-value store, in the transaction that has changed them.
create or replace function :"schema".carry_back(keys text[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off  -- a plan that is kept was perhaps made when the table was small
set jit = off
as $$
declare
    version     bigint;
    traceparent constant text := nullif(current_setting('replank.traceparent', true), '');
    vals        jsonb[];
begin
    perform :"schema".lock_records(keys);
    version := nextval(:'version_sequence'::regclass);
    -- A statement of its own, after the lock: what the transaction before has changed is seen.
    select array_agg(d.value order by k.place)
      into vals
      from unnest(keys) with ordinality as k(key, place) left join :"schema".down(keys) as d on d.key = k.key;
    perform from :"schema".restore(keys, vals, array_fill(version, array[cardinality(keys)]),
                                   array_fill(traceparent, array[cardinality(keys)]));
    perform :"schema".remember('replank_migrate.target_versions', keys, version);
end
$$;
