-- Tells that the records with these keys have changed. The event carries no value: whoever applies it reads the record,
-- whole and committed, where a value taken now could lack the rows that this transaction has yet to write.
create or replace function :"schema".carry_back(keys text[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    version     bigint;
    traceparent constant text := nullif(current_setting('replank.traceparent', true), '');
    -- Not by a clause of the function: for a setting that is nobody's, those are for superusers.
    ordered     constant text := coalesce(current_setting('replank_outbox.ordered_by_caller', true), '');
begin
    -- The lock before the version, so that the versions of a record grow in the order of commits.
    perform :"schema".lock_records(keys);
    version := nextval(:'version_sequence'::regclass);
    perform set_config('replank_outbox.ordered_by_caller', 'on', true);
    perform replank_outbox.append_many(
        array_fill(:'topic'::text, array[cardinality(keys)]), keys,
        array_fill(:'type'::text, array[cardinality(keys)]),
        (select array_agg(convert_to('{"key": ' || to_json(k.key) || ', "version": ' || version
                                     || ', "op": "upsert", "fetch": true}', 'UTF8') order by k.place)
           from unnest(keys) with ordinality as k(key, place)),
        traceparent => traceparent);
    perform set_config('replank_outbox.ordered_by_caller', ordered, true);
    perform :"schema".remember('replank_migrate.target_versions', keys, version);
end
$$;
