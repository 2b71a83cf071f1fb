"""Who may write: the key-value store or the tables, never both, enforced by the databases themselves.

Each side of a migration keeps one word about itself, which the triggers on its tables read at every write: ``open``
(it takes the writes), ``held`` (nobody may write for the moment) or ``closed`` (the other side takes them). Before the
cut-over the source is open and the target closed; the way there, and the way back, goes through ``held``::

    await authority.hold(source_conn, "shop", "source")    # refuses all but those who have written, and waits for them
    ...                                                    # everything written is carried to the target
    await authority.open(target_conn, "shop", "target")
    await authority.close(source_conn, "shop", "source")

A write to a side that is not open fails with a SQLSTATE of its own. `refusal` tells which, so that the caller waits or
goes to the other store (`replank.migrate.client.WriteRouter` does).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Literal, get_args

import asyncpg

from replank.connection import Connection
from replank.errors import ReplankError
from replank.migrate.locks import LocksNotGranted, with_locks
from replank.migrate.sql import schema_of

Side = Literal["source", "target"]
Writes = Literal["open", "held", "closed"]

HELD: Final = "RPL01"
ELSEWHERE: Final = "RPL02"
APPLIER_REFUSED: Final = "RPL03"
WRONG_STEP: Final = "RPL04"

# The function in which a trigger reads the authority, as an error's context names it.
_READ_IN: Final = ".require_open("

_STATE: Final = "select writes from {schema}.authority where side = $1"
_SET: Final = "select {schema}.set_writes($1, $2)"
_WRITING: Final = "select {schema}.writing($1)"

_POLL_INTERVAL: Final = 0.01


class WritesHeld(ReplankError):
    """The authority for writes is moving between the stores: try the transaction again in a moment."""


class WritesElsewhere(ReplankError):
    """This store takes no writes: the other one does."""


class NoAuthority(ReplankError):
    """This database is not, or not yet, a side of the migration."""


class WrongStep(ReplankError):
    """A side cannot go from what it is to what was asked for."""


async def state(conn: Connection, name: str, side: Side) -> Writes:
    """Whether a side of the migration ``name`` takes writes. Raises `NoAuthority`."""
    try:
        writes = await conn.fetchval(_STATE.format(schema=schema_of(name)), side)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
        raise _absent(name, side) from error
    if writes is None:
        raise _absent(name, side)
    return _writes(writes)


async def hold(conn: Connection, name: str, side: Side, *, within: float = 30.0) -> Writes:
    """Let nobody write to a side from now on; answers what it was before. ``conn`` has no open transaction.

    Whoever comes is refused at once. A transaction that has written before may write on, and this returns when every
    one of them has ended: it locks no table, so nobody waits for it. A statement that is still running has not written
    yet; it is refused when it ends. Raises `NoAuthority`, `WrongStep` (a closed side), and
    `replank.migrate.locks.LocksNotGranted` when a transaction stays open for ``within`` seconds; whatever it raises,
    the side is then as it was, unless its database went away.
    """
    if conn.is_in_transaction():
        raise WrongStep("a side cannot be held inside a transaction: nobody would know", fix="commit it first")
    deadline = time.monotonic() + within
    before = await state(conn, name, side)
    try:
        await with_locks(conn, lambda: _set(conn, name, side, "held"), within=within)
        await _written(conn, name, side, deadline)
    except BaseException:
        if before == "open":
            await asyncio.shield(open(conn, name, side))
        raise
    return before


async def open(conn: Connection, name: str, side: Side, *, within: float = 30.0) -> Writes:  # noqa: A001 - authority.open reads as what it does
    """Let a held or closed side take the writes; answers what it was. Raises as `hold` does, with nothing changed.

    Whoever calls it knows that the other side is not open: across two databases nothing else can.
    """
    return await with_locks(conn, lambda: _set(conn, name, side, "open"), within=within)


async def close(conn: Connection, name: str, side: Side, *, within: float = 30.0) -> Writes:
    """Send the writers of a held side to the other one; answers what it was. Raises as `hold` does."""
    return await with_locks(conn, lambda: _set(conn, name, side, "closed"), within=within)


def refusal(error: BaseException) -> WritesHeld | WritesElsewhere | None:
    """What an error, or what caused it, says about the authority; nothing if it is about something else.

    A transaction above read committed whose snapshot is older than the last move of the authority fails to serialize
    (40001): that counts as held, too, since a new transaction sees where things stand.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (WritesHeld, WritesElsewhere)):
            return cause
        match getattr(cause, "sqlstate", None):
            case "RPL01":
                return WritesHeld(str(cause), fix="try the transaction again in a moment")
            case "RPL02":
                return WritesElsewhere(str(cause), fix="write to the other store, as a WriteRouter does")
            case "40001" if _READ_IN in (getattr(cause, "context", None) or ""):
                return WritesHeld("the authority for writes has moved", fix="run the transaction again")
        cause = cause.__cause__
    return None


async def _written(conn: Connection, name: str, side: Side, deadline: float) -> None:
    """Return when every transaction has ended that may have written before the side was held."""
    statement = _WRITING.format(schema=schema_of(name))
    open_: set[str] = set(await conn.fetchval(statement, side))
    while open_:
        if time.monotonic() > deadline:
            raise LocksNotGranted(
                f"{len(open_)} transactions that have written to the {side} of {name} stay open",
                fix="look in pg_stat_activity for the long transactions on its tables, and try again",
            )
        await asyncio.sleep(_POLL_INTERVAL)
        # Those who came later are refused: only the first are waited for.
        open_.intersection_update(await conn.fetchval(statement, side))


async def _set(conn: Connection, name: str, side: Side, writes: Writes) -> Writes:
    try:
        before = await conn.fetchval(_SET.format(schema=schema_of(name)), side, writes)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError) as error:
        raise _absent(name, side) from error
    except asyncpg.PostgresError as error:
        if error.sqlstate == WRONG_STEP:
            raise WrongStep(str(error), fix="hold an open side before it is closed, and open only one") from error
        raise
    if before is None:
        raise _absent(name, side)
    return _writes(before)


def _writes(word: str) -> Writes:
    for known in get_args(Writes):
        if word == known:
            found: Writes = known
            return found
    raise WrongStep(f"the authority says {word!r}, which this library does not know", fix="upgrade the library")


def _absent(name: str, side: Side) -> NoAuthority:
    return NoAuthority(
        f"this database is not the {side} of the migration {name}",
        fix="look whether the migration was started, and whether this is the right database",
    )
