"""``entity_of`` and ``up_<entity>``: from keys and values to rows."""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from collections.abc import Iterator, Sequence

from replank.migrate.functions.text import function
from replank.migrate.parts import EntityPart, Part, elements_of
from replank.migrate.sql import identifier, literal
from replank.migrate.steps import of_element, of_record


def entity_of(schema: str, entities: Sequence[EntityPart]) -> str:
    arms = " ".join(f"when {e.pattern.matches_sql('$1')} then {literal(e.name)}" for e in entities)
    return function(
        f"{schema}.entity_of(key text)",
        "returns text",
        "sql",
        f"    select case {arms} end",
        kind="immutable parallel safe",
    )


def up(entity: EntityPart) -> Iterator[str]:
    steps, rest = of_record(entity)
    values = [*steps.values, *([rest] if entity.rest else [])]
    source = "(select c.key, c.val from unnest($1, $2) as c(key, val))"
    yield function(
        f"{entity.up}(keys text[], vals jsonb[])",
        _outputs([("key", "text"), ("problem", "text")], entity),
        "sql",
        f"    select r.key, r.problem, {', '.join(values)}\n      from {steps.steps(source)}",
    )
    for child in entity.children:
        steps, rest = of_element(child)
        parents = [f"r.k{n}" for n in range(len(child.child.parent))]
        values = [*parents, "r.position", *steps.values, *([rest] if child.rest else [])]
        source = (
            f"(select c.key, c.elem, (c.ordinality - 1)::integer as position, {child.of_key('c.key')}"
            f" from (select u.key, e.elem, e.ordinality from unnest($1, $2) as u(key, val),"
            f" {elements_of(child, 'u.val')} as e(elem, ordinality)) as c)"
        )
        yield function(
            f"{child.up}(keys text[], vals jsonb[])",
            _outputs([("key", "text")], child),
            "sql",
            f"    select r.key, {', '.join(values)}\n      from {steps.steps(source)}",
        )


def _outputs(own: Sequence[tuple[str, str]], part: Part) -> str:
    """A RETURNS TABLE. Where a column has a name of ours already, ours gets a ``$`` in front."""
    names = set(part.names)
    ours = [(f"${name}" if name in names else name, kind) for name, kind in own]
    listed = [*ours, *((name, kind) for name, kind, _ in part.columns)]
    return "returns table (" + ", ".join(f"{identifier(name)} {kind}" for name, kind in listed) + ")"
