"""The backfill: moves what is in the key-value store already, while it is written to.

Chunks are read from the source in the order of its key, filled into the target, and compared, all at the same time:
while one is read, two are filled, each in a lane with a connection of its own, and those before may still be compared.

Why a chunk that was read a while ago may be filled: ``fill`` writes a record only where the target holds neither its
rows nor an entry in ``applied``, and every change that the applier carries leaves such an entry, deletes included. What
changed after the chunk was read is therefore either applied before the fill, which then keeps away from it, or applied
after it, and then overwrites what was filled. Only a change that is applied *while* the fill runs could slip between
the two, since neither sees the other: each lane has a lock that its fill takes alone and the applier shares, and the
fill looks around in a statement of its own after it has it. Nothing is locked while a chunk is read or compared.

Chunks are committed in their order, so a fill may wait for the one before it while it holds its lock. That one has its
own lock by then, because locks are taken in the order of chunks, too: so the applier, which wants the locks of all
lanes, can be in nobody's way.

Where the source's own trigger applies changes (``same_transaction``), there is no applier to shut out: the chunk's
records are locked against writers instead, in the transaction that fills them. A record that is being written just then
is not waited for (the writer may want another of the chunk): it is left out, and moved by itself afterwards.

Where it stands is written down in the transaction that fills: a backfill that is killed, paused or moved to another
process goes on with the next chunk.
"""

# ruff: noqa: S608 - the names of a mapping go through replank.migrate.sql

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final

import asyncpg
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from replank.connection import POSTGRES_ERRORS, Connection
from replank.errors import ReplankError
from replank.inbox.outcome import is_transient
from replank.migrate import isolation
from replank.migrate.comparison.model import ComparisonSettings
from replank.migrate.comparison.settle import settle
from replank.migrate.comparison.sides import Sides
from replank.migrate.mapping import Mapping
from replank.migrate.session import backoff, session
from replank.migrate.sql import FILL_LANES, fill_lock, identifier, literal, relation, schema_of
from replank.migrate.throttle import Throttle, ThrottleSettings
from replank.telemetry import metrics

_log: Final = logging.getLogger(__name__)

_PART: Final = "backfill"
_JOB: Final = "backfill"
_KEYS_NAMED: Final = 1000
_LEFT_OUT_AT_ONCE: Final = 100
_ESTIMATE_INTERVAL: Final = 10.0
_RATE_WINDOW: Final = 10.0  # seconds over which the rate is averaged


class BackfillOvertaken(ReplankError):
    """Another process works on the same backfill. This one has stopped and has changed nothing since."""


class BackfillSettings(BaseModel):
    """How a backfill works. It is read again between chunks, so a change holds within a moment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_rows: PositiveInt = Field(default=2000, le=100_000)
    """Records that are read, filled and compared together. The applier waits while a chunk is filled."""
    compare: bool = True
    """Whether each chunk is compared after it was filled."""
    comparison: ComparisonSettings = ComparisonSettings()
    """How a difference is told from a change that is under way."""
    statement_timeout: PositiveFloat = 120.0
    backoff: PositiveFloat = 10.0
    """The longest pause between attempts while a database is away, in seconds."""
    throttle: ThrottleSettings = ThrottleSettings()


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """Where a backfill stands. Counts are exact, over all its runs; ``estimate`` and what follows from it are not."""

    scanned: int = 0
    """Records that were read and dealt with: filled, kept, rejected, or of no entity."""
    filled: int = 0
    kept: int = 0
    """Records that the target had already, or that were changed or deleted meanwhile."""
    rejected: int = 0
    compared: int = 0
    in_doubt: int = 0
    """Records that differed when they were compared: mostly because a change of them was under way. See at the end."""
    unsettled: int = 0
    """Records that were changed again and again while they were looked at: neither equal nor different."""
    different: int = 0
    """Records that differ for certain."""
    different_keys: tuple[str, ...] = ()
    """Some of their keys."""
    estimate: int = 0
    """How many records there are, about."""
    rate: float = 0.0
    """Records a second, over the last moments."""
    waiting_for: str = ""
    """What it waits for, if anything, in words."""
    done: bool = False

    @property
    def eta(self) -> float | None:
        """Seconds until it is done at this rate, about; nothing while that cannot be said."""
        if self.done:
            return 0.0
        return max(0, self.estimate - self.scanned) / self.rate if self.rate > 0 else None


@dataclass(frozen=True, slots=True)
class _Chunk:
    keys: list[str]
    values: list[str]
    fill: bool = True
    """False for what was filled before a process died, and not compared."""

    @property
    def last(self) -> str:
        return self.keys[-1]


@dataclass(slots=True)
class _Turn:
    """A chunk on its way through the lanes, and the events by which the next one follows it."""

    chunk: _Chunk
    before: str | None
    """The last key that was filled before it."""
    locked: asyncio.Event = field(default_factory=asyncio.Event)
    committed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Filled:
    """A chunk that is in the target. ``different``: the keys that were read back otherwise; None: not compared yet."""

    chunk: _Chunk
    different: Sequence[str] | None


@dataclass(slots=True)
class _Counts:
    filled: int = 0
    kept: int = 0
    rejected: int = 0
    different: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the stages go on: the last keys that were filled and compared."""

    through: str | None
    compared_through: str | None


