"""One JSON object and the columns it is taken apart into: the tree of its mapped paths, and SQL over it.

Fields that no column has stay behind in the object's ``rest``, nested as they were. So do explicit nulls, empty
objects and empty arrays, which a column cannot tell from an absent field. `leftover` takes the rest out of a value,
`assembled` puts columns and rest together again.
"""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from replank.migrate.conversion import field_of
from replank.migrate.mapping import path_text
from replank.migrate.sql import literal


@dataclass(slots=True)
class Leaf:
    """A path that something was mapped to."""

    kept_when: str = ""
    """The SQL condition under which the field stays in the rest although it is mapped; empty for never."""
    json: str = ""
    """What it is in JSON: an SQL expression for an argument of ``jsonb_build_object``; empty when it is not rebuilt."""
    nested: bool = False
    """Whether ``json`` is of type jsonb, whose own nulls must stay."""
    member: str = ""
    """In place of ``json``: an SQL expression for an object with the field in it, or null."""


@dataclass(slots=True)
class Node:
    """An object with mapped fields in it."""

    path: tuple[str, ...] = ()
    leaves: dict[str, Leaf] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    number: int = 0

    def add(self, path: tuple[str, ...], leaf: Leaf) -> None:
        """Say what is at a path from here. Paths may not overlap."""
        name, *further = path
        if not further:
            self.leaves[name] = leaf
            return
        self.nodes.setdefault(name, Node((*self.path, name))).add(tuple(further), leaf)

    def inner(self) -> Iterator[Node]:
        """The objects inside this one, the outer ones first."""
        for node in self.nodes.values():
            yield node
            yield from node.inner()

    @property
    def height(self) -> int:
        """How many objects are inside of each other, this one included."""
        return 1 + max((node.height for node in self.nodes.values()), default=0)

    @property
    def kind(self) -> str:
        """The SQL expression of the JSON type that stands where this object should be."""
        return f"r.o{self.number}"


def tree(leaves: Iterable[tuple[tuple[str, ...], Leaf]]) -> Node:
    """The tree of these paths."""
    root = Node()
    for path, leaf in leaves:
        root.add(path, leaf)
    for number, node in enumerate(root.inner(), 1):
        node.number = number
    return root


def seen(root: Node, json: str) -> dict[str, str]:
    """For the second step of a conversion: what stands where nested objects should be."""
    return {f"o{node.number}": f"jsonb_typeof({field_of(json, node.path)})" for node in root.inner()}


def read(root: Node, json: str) -> list[dict[str, str]]:
    """For the third step and those after it: what is left of nested objects, each step from what is inside of it."""
    steps: list[dict[str, str]] = [{} for _ in range(root.height - 1)]
    for node in root.inner():
        left = leftover(node, field_of(json, node.path))
        steps[node.height - 1][f"l{node.number}"] = f"case when {node.kind} = 'object' then {left} end"
    return steps


def faults(root: Node, json: str, *, has_rest: bool) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(path, condition, reason): nested objects that are none, and what would be lost because there is no rest."""
    for node in root.inner():
        yield (
            node.path,
            f"{node.kind} not in ('object', 'null')",
            f"{literal('expected object, found ')} || {node.kind}",
        )
        if not has_rest:
            yield node.path, f"{node.kind} = 'null'", literal("a null has no place without a rest column")
            empty = f"{node.kind} = 'object' and {field_of(json, node.path)} = '{{}}'"
            yield node.path, empty, literal("an empty object has no place without a rest column")
    if has_rest:
        return
    for node in (root, *root.inner()):
        here = field_of(json, node.path) if node.path else json
        names = ", ".join(literal(name) for name in (*node.leaves, *node.nodes))
        extra = f"({here}) - array[{names}]::text[]"
        inside = f"{node.kind} = 'object'" if node.path else "true"
        # Both: a nested object may be absent, and then nothing is in it.
        condition = f"case when {inside} then {extra} <> '{{}}' end"
        first = f"(select min(f.name) from jsonb_object_keys({extra}) as f(name))"
        prefix = literal(path_text(node.path) + "." if node.path else "")
        yield (), condition, f"{prefix} || left({first}, 200) || ': has no column, and there is no rest column'"


def leftover(node: Node, json: str) -> str:
    """What stays in the rest: an SQL expression over what was `read`. ``json`` must be an object."""
    kept = {name: leaf.kept_when for name, leaf in node.leaves.items() if leaf.kept_when}
    kept |= {name: f"{inner.kind} = 'null'" for name, inner in node.nodes.items()}
    names = [*node.leaves, *node.nodes]
    if not names:
        return f"({json})"
    bare = f"({json}) - array[{', '.join(map(literal, names))}]::text[]"
    if kept:
        # Nearly no record has any of these: the array that is the same for all is far cheaper than one for each.
        each = ", ".join(
            f"case when not coalesce({kept[n]}, false) then {literal(n)} end" if n in kept else literal(n)
            for n in names
        )
        bare = f"case when {' or '.join(kept.values())} then ({json}) - array[{each}]::text[] else {bare} end"
    return " || ".join(
        [f"({bare})", *(_left(name, inner, f"({json}) -> {literal(name)}") for name, inner in node.nodes.items())]
    )


def _left(name: str, inner: Node, json: str) -> str:
    """What stays of a nested object: nothing when all of it was mapped, itself when there is nothing in it."""
    left = f"r.l{inner.number}"
    return (
        f"case when {inner.kind} = 'object' and ({left} <> '{{}}' or {json} = '{{}}')"
        # As jsonb_build_object, which asks the catalogue what type it was given, each time.
        f" then jsonb_set('{{}}', array[{literal(name)}], {left}) else '{{}}' end"
    )


def assembled(node: Node, rest: str) -> str:
    """The object again, from its columns and from the SQL expression of its rest. A column goes before the rest."""
    parts = [f"case when jsonb_typeof({rest}) = 'object' then {rest} else '{{}}' end"] if rest else []
    plain = [f"{literal(n)}, {leaf.json}" for n, leaf in node.leaves.items() if leaf.json and not leaf.nested]
    # A function takes 100 arguments.
    parts += [
        f"jsonb_strip_nulls(jsonb_build_object({', '.join(plain[start : start + 40])}))"
        for start in range(0, len(plain), 40)
    ]
    for name, leaf in node.leaves.items():
        if leaf.nested:
            built = f"jsonb_build_object({literal(name)}, {leaf.json})"
            parts.append(f"case when {leaf.json} is null then '{{}}' else {built} end")
        if leaf.member:
            parts.append(f"coalesce({leaf.member}, '{{}}')")
    parts += [
        _nested(name, assembled(inner, f"({rest} -> {literal(name)})" if rest else ""))
        for name, inner in node.nodes.items()
    ]
    return " || ".join(parts) if parts else "'{}'::jsonb"


def _nested(name: str, built: str) -> str:
    """An object inside of another one, if anything is in it. What it is built by stands there once, and not per use."""
    return (
        f"(select case when i.built <> '{{}}' then jsonb_build_object({literal(name)}, i.built) else '{{}}' end"
        f" from (select {built} as built offset 0) as i)"
    )
