"""``apply``: captured changes into the tables, whatever their order, as often as they come."""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from collections.abc import Sequence

from replank.migrate.conversion import field_of
from replank.migrate.functions.text import (
    AS_BEFORE,
    BY_INDEX,
    CHUNK,
    WRITER,
    as_applier,
    converted,
    function,
    ignored,
    values,
)
from replank.migrate.mapping import Mapping
from replank.migrate.parts import ChildPart, EntityPart, Part, listed
from replank.migrate.sql import FILL_LANES, fill_lock, identifier, literal


def apply(mapping: Mapping, schema: str, entities: Sequence[EntityPart]) -> str:
    blocks = "".join(_apply_entity(schema, entity) for entity in entities)
    fill_locks = " ".join(
        f"perform pg_advisory_xact_lock_shared({fill_lock(mapping.name, lane)});" for lane in range(FILL_LANES)
    )
    body = f"""#variable_conflict use_column
declare
    {WRITER}
    replank_taken record;
    replank_present text[];
    replank_keys text[];
    replank_vals jsonb[];
    replank_gone text[];
    replank_bad text[];
    replank_problems text[];
    replank_all_bad text[];
    replank_all_problems text[];
begin
    {as_applier(mapping)}
    -- A backfill holds one of these alone while it fills a chunk: see replank.migrate.backfill.
    {fill_locks}
    select t.keys, t.vals, t.versions into replank_taken from {schema}.take($1, $2, $3, $4) as t;
    if replank_taken.keys is not null then
        select array_agg(distinct coalesce({schema}.entity_of(c.key), '')) into replank_present
          from unnest(replank_taken.keys) as c(key);
        if '' = any(replank_present) then
            select array_agg(c.key),
                   array_agg(case when not ({ignored(mapping, "c.key")}) then 'key: no entity has such keys' end)
              into replank_all_bad, replank_all_problems
              from unnest(replank_taken.keys, replank_taken.vals) as c(key, val)
             where {schema}.entity_of(c.key) is null and (c.val is not null or {ignored(mapping, "c.key")});
        end if;{blocks}
        perform {schema}.mended(replank_taken.keys, replank_all_bad);
        if replank_all_bad is not null then
            select array_agg(b.key), array_agg(b.problem) into replank_bad, replank_problems
              from unnest(replank_all_bad, replank_all_problems) as b(key, problem) where b.problem is not null;
            perform {schema}.refuse(
                replank_bad, replank_problems, replank_taken.keys, replank_taken.vals, replank_taken.versions);
        end if;
    end if;
    {AS_BEFORE}
    return query select o.key, o.outcome, o.problem from {schema}.outcomes(
        $1, $3, replank_taken.keys, replank_taken.versions, replank_all_bad, replank_all_problems) as o;
end"""
    return function(
        f"{schema}.apply(keys text[], vals jsonb[], versions bigint[], traceparents text[])",
        "returns table (key text, outcome text, problem text)",
        "plpgsql",
        body,
        settings=BY_INDEX,
        kind="volatile",
    )


def _apply_entity(schema: str, entity: EntityPart) -> str:
    parts: list[Part] = [*entity.children, entity]
    deletes = "".join(
        f"""
                delete from {part.table} as t
                 using (select {part.of_key("c.key")} from unnest(replank_gone) as c(key) offset 0) as k
                 where {part.found_by("t", "k")};"""
        for part in parts
    )
    surplus = "".join(_surplus(child) for child in entity.children)
    upserts = "".join(_upsert(part) for part in (entity, *entity.children))
    chunk = CHUNK.format(
        keys="replank_taken.keys",
        vals="replank_taken.vals",
        schema=schema,
        name=literal(entity.name),
        more=" and c.val is not null",
    )
    return f"""
        if {literal(entity.name)} = any(replank_present) then{chunk}
            select array_agg(r.key), array_agg(r.problem) into replank_bad, replank_problems
              from {converted(entity, "replank_keys", "replank_vals")} where r.problem is not null;
            select array_agg(c.key) into replank_gone
              from unnest(replank_taken.keys, replank_taken.vals) as c(key, val)
             where {schema}.entity_of(c.key) = {literal(entity.name)} and (c.val is null or c.key = any (replank_bad));
            if replank_bad is not null then
                replank_all_bad := replank_all_bad || replank_bad;
                replank_all_problems := replank_all_problems || replank_problems;
                select g.keys, g.vals into replank_keys, replank_vals
                  from {schema}.without(replank_keys, replank_vals, replank_bad) as g;
            end if;
            if replank_gone is not null then{deletes}
            end if;
            if replank_keys is not null then{surplus}{upserts}
            end if;
        end if;"""


def _surplus(child: ChildPart) -> str:
    """Delete the rows past the end of an array that has become shorter: positions are the places in it."""
    value = field_of("c.val", child.child.path)
    position = f"t.{identifier(child.child.position)}"
    return f"""
                delete from {child.table} as t
                 using (select {child.of_key("c.key")},
                               case when jsonb_typeof({value}) = 'array' then jsonb_array_length({value}) else 0 end
                                   as length
                          from unnest(replank_keys, replank_vals) as c(key, val) offset 0) as k
                 where {child.found_by("t", "k")} and ({position} < 0 or {position} >= k.length);"""


def _upsert(part: Part) -> str:
    others = [name for name in part.names if name not in part.primary_key]
    action = "nothing"
    if others:
        assigned = ", ".join(f"{identifier(name)} = excluded.{identifier(name)}" for name in others)
        # A row that stays as it is makes no dead one.
        action = f"update set {assigned} where ({listed(others, 't')}) is distinct from ({listed(others, 'excluded')})"
    return f"""
                insert into {part.table} as t ({listed(part.names)})
                select {values(part)} from {converted(part, "replank_keys", "replank_vals")}
                    on conflict ({listed(part.primary_key)}) do {action};"""
