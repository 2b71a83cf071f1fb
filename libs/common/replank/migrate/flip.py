"""The flip: the authority for writes moves from one store to the other, and nothing written is lost or written twice.

The order of the steps makes every crash decidable from what the two databases say of themselves, whoever looks::

    leaving   taking    what it means                                    what `recover` does
    open      closed    not begun, or undone
    held      closed    writers wait while what was written is carried   opens the leaving side: nothing has happened
    held      open      the taking side has everything                   closes the leaving side
    closed    open      done

The step from the second line to the third is one row in one database. It is only taken after the outbox of the leaving
side has published every change and the applier has committed the last of them.

One at a time works on a migration's authority: whoever does holds a lock in both databases, and changes each side on
the very session that holds its lock there. A process that was frozen and taken over can therefore not finish what it
began: its sessions are what it would need for that, and while they live nobody takes over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from replank.connection import POSTGRES_ERRORS, Connection
from replank.errors import ReplankError
from replank.migrate import authority, topics
from replank.migrate.authority import Side, Writes
from replank.migrate.isolation import name_of
from replank.migrate.locks import LocksNotGranted
from replank.migrate.session import backoff, session
from replank.migrate.topics import Direction
from replank.outbox.status import status

_log: Final = logging.getLogger(__name__)

_PART: Final = "flip"
_STATEMENT_TIMEOUT: Final = 60.0
_POLL_INTERVAL: Final = 0.02
_LONGEST_PAUSE: Final = 1.0
# Opening the taking side is given this many seconds even where holding and draining have used up all there was.
_TO_OPEN: Final = 1.0
# What is decided has to be done, and undoing has to succeed.
_TO_CLOSE: Final = 30.0
_TRY_LOCK: Final = "select pg_try_advisory_lock(hashtextextended($1, 0))"

Step = Literal["held", "drained", "opened", "closed"]


class FlipInProgress(ReplankError):
    """Somebody else is moving the authority of this migration."""


class FlipUndone(ReplankError):
    """The authority is where it was; writers were held meanwhile. The message says what was in the way."""


class NotDrained(ReplankError):
    """What was written to the held side was not carried to the other one before the deadline."""


class FlipUndecided(ReplankError):
    """A database went away in the middle. Writers are held until `recover` is called and reaches both."""


class AuthorityBroken(ReplankError):
    """The two databases contradict each other as no flip leaves them: somebody has changed them by hand."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The two stores of the migration ``name``, by DSN, and the Kafka between them.

    ``same_transaction``: changes are applied by the writer's own transaction, so there is nothing to drain.
    """

    name: str
    source: str = field(repr=False)
    target: str = field(repr=False)
    kafka: str
    same_transaction: bool = False
    kafka_options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Flipped:
    """The side that takes the writes now, and for how many seconds, at most, writers were held.

    That is until the leaving side says that it is closed: a writer who asks there learns only then where to go.
    """

    side: Side
    held: float


OnStep = Callable[[Step], Awaitable[None]]


async def to_tables(stores: Stores, *, within: float = 5.0, on_step: OnStep | None = None) -> Flipped:
    """Let the tables take the writes. ``within``: how many seconds writers may be held before it is undone.

    The last step, one row of the taking side, is given a second at least, so it may be that much more. ``on_step`` is
    called after each step, while the next one waits for it. Calling it where the tables take the writes already does
    nothing. Raises `FlipUndone`, `FlipInProgress`, `FlipUndecided`, `AuthorityBroken`, and
    `replank.migrate.authority.NoAuthority` where capture is not installed.
    """
    return await _flip(stores, _Way("source", "target", "forward"), within, on_step)


async def to_key_value(stores: Stores, *, within: float = 5.0, on_step: OnStep | None = None) -> Flipped:
    """Let the key-value store take the writes again; see `to_tables`."""
    return await _flip(stores, _Way("target", "source", "reverse"), within, on_step)


async def recover(stores: Stores, *, within: float = 30.0) -> Side:
    """Finish or undo a flip that was interrupted; answers which side takes the writes. Harmless where none was.

    Tries for ``within`` seconds to reach both databases. Raises `FlipUndecided` where that fails, `FlipInProgress`,
    `AuthorityBroken`.
    """
    deadline = time.monotonic() + within
    attempt = 0
    while True:
        try:
            async with _alone(stores, max(0.0, deadline - time.monotonic())) as sides:
                return await _settle(sides, max(_TO_OPEN, deadline - time.monotonic()))
        except (*POSTGRES_ERRORS, LocksNotGranted) as error:
            pause = backoff(attempt, _LONGEST_PAUSE)
            attempt += 1
            if time.monotonic() + pause > deadline:
                raise FlipUndecided(
                    f"the authority of {stores.name} cannot be decided: {name_of(error)}",
                    fix="bring both databases up, then recover again; writers are held until then",
                ) from error
            await asyncio.sleep(pause)


@dataclass(frozen=True, slots=True)
class _Way:
    """From which side to which, and what carries the changes."""

    leaving: Side
    taking: Side
    direction: Direction


class _Undecided(Exception):
    """A step may or may not have been taken."""


@dataclass(frozen=True, slots=True)
class _Sides:
    name: str
    connections: Mapping[Side, Connection]

    async def state(self, side: Side) -> Writes:
        return await authority.state(self.connections[side], self.name, side)

    async def open(self, side: Side, *, within: float) -> None:
        await authority.open(self.connections[side], self.name, side, within=within)

    async def hold(self, side: Side, *, within: float) -> None:
        await authority.hold(self.connections[side], self.name, side, within=within)

    async def close(self, side: Side, *, within: float) -> None:
        await authority.close(self.connections[side], self.name, side, within=within)


@asynccontextmanager
async def _alone(stores: Stores, within: float) -> AsyncIterator[_Sides]:
    """Both sides, with their locks: nobody else moves this migration's authority meanwhile."""
    deadline = time.monotonic() + within
    async with (
        session(stores.source, _PART, timeout=_STATEMENT_TIMEOUT) as source,
        session(stores.target, _PART, timeout=_STATEMENT_TIMEOUT) as target,
    ):
        sides: dict[Side, Connection] = {"source": source, "target": target}
        for side, conn in sides.items():
            # The sides may be one database: each has a lock of its own. The source's comes first, for everybody.
            while not await conn.fetchval(_TRY_LOCK, f"replank_m_{stores.name}.flip.{side}"):
                if time.monotonic() > deadline:
                    raise FlipInProgress(
                        f"somebody else is moving the authority of {stores.name}", fix="wait for it, and look again"
                    )
                await asyncio.sleep(_POLL_INTERVAL)
        yield _Sides(stores.name, sides)


