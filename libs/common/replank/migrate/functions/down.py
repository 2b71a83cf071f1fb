"""``down`` and ``extra``: from rows to values and to keys."""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from collections.abc import Sequence

from replank.migrate import record
from replank.migrate.conversion import to_json
from replank.migrate.functions.text import BY_INDEX, function
from replank.migrate.parts import ChildPart, EntityPart, Part, listed
from replank.migrate.record import Leaf
from replank.migrate.sql import identifier, literal


def down(schema: str, entities: Sequence[EntityPart]) -> str:
    """``down``: each key's value, put together from its row and its children's; nothing for a key without a row."""
    blocks = "".join(
        f"\n    if {literal(entity.name)} = any(replank_present) then{_down_entity(entity)}\n    end if;"
        for entity in entities
    )
    body = f"""#variable_conflict use_column
declare
    replank_present text[];
begin
    select array_agg(distinct {schema}.entity_of(c.key)) into replank_present from unnest($1) as c(key);{blocks}
end"""
    return function(
        f"{schema}.down(keys text[])", "returns table (key text, value jsonb)", "plpgsql", body, settings=BY_INDEX
    )


def _down_entity(entity: EntityPart) -> str:
    leaves = [
        *_leaves(entity, "t"),
        *((child.child.path, Leaf(member=_array_down(child))) for child in entity.children),
    ]
    rest = f"t.{identifier(entity.rest)}" if entity.rest else ""
    return f"""
        return query select k.key, {record.assembled(record.tree(leaves), rest)}
          from (select c.key, {entity.of_key("c.key")} from unnest($1) as c(key)
                 where {entity.pattern.matches_sql("c.key")} offset 0) as k
          join {entity.table} as t on {entity.found_by("t", "k")};"""


def _leaves(part: Part, row: str) -> list[tuple[tuple[str, ...], Leaf]]:
    """The fields that a part's columns become."""
    return [
        (
            column.path,
            Leaf(json=to_json(column, f"{row}.{identifier(name)}"), nested=column.column_type.base == "jsonb"),
        )
        for name, column in part.mapped.items()
        if column.path is not None
    ]


def _array_down(child: ChildPart) -> str:
    """An object with the array of a child's rows in it, or null when there are none."""
    scalar = [(name, column) for name, column in child.mapped.items() if column.path == ()]
    if scalar:
        ((name, column),) = scalar
        element = f"coalesce(to_jsonb({to_json(column, f'h.{identifier(name)}')}), 'null')"
    else:
        element = record.assembled(
            record.tree(_leaves(child, "h")), f"h.{identifier(child.rest)}" if child.rest else ""
        )
    last = literal(child.child.path[-1])
    found = (
        f"(select jsonb_build_object({last}, jsonb_agg({element} order by h.{identifier(child.child.position)}))"
        f" from {child.table} as h where {child.found_by('h', 'k')} having count(*) > 0)"
    )
    if child.child.empty == "absent":
        return found
    # A null that was remembered in the rest stands there already.
    rest = f"t.{identifier(child.entity.rest)}" if child.entity.rest else "null::jsonb"
    remembered = f"{rest} #> array[{', '.join(map(literal, child.child.path))}]"
    return f"coalesce({found}, case when {remembered} is null then jsonb_build_object({last}, '[]'::jsonb) end)"


def extra(schema: str, entities: Sequence[EntityPart]) -> str:
    blocks = []
    for entity in entities:
        texts = {
            c.key: f"t.{identifier(n)}::text" for n, c in entity.mapped.items() if c.key and n in entity.primary_key
        }
        columns = listed(entity.primary_key, "t")
        after = ", ".join(value for _, value in entity.key_columns("$1"))
        blocks.append(f"""
    if $3 = {literal(entity.name)} then
        if $1 is null then
            return query select {entity.pattern.build_sql(texts)} from {entity.table} as t order by {columns} limit $2;
        else
            return query select {entity.pattern.build_sql(texts)} from {entity.table} as t
             where ({columns}) > ({after}) order by {columns} limit $2;
        end if;
        return;
    end if;""")
    body = f"""#variable_conflict use_column
begin{"".join(blocks)}
    raise exception 'there is no entity "%" in this mapping', $3 using errcode = 'invalid_parameter_value';
end"""
    return function(
        f"{schema}.extra(after text, n integer, entity text)",
        "returns table (key text)",
        "plpgsql",
        body,
        settings=BY_INDEX,
    )
