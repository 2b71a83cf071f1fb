"""``fill`` and ``fill_compared``: a backfill's chunk into the tables."""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from collections.abc import Sequence

from replank.migrate.functions.text import (
    AS_BEFORE,
    BY_INDEX,
    WRITER,
    as_applier,
    chunk_of,
    converted,
    function,
    ignored,
    present,
    row_hashes,
    rows_of,
    values,
)
from replank.migrate.mapping import Mapping
from replank.migrate.parts import EntityPart, listed
from replank.migrate.sql import identifier, literal


def fill(mapping: Mapping, schema: str, entities: Sequence[EntityPart], *, compared: bool) -> str:
    """``fill``, or ``fill_compared``, which reads back what it wrote and holds it against what it was made from."""
    declared = []
    for index, entity in enumerate(entities):
        types = {name: kind for name, kind, _ in entity.columns}
        found = entity.key_columns("")
        declared += [f"    replank_new_{index}_{n} {types[name].split('(')[0]}[];" for n, (name, _) in enumerate(found)]
    blocks = "".join(_fill_entity(schema, entity, index, compared=compared) for index, entity in enumerate(entities))
    body = f"""#variable_conflict use_column
declare
    {WRITER}
    replank_present text[];
    replank_count bigint;
    replank_keys text[];
    replank_vals jsonb[];
    replank_good bigint;
    replank_new bigint;
    replank_bad text[];
    replank_problems text[];
    replank_all_bad text[] := '{{}}';
    replank_source numeric;
    replank_target numeric;
    replank_sum numeric;
{chr(10).join(declared)}
begin
    filled := 0;
    rejected := 0;{f"{chr(10)}    different := '{{}}';" if compared else ""}
    -- What the applier has seen is newer than what a backfill reads, deletes included.
    select count(*) into kept from {schema}.applied as a where a.key = any ($1);
    if kept > 0 or array_position($2, null) is not null then
        select array_agg(c.key), array_agg(c.val) into $1, $2 from unnest($1, $2) as c(key, val)
         where c.val is not null and not exists (select from {schema}.applied as a where a.key = c.key);
        if $1 is null then
            return next;
            return;
        end if;
    end if;
    {as_applier(mapping)}{present(schema)}
    if replank_count is distinct from cardinality($1) then
        select array_agg(c.key), array_agg('key: no entity has such keys'::text) into replank_bad, replank_problems
          from unnest($1) as c(key) where {schema}.entity_of(c.key) is null and not ({ignored(mapping, "c.key")});
        if replank_bad is not null then
            replank_all_bad := replank_all_bad || replank_bad;
            perform {schema}.refuse(replank_bad, replank_problems, $1, $2, null);
        end if;
    end if;{blocks}
    rejected := cardinality(replank_all_bad);
    -- Records that were rejected before and are good now.
    perform {schema}.mended($1, replank_all_bad);
    {AS_BEFORE}
    return next;
end"""
    return function(
        f"{schema}.{'fill_compared' if compared else 'fill'}(keys text[], vals jsonb[])",
        f"returns table (filled bigint, kept bigint, rejected bigint{', different text[]' if compared else ''})",
        "plpgsql",
        body,
        settings=BY_INDEX,
        kind="volatile",
    )


def _fill_entity(schema: str, entity: EntityPart, index: int, *, compared: bool) -> str:
    found = entity.key_columns("c.key")
    arrays = [f"replank_new_{index}_{n}" for n in range(len(found))]
    returning = ", ".join(f"t.{identifier(name)} as k{n}" for n, (name, _) in enumerate(found))
    on = " and ".join(f"{value} = i.k{n}" for n, (_, value) in enumerate(found))
    keys = ", ".join(f"k{n}" for n in range(len(found)))
    source, _ = row_hashes(entity, 0)
    hash_into = ["replank_source"] if compared else []
    hashed = f", coalesce(sum({source}) filter (where r.problem is null), 0) as hashed" if compared else ""
    children = "".join(
        f"""
        insert into {child.table} ({listed(child.names)})
        select {values(child)} from {converted(child, "replank_keys", "replank_vals")};"""
        for child in entity.children
    )
    return f"""
    if {literal(entity.name)} = any(replank_present) then{chunk_of(schema, entity)}
        with up as materialized (select r.* from {converted(entity, "replank_keys", "replank_vals")}),
        inserted as (
            insert into {entity.table} as t ({listed(entity.names)})
            select {values(entity)} from up as r where r.problem is null
                on conflict ({listed(entity.primary_key)}) do nothing returning {returning}
        )
        select u.good, u.bad, u.problems, {", ".join([*(["u.hashed"] if compared else []), "i.*"])}
          into replank_good, replank_bad, replank_problems, {", ".join([*hash_into, "replank_new", *arrays])}
          from (select count(*) filter (where r.problem is null) as good,
                       array_agg(r.key) filter (where r.problem is not null) as bad,
                       array_agg(r.problem) filter (where r.problem is not null) as problems{hashed} from up as r) as u,
               (select count(*){"".join(f", array_agg(i.k{n})" for n in range(len(arrays)))} from inserted as i) as i;
        filled := filled + replank_new;
        kept := kept + replank_good - replank_new;
        if replank_bad is not null then
            replank_all_bad := replank_all_bad || replank_bad;
            perform {schema}.refuse(replank_bad, replank_problems, replank_keys, replank_vals, null);
        end if;
        -- From here on: rows that were not there before, and no others.
        if replank_new < replank_good then
            select array_agg(c.key), array_agg(c.val) into replank_keys, replank_vals
              from unnest(replank_keys, replank_vals) as c(key, val)
              join unnest({", ".join(arrays)}) as i({keys}) on {on};
        elsif replank_bad is not null then
            select g.keys, g.vals into replank_keys, replank_vals
              from {schema}.without(replank_keys, replank_vals, replank_bad) as g;
        end if;{children}{_read_back(schema, entity) if compared else ""}
    end if;"""


def _read_back(schema: str, entity: EntityPart) -> str:
    """Hold the rows that are in the tables now against what they were made from, by their fingerprints."""
    sums = []
    for seed, child in enumerate(entity.children, 1):
        source, target = row_hashes(child, seed)
        sums.append(f"""
            select coalesce(sum({source}), 0) into replank_sum from {converted(child, "replank_keys", "replank_vals")};
            replank_source := replank_source + replank_sum;
            select coalesce(sum({target}), 0) into replank_sum from {rows_of(child, "replank_keys")};
            replank_target := replank_target + replank_sum;""")
    return f"""
        if replank_new = replank_good then
            select coalesce(sum({row_hashes(entity, 0)[1]}), 0) into replank_target
              from {rows_of(entity, "replank_keys")};{"".join(sums)}
        end if;
        if replank_new < replank_good or replank_source <> replank_target then
            different := different || coalesce((
                select array_agg(d.key)
                  from {schema}.compare(replank_keys, replank_vals) as c, unnest(c.different) as d(key)
            ), '{{}}');
        end if;"""
