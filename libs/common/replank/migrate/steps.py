"""What turns one JSON object into one row: the conversions of its columns, its rest, and what may be wrong with it."""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from replank.migrate import conversion, record
from replank.migrate.mapping import path_text
from replank.migrate.parts import ChildPart, EntityPart, Part, elements_of
from replank.migrate.record import Leaf, Node
from replank.migrate.sql import literal

_OBJECT_CONDITION: Final = "r.o0 is distinct from 'object'"


@dataclass(slots=True)
class Steps:
    """What turns one object into one row: expressions over ``r``, step after step."""

    taken: dict[str, str] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)
    read: dict[str, str] = field(default_factory=dict)
    left: list[dict[str, str]] = field(default_factory=list)
    """What is left of objects that have objects inside, in steps of their own: the inner ones before the outer ones."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """(condition, the whole text of the problem)"""
    values: list[str] = field(default_factory=list)

    def steps(self, source: str) -> str:
        """A subquery ``r`` with everything of ``source``, what was taken and read, and the problem.

        The levels are kept apart by ``offset 0``: the planner would copy an expression to wherever it is used.
        """
        problem = (
            "case " + " ".join(f"when {c} then {text}" for c, text in self.faults) + " end"
            if self.faults
            else "null::text"
        )
        levels = f"{source} as r"
        for step in (self.taken, self.seen, self.read, *self.left):
            if step:
                added = "".join(f", {expression} as {alias}" for alias, expression in step.items())
                levels = f"(select r.*{added} from {levels} offset 0) as r"
        return f"(select r.*, {problem} as problem from {levels} offset 0) as r"


def _columns_of(
    part: Part, json: str, prefix: str | None, leaves: list[tuple[tuple[str, ...], Leaf]]
) -> tuple[Steps, Node]:
    """The conversion of a part's own columns; ``prefix`` is the SQL text in front of a path, None for none."""
    steps = Steps()
    for n, column in enumerate(part.mapped.values()):
        if column.key is not None:
            c = conversion.from_key(column, n, part.entity.pattern, "r.key")
            at = "key"
        elif column.path is not None:
            c = conversion.from_json(column, n, json, part.schema)
            at = path_text(column.path)
            if column.path:
                # A value that is cleaned to nothing comes back as absent: so does a null, which it may have been.
                kept = "" if "empty_as_null" in column.clean else f"r.t{n} = 'null'"
                leaves.append((column.path, Leaf(kept_when=kept)))
                if part.rest is None and not column.lossy and column.nullable:
                    reason = literal("a null has no place without a rest column")
                    steps.faults.append((f"r.t{n} = 'null'", _problem(prefix, at, reason)))
        else:
            steps.values.append(conversion.constant(column))
            continue
        steps.taken |= c.taken
        steps.seen |= c.seen
        steps.read |= c.read
        steps.faults += [(condition, _problem(prefix, at, reason)) for condition, reason in c.faults]
        steps.values.append(c.value)
    root = record.tree(leaves)
    steps.seen |= record.seen(root, json)
    if part.rest is not None:
        first, *steps.left = record.read(root, json) or [{}]
        steps.read |= first
    return steps, root


def _problem(prefix: str | None, path: str, reason: str) -> str:
    """The text of a problem: path, colon, reason."""
    shown = "" if path == "$" and prefix is not None else f".{path}" if prefix is not None else path
    text = f"{literal(shown + ': ')} || {reason}" if shown or prefix is not None else reason
    return f"{prefix} || {text}" if prefix is not None else text


def _object_faults(part: Part, steps: Steps, root: Node, json: str, prefix: str | None) -> None:
    """That the object is one, that its nested objects are, and that nothing in it is without a place."""
    steps.seen["o0"] = f"jsonb_typeof({json})"
    expected = (
        _OBJECT_CONDITION,
        _problem(prefix, "$", f"{literal('expected object, found ')} || coalesce(r.o0, 'nothing')"),
    )
    found = [expected]
    late: list[tuple[str, str]] = []
    for path, condition, reason in record.faults(root, json, has_rest=part.rest is not None):
        if path:
            found.append((condition, _problem(prefix, path_text(path), reason)))
        else:
            late.append((condition, f"{prefix} || '.' || {reason}" if prefix is not None else reason))
    steps.faults[:0] = found
    steps.faults += late


def of_element(child: ChildPart) -> tuple[Steps, str]:
    """The conversion of one element of an array, ``r.elem`` at ``r.position`` (from 0); and its SQL for the rest."""
    prefix = f"{literal(path_text(child.child.path) + '[')} || r.position || ']'"
    steps, root = _columns_of(child, "r.elem", prefix, [])
    scalar = any(column.path == () for column in child.mapped.values())
    if not scalar:
        _object_faults(child, steps, root, "r.elem", prefix)
    rest = f"case when r.problem is null then nullif({record.leftover(root, 'r.elem')}, '{{}}') end"
    return steps, rest


def of_record(entity: EntityPart, *, elements_known: bool = False) -> tuple[Steps, str]:
    """The conversion of a record, ``r.key`` and ``r.val``, with its children's problems; and its SQL for the rest.

    ``elements_known``: the source knows that the key matches and what is wrong with the elements of each array, in
    ``c0``, ``c1``, …; otherwise it is looked for here.
    """
    arrays: list[tuple[str, str]] = []
    leaves: list[tuple[tuple[str, ...], Leaf]] = [(path, Leaf()) for path in entity.entity.drop]
    seen: dict[str, str] = {}
    read: dict[str, str] = {}
    for n, child in enumerate(entity.children):
        value = conversion.field_of("r.val", child.child.path)
        kind = f"r.a{n}"
        seen[f"a{n}"] = f"jsonb_typeof({value})"
        kept, path = f"{kind} = 'null'", path_text(child.child.path)
        if child.child.empty == "absent":
            kept = f"({kept} or ({kind} = 'array' and {value} = '[]'))"
        else:
            arrays.append((f"{kind} is null", _problem(None, path, literal("missing"))))
        leaves.append((child.child.path, Leaf(kept_when=kept)))
        arrays.append(
            (f"{kind} not in ('array', 'null')", _problem(None, path, f"{literal('expected array, found ')} || {kind}"))
        )
        if entity.rest is None:
            arrays.append(
                (f"{kind} = 'null'", _problem(None, path, literal("a null has no place without a rest column")))
            )
        steps, _ = of_element(child)
        if steps.faults and not elements_known:
            array = f"{elements_of(child, 'r.val')} as e(elem, ordinality)"
            elements = f"(select e.elem, e.ordinality - 1 as position from {array})"
            first = f"(select r.problem from {steps.steps(elements)} where r.problem is not null limit 1)"
            read[f"c{n}"] = f"case when r.a{n} = 'array' then {first} end"
        if steps.faults:
            arrays.append((f"r.c{n} is not null", f"r.c{n}"))
    steps, root = _columns_of(entity, "r.val", None, leaves)
    steps.seen |= seen
    steps.read |= read
    steps.faults += arrays
    _object_faults(entity, steps, root, "r.val", None)
    if not elements_known:
        matches = entity.pattern.matches_sql("r.key")
        steps.faults.insert(0, (f"not coalesce({matches}, false)", literal(f"key: does not match {entity.entity.key}")))
    return steps, f"case when r.problem is null then nullif({record.leftover(root, 'r.val')}, '{{}}') end"
