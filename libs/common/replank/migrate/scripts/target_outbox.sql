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
begin
    -- The lock before the version, so that the versions of a record grow in the order of commits.
    perform :"schema".lock_records(keys);
    version := nextval(:'version_sequence'::regclass);
    perform replank_outbox.append_ordered(
        :'topic', :'type', keys,
        array(select convert_to('{"version": ' || version || ', "key": ' || to_json(k.key)
                                || ', "op": "upsert", "fetch": true}', 'UTF8')
                from unnest(keys) with ordinality as k(key, place) order by k.place),
        traceparent);
    perform :"schema".remember('replank_migrate.target_versions', keys, version);
end
$$;

-- For a writer who repeats a write, and wants to read it though he may have changed nothing: the records are told once
-- more, there or not, since nobody knows what is still on its way of them.
create or replace function :"schema".retell_target(keys text[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    execute (select format('lock table only %s in row exclusive mode', a.tables[1])
               from :"schema".authority a where a.side = 'target');
    perform :"schema".require_open('target');
    perform :"schema".carry_back(keys);
end
$$;
