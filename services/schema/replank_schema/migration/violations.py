"""Rows that a constraint will not take: looked for while their records can still be mended in the key-value store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from replank.connection import Connection
from replank.migrate import ddl
from replank.migrate.compile import Compiled, IndexBuild
from replank.migrate.ddl import Violation
from replank_schema.migration.report import Violated

_MOST_COUNTED: Final = 1000
_KEYS_TOLD: Final = 3


async def of_references(target: Connection, compiled: Compiled) -> list[Violation]:
    """The foreign keys that rows violate. A column that must not be null needs no look: such records are rejected."""
    references = [constraint for constraint in compiled.constraints if constraint.kind == "foreign key"]
    return await ddl.violations(target, references, at_most=_MOST_COUNTED)


async def of_all(target: Connection, compiled: Compiled) -> tuple[Violated, ...]:
    """All constraints that rows violate, where the application writes the rows: what is missing is not on its way."""
    found = await ddl.violations(target, compiled.constraints, at_most=_MOST_COUNTED)
    return tuple(_told(violation, violation.keys) for violation in found)


async def of_indexes(target: Connection, compiled: Compiled) -> tuple[Violated, ...]:
    """The unique indexes in whose way rows are."""
    found = []
    for index in compiled.indexes:
        try:
            found += await ddl.violations(target, [index], at_most=_MOST_COUNTED)
        except asyncpg.PostgresSyntaxError:
            # What an index is on may have an operator class or an order, which no other clause takes.
            continue
    return tuple(_told(violation, violation.keys) for violation in found)


def lasting(before: Sequence[Violation] | None, now: Sequence[Violation]) -> tuple[Violated, ...] | None:
    """Those that were there the last time too: the row that is referred to may be applied after the one that refers.

    ``before``: what was found then, ``None`` if nobody looked. Returns ``None`` where that cannot be told yet.
    """
    if not now:
        return ()
    if before is None:
        return None
    known = {violation.constraint: violation.keys for violation in before}
    told = []
    for violation in now:
        earlier = known.get(violation.constraint, ())
        # Of more than are counted, each look may see others.
        sampled = _MOST_COUNTED in (len(earlier), len(violation.keys))
        among = frozenset(earlier)
        keys = violation.keys if sampled else tuple(key for key in violation.keys if key in among)
        if keys:
            told.append(_told(violation, keys))
    return tuple(told)


def _told(violation: Violation, keys: Sequence[str]) -> Violated:
    constraint = violation.constraint
    return Violated(
        constraint=constraint.name,
        table=constraint.table,
        columns=constraint.columns,
        refers_to=constraint.refers_to,
        alike=isinstance(constraint, IndexBuild),
        rows=len(keys),
        counted_all=len(violation.keys) < _MOST_COUNTED,
        keys=tuple(dict.fromkeys(keys))[:_KEYS_TOLD],
    )