@dataclass(slots=True)
class _Verdicts:
    """What comparing has come to so far."""

    compared: int
    different: int
    unsettled: int
    different_keys: list[str]
    doubts: set[str]


@dataclass(slots=True)
class _Rate:
    """Records a second over the last moments."""

    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def begin(self, scanned: int) -> None:
        self._samples.clear()
        self._samples.append((time.monotonic(), scanned))

    def at(self, scanned: int) -> float:
        now = time.monotonic()
        self._samples.append((now, scanned))
        while len(self._samples) > 2 and self._samples[0][0] < now - _RATE_WINDOW:
            self._samples.popleft()
        began, before = self._samples[0]
        return (scanned - before) / (now - began) if now > began else 0.0


class Backfill:
    """The backfill of one migration: ``await Backfill(…).run()``, cancelled to pause.

    ``source`` and ``target`` are DSNs of Postgres itself (no pooler in transaction mode). ``on_progress`` is called
    after every chunk, on the event loop: it must not block.
    """

    def __init__(
        self,
        *,
        mapping: Mapping,
        source: str,
        target: str,
        settings: Callable[[], BackfillSettings] = BackfillSettings,
        same_transaction: bool = False,
        on_progress: Callable[[BackfillProgress], None] | None = None,
    ) -> None:
        self.name = mapping.name
        self._mapping = mapping
        self._source = source
        self._target = target
        self._settings = settings
        self._same_transaction = same_transaction
        self._on_progress = on_progress
        self._sql = _Statements(mapping)
        self._throttle = Throttle(source=source, target=target, settings=lambda: settings().throttle)
        self._progress = BackfillProgress()
        self._problem = ""
        self._rate = _Rate()
        self._verdicts = _Verdicts(0, 0, 0, [], set())
        self._estimated_at = float("-inf")

    @property
    def progress(self) -> BackfillProgress:
        """Where it stands."""
        return replace(self._progress, waiting_for=self._problem or self._throttle.waiting_for)

    async def run(self) -> BackfillProgress:
        """Move everything that is not moved yet; returns when that is done, at once if it was done before.

        Databases that are away are waited for. Cancelled, it leaves nothing half done. Raises `BackfillOvertaken`, and
        what Postgres says where waiting does not help.
        """
        attempt = 0
        while True:
            scanned = self._progress.scanned
            try:
                await self._work()
            except ExceptionGroup as failures:
                error = _worst(failures)
            except POSTGRES_ERRORS as failure:
                error = failure
            else:
                return self.progress
            if not is_transient(error):
                raise error
            attempt = 0 if self._progress.scanned > scanned else attempt + 1
            self._problem = isolation.name_of(error)
            _log.warning("backfill waits", extra={"migration": self.name, "error": type(error).__name__})
            await asyncio.sleep(backoff(attempt, self._settings().backoff))

    async def _work(self) -> None:
        async with AsyncExitStack() as stack:
            dsns = (self._source, self._source, self._target, *[self._target] * FILL_LANES)
            reading, settling, comparing, *lanes = [
                await stack.enter_async_context(
                    session(dsn, _PART, timeout=self._settings().statement_timeout, applier=self.name)
                )
                for dsn in dsns
            ]
            filling = lanes[0]
            place = await self._resume(filling)
            self._problem = ""
            if self._progress.done:
                return
            sides = Sides(settling, comparing, self._mapping, "forward")
            read: asyncio.Queue[_Chunk | None] = asyncio.Queue(1)
            filled: asyncio.Queue[_Filled | None] = asyncio.Queue(2)
            async with asyncio.TaskGroup() as stages:
                stages.create_task(self._read_all(reading, place, read))
                if self._same_transaction:
                    stages.create_task(self._fill_locked_all(filling, place, read, filled))
                else:
                    stages.create_task(self._fill_all(lanes, place, read, filled))
                stages.create_task(self._compare_all(sides, filled))
            if self._same_transaction:
                await self._fill_left_out(filling)
            await self._settle(sides)
            await filling.execute(self._sql.finish, _JOB)
        self._report(done=True, estimate=self._progress.scanned)

    # --- where it stands ---

    async def _resume(self, conn: Connection) -> _Place:
        async with conn.transaction():
            # "if not exists" does not keep two who begin at once apart.
            await conn.execute(self._sql.begin_alone)
            await conn.execute(self._sql.create_progress)
            await conn.execute(self._sql.begin_progress, _JOB)
        (row,) = await conn.fetch(self._sql.read_progress, _JOB)
        self._progress = replace(
            self._progress,
            scanned=row["scanned"],
            filled=row["filled"],
            kept=row["kept"],
            rejected=row["rejected"],
            estimate=max(self._progress.estimate, row["scanned"]),
            done=row["finished_at"] is not None,
        )
        self._verdicts = _Verdicts(
            row["compared"], row["different"], row["unsettled"], row["different_keys"], set(row["doubts"])
        )
        self._rate.begin(row["scanned"])
        return _Place(row["through"], row["compared_through"])

    def _report(self, **changes: Any) -> None:
        self._progress = replace(self._progress, **changes)
        verdicts = self._verdicts
        self._progress = replace(
            self._progress,
            compared=verdicts.compared,
            in_doubt=len(verdicts.doubts),
            unsettled=verdicts.unsettled,
            different=verdicts.different,
            different_keys=tuple(verdicts.different_keys),
            estimate=max(self._progress.estimate, self._progress.scanned),
            rate=self._rate.at(self._progress.scanned),
        )
        metrics.MIGRATE_BACKFILLED.labels(self.name).set(self._progress.scanned)
        if self._on_progress is not None:
            self._on_progress(self.progress)

    # --- reading ---

    async def _read_all(self, conn: Connection, place: _Place, into: asyncio.Queue[_Chunk | None]) -> None:
        """Read chunk after chunk. What was filled and not compared before comes first, for comparison alone."""
        after = place.compared_through if self._settings().compare else place.through
        while after != place.through:
            assert place.through is not None  # noqa: S101 - comparing never goes further than filling
            rows = await self._read(conn, after, place.through)
            if not rows:
                break
            after = rows[-1][0]
            await into.put(_Chunk([row[0] for row in rows], [row[1] for row in rows], fill=False))
        after = place.through
        while True:
            await self._throttle.admit()
            await self._estimate(conn)
            rows = await self._read(conn, after, None)
            if not rows:
                await into.put(None)
                return
            after = rows[-1][0]
            self._throttle.spent(len(rows))
            await into.put(_Chunk([row[0] for row in rows], [row[1] for row in rows]))

    async def _read(self, conn: Connection, after: str | None, through: str | None) -> list[asyncpg.Record]:
        limit = self._settings().chunk_rows
        match after, through:
            case None, None:
                return await conn.fetch(self._sql.first, limit)
            case None, _:
                return await conn.fetch(self._sql.first_through, limit, through)
            case _, None:
                return await conn.fetch(self._sql.next, limit, after)
            case _:
                return await conn.fetch(self._sql.next_through, limit, after, through)

    async def _estimate(self, conn: Connection) -> None:
        now = time.monotonic()
        if now < self._estimated_at + _ESTIMATE_INTERVAL:
            return
        self._estimated_at = now
        self._progress = replace(self._progress, estimate=await conn.fetchval(self._sql.estimate, self._sql.table))

    # --- filling ---

    async def _fill_all(
        self,
        lanes: Sequence[Connection],
        place: _Place,
        chunks: asyncio.Queue[_Chunk | None],
        into: asyncio.Queue[_Filled | None],
    ) -> None:
        """Deal the chunks out to the lanes, each to the one that is free first."""
        free: asyncio.Queue[int] = asyncio.Queue()
        for lane in range(len(lanes)):
            free.put_nowait(lane)
        last: _Turn | None = None
        through = place.through

        async def fill(turn: _Turn, previous: _Turn | None, lane: int) -> None:
            await self._fill(lanes[lane], lane, turn, previous, into)
            free.put_nowait(lane)

        async with asyncio.TaskGroup() as filling:
            while (chunk := await chunks.get()) is not None:
                if not chunk.fill:
                    await into.put(_Filled(chunk, None))
                    continue
                turn = _Turn(chunk, through)
                filling.create_task(fill(turn, last, await free.get()))
                last, through = turn, chunk.last
        await into.put(None)

    async def _fill(
        self, conn: Connection, lane: int, turn: _Turn, previous: _Turn | None, into: asyncio.Queue[_Filled | None]
    ) -> None:
        chunk = turn.chunk
        async with conn.transaction():
            if previous is not None:
                await previous.locked.wait()
            await conn.execute(self._sql.shut_out_appliers[lane])
            turn.locked.set()
            counts = await self._fill_records(conn, list(zip(chunk.keys, chunk.values, strict=True)))
            if previous is not None:
                await previous.committed.wait()
            await self._advance(conn, turn.before, chunk, counts, left_out=[])
        await self._filled(chunk, counts, into)
        turn.committed.set()

    async def _fill_locked_all(
        self,
        conn: Connection,
        place: _Place,
        chunks: asyncio.Queue[_Chunk | None],
        into: asyncio.Queue[_Filled | None],
    ) -> None:
        """The same where the source's triggers apply changes: records are locked, and read again under the lock."""
        through = place.through
        while (chunk := await chunks.get()) is not None:
            if not chunk.fill:
                await into.put(_Filled(chunk, None))
                continue
            async with conn.transaction():
                locked = [(row[0], row[1]) for row in await conn.fetch(self._sql.lock_records, chunk.keys)]
                there = {key for key, _ in locked}
                counts = await self._fill_records(conn, locked)
                left_out = [key for key in chunk.keys if key not in there]
                await self._advance(conn, through, chunk, counts, left_out)
            through = chunk.last
            await self._filled(chunk, counts, into)
        await into.put(None)

    async def _fill_left_out(self, conn: Connection) -> None:
        """Move the records that were being written when their chunk was filled, one by one.

        Whoever waits for one record and holds no other cannot be in anybody's way. One that is gone, or whose writer
        committed, has nothing left to be filled.
        """
        while keys := await conn.fetchval(self._sql.left_out, _JOB):
            for key in keys[:_LEFT_OUT_AT_ONCE]:
                async with conn.transaction():
                    row = await conn.fetchrow(self._sql.lock_record, key)
                    counts = await self._fill_records(conn, [] if row is None else [(row[0], row[1])])
                    await conn.execute(self._sql.moved_left_out, _JOB, key, counts.filled, counts.kept, counts.rejected)
                self._report(
                    filled=self._progress.filled + counts.filled,
                    kept=self._progress.kept + counts.kept,
                    rejected=self._progress.rejected + counts.rejected,
                )

    async def _fill_records(self, conn: Connection, records: Sequence[tuple[str, str]]) -> _Counts:
        counts = _Counts()

        statement = self._sql.fill_compared if self._settings().compare else self._sql.fill

        async def fill(part: Sequence[tuple[str, str]]) -> None:
            # A savepoint, so that the lock outlives what a record of somebody's makes fail.
            async with conn.transaction():
                (row,) = await conn.fetch(statement, [key for key, _ in part], [value for _, value in part])
            counts.filled += row["filled"]
            counts.kept += row["kept"]
            counts.rejected += row["rejected"]
            counts.different += row["different"]

        async def reject(record: tuple[str, str], error: asyncpg.PostgresError) -> None:
            await conn.execute(self._sql.reject, *record, isolation.describe(error))
            counts.rejected += 1

        await isolation.each_or_all(records, fill, reject)
        return counts

    async def _advance(
        self, conn: Connection, before: str | None, chunk: _Chunk, counts: _Counts, left_out: Sequence[str]
    ) -> None:
        moved = await conn.fetchval(
            self._sql.advance,
            _JOB,
            before,
            chunk.last,
            len(chunk.keys),
            counts.filled,
            counts.kept,
            counts.rejected,
            left_out,
        )
        if not moved:
            raise BackfillOvertaken(
                f"the backfill of {self.name} was taken over by another process", fix="let one process run it"
            )

    async def _filled(self, chunk: _Chunk, counts: _Counts, into: asyncio.Queue[_Filled | None]) -> None:
        self._report(
            scanned=self._progress.scanned + len(chunk.keys),
            filled=self._progress.filled + counts.filled,
            kept=self._progress.kept + counts.kept,
            rejected=self._progress.rejected + counts.rejected,
        )
        # What was there already was not read back.
        await into.put(_Filled(chunk, None if counts.kept else counts.different))

    # --- comparing ---

    async def _compare_all(self, sides: Sides, chunks: asyncio.Queue[_Filled | None]) -> None:
        verdicts = self._verdicts
        while (filled := await chunks.get()) is not None:
            chunk = filled.chunk
            settings = self._settings()
            if settings.compare:
                different = filled.different
                if different is None:
                    different = list((await sides.compare(chunk.keys, chunk.values)).different)
                verdicts.compared += len(chunk.keys)
                verdicts.doubts |= set(different) - await sides.rejected(different) if different else set()
            if len(verdicts.doubts) >= settings.comparison.settle_keys:
                await self._settle(sides)
            await self._write_verdicts(sides.target, chunk.last)
            self._report()

    async def _settle(self, sides: Sides) -> None:
        """Look again at the records in doubt, until each is equal, certainly different, or given up."""
        verdicts = self._verdicts
        settled = await settle(sides, verdicts.doubts, self._settings().comparison)
        different = set(settled.different) - await sides.rejected(sorted(settled.different))
        verdicts.different += len(different)
        verdicts.unsettled += len(settled.unsettled)
        verdicts.different_keys = [*verdicts.different_keys, *sorted(different)][:_KEYS_NAMED]
        verdicts.doubts.clear()
        await self._write_verdicts(sides.target, None)

    async def _write_verdicts(self, conn: Connection, through: str | None) -> None:
        verdicts = self._verdicts
        await conn.execute(
            self._sql.write_verdicts,
            _JOB,
            through,
            verdicts.compared,
            verdicts.different,
            verdicts.unsettled,
            verdicts.different_keys,
            sorted(verdicts.doubts),
        )


