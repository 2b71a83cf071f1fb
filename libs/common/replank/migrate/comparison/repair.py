"""Applying records once more: the current record of a key, under a new version, by the way that all changes take.

Which store is right is a matter of authority, not of this module: the leading side's record, or its absence, is what
the following side will hold. Between reading a record and drawing its version no write may slip in, or the repair would
undo it; a key without a record has no row to lock. So the writers of the leading side are held for as long as it takes
to read the keys and append their changes: a table lock that excludes writers, not readers, given up after a second and
tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from replank.connection import Connection
from replank.migrate.locks import with_locks
from replank.migrate.mapping import Mapping
from replank.migrate.session import session
from replank.migrate.sql import identifier, relation, schema_of
from replank.migrate.topics import Direction
from replank.telemetry.context import capture

_TIMEOUT: Final = 60.0
_TRACE: Final = "select set_config('replank.traceparent', $1, true)"
# Holding writers, finding records, carrying them. A side that takes no writes does not lead, and refuses.
_OF_KEY_VALUE: Final = (
    "lock table {tables} in share row exclusive mode; select {schema}.require_open('source')",
    "select {key} from {tables} where {key} = any($1::text[])",
    "select {schema}.carry($1::text[])",
)
_OF_TABLES: Final = (
    "lock table {tables} in share row exclusive mode; select {schema}.require_open('target')",
    "select key from {schema}.down($1::text[])",
    "select {schema}.carry_back($1::text[])",
)


@dataclass(frozen=True, slots=True)
class Repaired:
    """A key that was applied once more: its record, or that there is none."""

    key: str
    op: Literal["upsert", "delete"]


async def repair(
    source: str,
    target: str,
    mapping: Mapping,
    keys: Sequence[str],
    *,
    direction: Direction = "forward",
    dry_run: bool = False,
    within: float = 30.0,
) -> list[Repaired]:
    """Have the following side hold what the leading side holds for each of the keys; ``dry_run`` only says what to do.

    Returns when the changes are committed on the leading side; they reach the other one as every change does. Holds
    writers of the leading side while it reads: give it hundreds of keys, not thousands. Raises
    `replank.migrate.locks.LocksNotGranted` when they cannot be held for ``within`` seconds, and the failures of a
    server as they come: ``RPL01`` and ``RPL02`` are among them, where the side that was to lead takes no writes.
    """
    wanted = sorted({key for key in keys if key})
    leading = _Leading(mapping, direction)
    async with session(source if direction == "forward" else target, "repair", timeout=_TIMEOUT) as conn:
        if dry_run or not wanted:
            return await leading.current(conn, wanted)
        return await with_locks(conn, lambda: leading.carry(conn, wanted), within=within)


class _Leading:
    """The side whose records are carried to the other one, as the capture of its changes would carry them."""

    def __init__(self, mapping: Mapping, direction: Direction) -> None:
        entities = mapping.entities.values()
        roots = [entity.table for entity in entities]
        children = [child.table for entity in entities for child in entity.children.values()]
        forward = direction == "forward"
        names = {
            "schema": schema_of(mapping.name),
            "tables": ", ".join(sorted(map(relation, [mapping.source.table] if forward else {*roots, *children}))),
            "key": identifier(mapping.source.key),
        }
        hold, present, carry = _OF_KEY_VALUE if forward else _OF_TABLES
        self._hold = hold.format_map(names)
        self._present = present.format_map(names)
        self._carry = carry.format_map(names)

    async def carry(self, conn: Connection, keys: Sequence[str]) -> list[Repaired]:
        """Carry the records with these keys, or that there are none. In a transaction, with a limit on locks."""
        await conn.execute(self._hold)
        await conn.execute(_TRACE, capture().traceparent or "")
        await conn.execute(self._carry, keys)
        return await self.current(conn, keys)

    async def current(self, conn: Connection, keys: Sequence[str]) -> list[Repaired]:
        """What carrying would do, or did."""
        present = {key for (key,) in await conn.fetch(self._present, keys)}
        return [Repaired(key, "upsert" if key in present else "delete") for key in keys]