async def _settle(sides: _Sides, within: float) -> Side:
    state = (await sides.state("source"), await sides.state("target"))
    match state:
        case ("open", "closed"):
            return "source"
        case ("closed", "open"):
            return "target"
        case ("held", "closed"):
            await sides.open("source", within=within)
            found: Side = "source"
        case ("open", "held"):
            await sides.close("target", within=within)
            found = "source"
        case ("closed", "held"):
            await sides.open("target", within=within)
            found = "target"
        case ("held", "open"):
            await sides.close("source", within=within)
            found = "target"
        case _:
            raise AuthorityBroken(
                f"the authority of {sides.name} is {state[0]} on the source and {state[1]} on the target",
                fix="compare the two stores, then set the authority by hand (docs/architecture/migration.md)",
            )
    _log.warning("an interrupted flip was settled", extra={"migration": sides.name, "found": state, "side": found})
    return found


async def _flip(stores: Stores, way: _Way, within: float, on_step: OnStep | None) -> Flipped:
    began = time.monotonic()
    try:
        async with _alone(stores, within) as sides:
            if await _settle(sides, within) == way.taking:
                return Flipped(way.taking, 0.0)
            return await _move(stores, sides, way, within, on_step)
    except _Undecided as undecided:
        cause = undecided.__cause__ or undecided
    # The sessions have ended, and whatever the databases say now is what happened.
    side = await asyncio.shield(recover(stores))
    if not isinstance(cause, (*POSTGRES_ERRORS, ReplankError)):
        raise cause
    if side != way.taking:
        raise FlipUndone(f"the flip of {stores.name} was undone: {name_of(cause)}") from cause
    return Flipped(way.taking, time.monotonic() - began)


async def _move(stores: Stores, sides: _Sides, way: _Way, within: float, on_step: OnStep | None) -> Flipped:
    began = time.monotonic()
    try:
        await sides.hold(way.leaving, within=within)
        await _tell(on_step, "held")
        if not stores.same_transaction:
            await _drain(stores, sides.connections[way.leaving], way.direction, began + within)
        await _tell(on_step, "drained")
    except BaseException as error:
        await _undo(sides, way, error)
        raise
    try:
        await sides.open(way.taking, within=max(_TO_OPEN, began + within - time.monotonic()))
    except LocksNotGranted as error:
        await _undo(sides, way, error)
        raise
    except BaseException as error:
        raise _Undecided from error
    try:
        await _tell(on_step, "opened")
        await sides.close(way.leaving, within=_TO_CLOSE)
    except BaseException as error:
        raise _Undecided from error
    held = time.monotonic() - began
    await _tell(on_step, "closed")
    _log.info(
        "the authority has moved", extra={"migration": stores.name, "side": way.taking, "held_seconds": round(held, 3)}
    )
    return Flipped(way.taking, held)


async def _undo(sides: _Sides, way: _Way, error: BaseException) -> None:
    """Open the leaving side again, where nothing has happened on the taking side. Raises what ``error`` comes to.

    Also where it was cancelled, for which it raises nothing: nobody may be left waiting.
    """
    try:
        await asyncio.shield(sides.open(way.leaving, within=_TO_CLOSE))
    except (*POSTGRES_ERRORS, LocksNotGranted):
        raise _Undecided from error
    if isinstance(error, (*POSTGRES_ERRORS, ReplankError)):
        raise FlipUndone(f"the flip of {sides.name} was undone: {name_of(error)}") from error


async def _drain(stores: Stores, conn: Connection, direction: Direction, deadline: float) -> None:
    """Return when every change of the held side has been applied. Raises `NotDrained` at the deadline."""
    topic = topics.topic(stores.name, direction)
    while (await status(conn, count_cap=1, topic=topic)).depth:
        if time.monotonic() > deadline:
            raise NotDrained(
                f"the outbox did not publish all of {topic} in time", fix="see that its relay runs and has caught up"
            )
        await asyncio.sleep(_POLL_INTERVAL)
    # Everything is in Kafka, and nothing more is coming: its end now is the end.
    remaining = max(0.0, deadline - time.monotonic())
    if not await topics.caught_up(
        stores.kafka, stores.name, direction, within=remaining, kafka_options=stores.kafka_options
    ):
        raise NotDrained(f"not all of {topic} was applied in time", fix="see that its applier runs and has caught up")


async def _tell(on_step: OnStep | None, step: Step) -> None:
    if on_step is not None:
        await on_step(step)
