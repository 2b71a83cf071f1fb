"""What a mapping must keep to beyond its format, so that it can be carried out, both ways, for every key."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from typing import Any, Final

from replank.migrate import patterns
from replank.migrate.mapping import REPRESENTATIONS, Child, Column, Entity, Index, Mapping, path_text
from replank.migrate.sql import IDENTIFIER_BYTES
from replank.migrate.yamltree import Place

Broken = Iterator[tuple[Place, str]]

_INTEGERS: Final = {"smallint": 15, "integer": 31, "bigint": 63}
_KEY_TYPES: Final = frozenset({"text", "smallint", "integer", "bigint", "uuid"})


def broken(mapping: Mapping) -> Broken:
    """Where the mapping breaks which rule."""
    yield from _keys(mapping)
    yield from _tables(mapping)
    yield from _references(mapping)
    for name, entity in mapping.entities.items():
        place = ("entities", name)
        yield from _primary_key(entity, place)
        yield from _paths(entity, place)
        for column_name, column in entity.columns.items():
            yield from _column(column, (*place, "columns", column_name), entity)
        taken = [*entity.columns, *([entity.rest] if entity.rest else [])]
        yield from _twice(taken, place)
        yield from _indexes(entity.indexes, taken, place)
        for child_name, child in entity.children.items():
            yield from _child(entity, name, child, (*place, "children", child_name))


def _keys(mapping: Mapping) -> Broken:
    keyed: list[tuple[Place, str]] = [(("entities", name, "key"), e.key) for name, e in mapping.entities.items()]
    keyed += [(("ignore", index), text) for index, text in enumerate(mapping.ignore)]
    for (place, text), (other_place, other) in combinations(keyed, 2):
        if place[0] == other_place[0] == "ignore":
            continue
        key = patterns.parse(text).common_key(patterns.parse(other))
        if key is not None:
            yield other_place, f"{other!r} and {text!r} both match the key {key!r}"


def _tables(mapping: Mapping) -> Broken:
    seen: dict[str, str] = {}
    indexes: set[str] = set()
    functions: set[str] = set()
    for name, entity in mapping.entities.items():
        of_entity: list[tuple[Place, str, dict[str, Index], str]] = [
            (("entities", name), entity.table, entity.indexes, f"up_{name}"),
            *(
                (("entities", name, "children", child_name), child.table, child.indexes, f"up_{name}_{child_name}")
                for child_name, child in entity.children.items()
            ),
        ]
        for place, table, table_indexes, function in of_entity:
            if table in seen:
                yield (*place, "table"), f"{table} is the table of {seen[table]} already"
            seen.setdefault(table, ".".join(map(str, place[1:])))
            if len(function) > IDENTIFIER_BYTES or function in functions:
                yield place, "the names of the entity and of the child are too long together, or make one of two others"
            functions.add(function)
            for index in table_indexes:
                # Postgres keeps the names of indexes by schema, which is the table's.
                qualified = f"{table.rpartition('.')[0]}.{index}"
                if qualified in indexes:
                    yield (*place, "indexes", index), "is the name of another index already"
                indexes.add(qualified)


def _references(mapping: Mapping) -> Broken:
    graph: dict[str, set[str]] = {}
    for name, entity in mapping.entities.items():
        columns: list[tuple[Place, Column]] = [
            (("entities", name, "columns", column_name, "references"), column)
            for column_name, column in entity.columns.items()
        ]
        columns += [
            (("entities", name, "children", child_name, "columns", column_name, "references"), column)
            for child_name, child in entity.children.items()
            for column_name, column in child.columns.items()
        ]
        for place, column in columns:
            if column.references is None:
                continue
            other = mapping.entities.get(column.references)
            if other is None:
                yield place, f"there is no entity {column.references!r}"
                continue
            graph.setdefault(name, set()).add(column.references)
            target = [other.columns[part] for part in other.primary_key if part in other.columns]
            if len(target) != 1 or len(other.primary_key) != 1:
                yield place, f"the primary key of {column.references} is not a single column"
            elif target[0].column_type != column.column_type:
                yield place, f"is {column.type}, the primary key of {column.references} is {target[0].type}"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = list(reversed(error.args[1]))
        yield ("entities", cycle[0]), f"entities reference each other in a circle: {' -> '.join(cycle)}"


def _primary_key(entity: Entity, place: Place) -> Broken:
    place = (*place, "primary_key")
    captures = set()
    yield from _twice(entity.primary_key, place)
    for name in entity.primary_key:
        column = entity.columns.get(name)
        if column is None:
            yield place, f"there is no column {name!r}"
        elif column.path is not None:
            yield place, f"{name} is not from the key: a delete could not find its rows without a value"
        elif column.key is not None:
            captures.add(column.key)
    if missing := [capture for capture in entity.pattern.captures if capture not in captures]:
        yield place, f"two keys would be one row: {{{'}, {'.join(missing)}}} of the key is not in the primary key"


def _paths(entity: Entity, place: Place) -> Broken:
    used: list[tuple[Place, tuple[str, ...]]] = [
        ((*place, "columns", name, "path"), column.path)
        for name, column in entity.columns.items()
        if column.path is not None
    ]
    used += [((*place, "children", name, "path"), child.path) for name, child in entity.children.items()]
    used += [((*place, "drop", index), path) for index, path in enumerate(entity.drop)]
    yield from _overlapping(used)
    for at, path in used:
        if not path:
            yield at, "$ is the element of an array: only a child's column has it"


def _overlapping(used: Sequence[tuple[Place, tuple[str, ...]]]) -> Broken:
    for (_, path), (other_place, other) in combinations(used, 2):
        shorter, longer = sorted((path, other), key=len)
        if longer[: len(shorter)] == shorter:
            text = path_text(path)
            yield other_place, (f"{text} has a place already" if path == other else f"overlaps with {text}")


def _child(entity: Entity, entity_name: str, child: Child, place: Place) -> Broken:
    if len(child.parent) != len(entity.primary_key):
        yield (*place, "parent"), f"needs a column for each of {', '.join(entity.primary_key)}"
    taken = [*child.parent, child.position, *child.columns, *([child.rest] if child.rest else [])]
    yield from _twice(taken, place)
    yield from _indexes(child.indexes, taken, place)
    used: list[tuple[Place, tuple[str, ...]]] = []
    for column_name, column in child.columns.items():
        at = (*place, "columns", column_name)
        if column.key is not None:
            yield at, "a child's columns come from its element: the key is in its parent columns"
            continue
        yield from _column(column, at, entity)
        if column.path is not None:
            used.append(((*at, "path"), column.path))
    yield from _overlapping(used)
    if any(path == () for _, path in used) and child.rest:
        yield (*place, "rest"), "a scalar element has no rest"
    if child.empty == "absent" and entity.rest is None:
        yield (
            (*place, "empty"),
            f"an empty array has no place: give {entity_name} a rest column, or say empty: array",
        )


def _column(column: Column, place: Place, entity: Entity) -> Broken:
    given = [name for name in ("key", "path", "constant") if getattr(column, name) is not None]
    if len(given) != 1:
        yield place, "comes from exactly one of key, path and constant"
    elif column.path is not None:
        yield from _from_json(column, place)
    else:
        for option, said in (("as", column.representation), ("clean", column.clean), ("lenient", column.lenient)):
            if said:
                yield (*place, option), "is for a column with a path"
    base = column.column_type.base
    if column.key is not None:
        if column.key not in entity.pattern.captures:
            yield (*place, "key"), f"there is no {{{column.key}}} in {entity.key!r}"
        if base not in _KEY_TYPES:
            yield (*place, "type"), f"a column from the key is one of: {', '.join(sorted(_KEY_TYPES))}"
    if column.constant is not None and (problem := _bad_constant(column.constant, base)):
        yield (*place, "constant"), problem


def _from_json(column: Column, place: Place) -> Broken:
    base = column.column_type.base
    if column.representation is not None and column.representation not in REPRESENTATIONS.get(base, ()):
        allowed = ", ".join(REPRESENTATIONS.get(base, ())) or "nothing"
        yield (*place, "as"), f"{base} can be said to stand in JSON as: {allowed}"
    if {"lower", "upper"} <= set(column.clean):
        yield (*place, "clean"), "lower or upper, not both"
    if column.clean and base in {"boolean", "jsonb", "double precision"}:
        yield (*place, "clean"), f"{base} is not written as a text"
    if column.lenient and base == "jsonb":
        yield (*place, "lenient"), "jsonb takes everything as it is"


def _bad_constant(constant: Any, base: str) -> str:
    """What keeps a constant from being of a type; empty when nothing does."""
    problem = f"is not of type {base}"
    is_number = isinstance(constant, int | float) and not isinstance(constant, bool)
    try:
        match base:
            case "jsonb":
                return "jsonb has no constants here"
            case "boolean":
                good = isinstance(constant, bool)
            case "numeric" | "double precision":
                good = is_number
            case "smallint" | "integer" | "bigint":
                good = is_number and constant == int(constant) and abs(constant) < 2 ** _INTEGERS[base]
            case "text":
                good = isinstance(constant, str) and "\0" not in constant
            case "date":
                good = bool(dt.date.fromisoformat(constant))
            case "timestamptz":
                good = dt.datetime.fromisoformat(constant).tzinfo is not None
            case _:
                good = str(uuid.UUID(constant)) == constant
    except (TypeError, ValueError, AttributeError):
        return problem
    return "" if good else problem


def _twice(names: Sequence[str], place: Place) -> Broken:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield place, f"two columns are named {name!r}"


def _indexes(indexes: dict[str, Index], columns: Sequence[str], place: Place) -> Broken:
    for name, index in indexes.items():
        at = (*place, "indexes", name)
        if bool(index.columns) == bool(index.on):
            yield at, "is on exactly one of columns and on"
        for column in index.columns:
            if column not in columns:
                yield (*at, "columns"), f"there is no column {column!r}"
