-- Applies the records with these keys, as they are now, to the tables, in the transaction that has changed them.
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
    vals        jsonb[];
begin
    if keys = '{}' then
        return;
    end if;
    select array_agg((select s.:"value" from :"table_schema".:"table" s where s.:"key" = k.key) order by k.place)
      into vals
      from unnest(keys) with ordinality as k(key, place);
    perform from :"schema".apply(keys, vals, array_fill(version, array[cardinality(keys)]),
                                 array_fill(traceparent, array[cardinality(keys)]));
    perform :"schema".remember('replank_migrate.source_versions', keys, version);
end
$$;