class _Statements:
    """The statements for one mapping: the names of its schema and table are all that is not a parameter."""

    def __init__(self, mapping: Mapping) -> None:
        schema = schema_of(mapping.name)
        table = self.table = relation(mapping.source.table)
        key = identifier(mapping.source.key)
        value = identifier(mapping.source.value)
        read = f"select {key}, {value}::text from {table}"
        # One statement for each way to begin and end: a condition that is optional is planned without the index.
        self.first = f"{read} order by {key} limit $1"
        self.first_through = f"{read} where {key} <= $2 order by {key} limit $1"
        self.next = f"{read} where {key} > $2 order by {key} limit $1"
        self.next_through = f"{read} where {key} > $2 and {key} <= $3 order by {key} limit $1"
        # Not "for key share": that lets a value be changed, and the change would not see what is filled here.
        self.lock_records = f"{read} where {key} = any($1::text[]) for share skip locked"
        self.lock_record = f"{read} where {key} = $1 for share"
        # A table that was never analysed has -1 rows: then its pages are all there is to go by.
        self.estimate = """
            select case when reltuples >= 0 then reltuples
                        else pg_relation_size(oid) / current_setting('block_size')::int * 10 end::bigint
              from pg_class where oid = to_regclass($1)
        """
        self.shut_out_appliers = [
            f"select pg_advisory_xact_lock({fill_lock(mapping.name, lane)})" for lane in range(FILL_LANES)
        ]
        self.fill_compared = f"select filled, kept, rejected, different from {schema}.fill_compared($1, $2)"
        self.fill = f"select filled, kept, rejected, '{{}}'::text[] as different from {schema}.fill($1, $2)"
        self.reject = f"""
            insert into {schema}.reject (key, value, version, reason, path, first_at, last_at, attempts)
            select $1, $2::text::jsonb, null, $3, '', clock_timestamp(), clock_timestamp(), 1
             where not exists (select from {schema}.applied a where a.key = $1)
                on conflict (key) do nothing
        """
        self.begin_alone = f"""
            select pg_advisory_xact_lock(hashtextextended({literal(f"replank_m_{mapping.name}.progress")}, 0))
        """
        self.create_progress = f"""
            create table if not exists {schema}.progress (
                job              text        primary key,
                through          text,
                scanned          bigint      not null default 0,
                filled           bigint      not null default 0,
                kept             bigint      not null default 0,
                rejected         bigint      not null default 0,
                left_out         text[]      not null default '{{}}',
                compared_through text,
                compared         bigint      not null default 0,
                different        bigint      not null default 0,
                unsettled        bigint      not null default 0,
                different_keys   text[]      not null default '{{}}',
                doubts           text[]      not null default '{{}}',
                started_at       timestamptz not null default clock_timestamp(),
                updated_at       timestamptz not null default clock_timestamp(),
                finished_at      timestamptz
            )
        """
        self.begin_progress = f"insert into {schema}.progress (job) values ($1) on conflict do nothing"
        self.read_progress = f"select * from {schema}.progress where job = $1"
        self.advance = f"""
            update {schema}.progress
               set through = $3, scanned = scanned + $4, filled = filled + $5, kept = kept + $6,
                   rejected = rejected + $7, left_out = left_out || $8::text[], updated_at = clock_timestamp()
             where job = $1 and through is not distinct from $2 and finished_at is null
            returning true
        """
        self.left_out = f"select left_out from {schema}.progress where job = $1"
        self.moved_left_out = f"""
            update {schema}.progress
               set left_out = array_remove(left_out, $2), filled = filled + $3, kept = kept + $4,
                   rejected = rejected + $5, updated_at = clock_timestamp()
             where job = $1
        """
        self.write_verdicts = f"""
            update {schema}.progress
               set compared_through = coalesce($2, compared_through), compared = $3, different = $4, unsettled = $5,
                   different_keys = $6::text[], doubts = $7::text[], updated_at = clock_timestamp()
             where job = $1
        """
        self.finish = f"update {schema}.progress set finished_at = clock_timestamp() where job = $1"


def _worst(failures: ExceptionGroup[Exception]) -> Exception:
    """Of what ended the stages, the one that waiting does not mend, if there is one."""
    leaves = list(_leaves(failures))
    return next((error for error in leaves if not is_transient(error)), leaves[0])


def _leaves(failures: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in failures.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
