"""``compare`` and ``fields``: what is in the tables against what the records would be in them."""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from collections.abc import Sequence

from replank.migrate.functions.text import (
    BY_INDEX,
    chunk_of,
    converted,
    function,
    present,
    row_hashes,
    rows_of,
    target_values,
)
from replank.migrate.parts import ChildPart, EntityPart, Part
from replank.migrate.sql import identifier, literal


def compare(schema: str, entities: Sequence[EntityPart]) -> str:
    blocks = "".join(_compare_entity(schema, entity) for entity in entities)
    body = f"""#variable_conflict use_column
declare
    replank_present text[];
    replank_count bigint;
    replank_keys text[];
    replank_vals jsonb[];
    replank_live text[];
    replank_bad text[];
    replank_sum numeric;
begin{present(schema)}{blocks}
end"""
    return function(
        f"{schema}.compare(keys text[], vals jsonb[])",
        "returns table (entity text, records bigint, source_fingerprint numeric, target_fingerprint numeric,"
        " different text[], rejected bigint, target_records bigint)",
        "plpgsql",
        body,
        settings=BY_INDEX,
    )


def _compare_entity(schema: str, entity: EntityPart) -> str:
    parts: list[Part] = [entity, *entity.children]
    hashes = [row_hashes(part, seed) for seed, part in enumerate(parts)]
    sums = "".join(
        f"""
        select coalesce(sum({hashes[n][0]}), 0) into replank_sum from {converted(part, "replank_live", "replank_vals")};
        source_fingerprint := source_fingerprint + replank_sum;"""
        for n, part in enumerate(parts)
        if n
    )
    target_sums = "".join(
        f"""
        select coalesce(sum({hashes[n][1]}), 0) into replank_sum from {rows_of(part, "replank_keys")};
        target_fingerprint := target_fingerprint + replank_sum;"""
        for n, part in enumerate(parts)
        if n
    )
    each = "\n                     union all ".join(
        [
            f"select r.key, {hashes[n][0]}::numeric from {converted(p, 'replank_live', 'replank_vals')}"
            for n, p in enumerate(parts)
        ]
        + [f"select k.key, - {hashes[n][1]}::numeric from {rows_of(p, 'replank_keys')}" for n, p in enumerate(parts)]
    )
    return f"""
    if {literal(entity.name)} = any(replank_present) then{chunk_of(schema, entity)}
        replank_live := replank_keys;
        if array_position(replank_vals, null) is not null then
            select array_agg(c.key), array_agg(c.val) into replank_live, replank_vals
              from unnest(replank_keys, replank_vals) as c(key, val) where c.val is not null;
        end if;
        entity := {literal(entity.name)};
        select count(*) filter (where r.problem is null),
               coalesce(sum({hashes[0][0]}) filter (where r.problem is null), 0),
               array_agg(r.key) filter (where r.problem is not null)
          into records, source_fingerprint, replank_bad from {converted(entity, "replank_live", "replank_vals")};
        rejected := coalesce(cardinality(replank_bad), 0);
        if rejected > 0 then
            select g.keys, g.vals into replank_live, replank_vals
              from {schema}.without(replank_live, replank_vals, replank_bad) as g;
        end if;{sums}
        select count(*), coalesce(sum({hashes[0][1]}), 0) into target_records, target_fingerprint
          from {rows_of(entity, "replank_keys")};{target_sums}
        different := '{{}}';
        if records <> target_records or source_fingerprint <> target_fingerprint then
            select array_agg(d.key) into different
              from (select h.key from (
                     {each}) as h(key, hash)
                     group by h.key having sum(h.hash) <> 0 order by h.key collate "C" limit 100) as d;
        end if;
        return next;
    end if;"""


def fields(schema: str, entities: Sequence[EntityPart]) -> str:
    blocks = "".join(_fields_entity(entity) for entity in entities)
    body = f"""#variable_conflict use_column
declare
    replank_entity text := {schema}.entity_of($1);
    replank_problem text;
begin{blocks}
end"""
    return function(
        f"{schema}.fields(key text, val jsonb)",
        'returns table (relation text, "position" integer, column_name text, source text, target text)',
        "plpgsql",
        body,
        settings=BY_INDEX,
    )


def _fields_entity(entity: EntityPart) -> str:
    queries = []
    for part in (entity, *entity.children):
        position = f"t.{identifier(part.child.position)}" if isinstance(part, ChildPart) else "0"
        at = part.names.index(part.child.position) if isinstance(part, ChildPart) else None
        source_position = f"r.v{at}" if at is not None else "0"
        source_columns = ", ".join(f"r.v{n} as {identifier(name)}" for n, name in enumerate(part.names))
        target_columns = ", ".join(
            f"{value} as {identifier(name)}" for name, value in zip(part.names, target_values(part), strict=True)
        )
        condition = "$2 is not null and replank_problem is null"
        shown = "coalesce(s.place, t.place)" if at is not None else "null::integer"
        queries.append(f"""
        return query
        select {literal(part.table_name)}, {shown}, d.column_name, d.source, d.target
          from (select {source_position} as place, (select to_jsonb(q) from (select {source_columns}) as q) as fields
                  from {converted(part, "array[$1]", "array[$2]")} where {condition}) as s
          full join (select {position} as place, (select to_jsonb(q) from (select {target_columns}) as q) as fields
                       from {rows_of(part, "array[$1]")}) as t on t.place = s.place
         cross join lateral (
               select f.key, f.value #>> '{{}}', g.value #>> '{{}}'
                 from jsonb_each(s.fields) as f(key, value) join jsonb_each(t.fields) as g(key, value) on g.key = f.key
                where f.value <> g.value
               union all
               select null,
                      case when s.fields is not null then 'present'
                           else coalesce('rejected: ' || replank_problem, 'absent') end,
                      case when t.fields is not null then 'present' else 'absent' end
                where s.fields is null or t.fields is null) as d(column_name, source, target)
         order by 2, 3;""")
    return f"""
    if replank_entity = {literal(entity.name)} then
        if $2 is not null then
            select r.problem into replank_problem from {converted(entity, "array[$1]", "array[$2]")};
        end if;{"".join(queries)}
    end if;"""
