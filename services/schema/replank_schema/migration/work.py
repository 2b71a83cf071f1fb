"""What the parts of a migration's work do: the library's own objects, put together for one run.

A part that lasts runs until it is cancelled, and is then asked to end in order. A part that ends says what it reached
(`replank_schema.migration.service.note`), so that whoever leads next does not do it again. Each may be cut off at any
moment and begun anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Final

import asyncpg
from pydantic import JsonValue

from replank import outbox
from replank.connection import Connection
from replank.errors import ReplankError
from replank.migrate import authority, capture, ddl, flip, retired, reverse, topics
from replank.migrate import compile as compiler
from replank.migrate.applier import Applier
from replank.migrate.backfill import Backfill, BackfillProgress, BackfillSettings
from replank.migrate.comparison import Comparison, ComparisonSettings, Direction, Findings
from replank.migrate.comparison import Progress as ComparisonProgress
from replank.migrate.reverse_backfill import ReverseBackfill, ReverseProgress
from replank.migrate.session import session
from replank.migrate.sql import relation, schema_of
from replank.migrate.throttle import Throttle, ThrottleSettings
from replank.outbox.relay import Relay
from replank_schema.migration import plans, rejects, service, store, violations
from replank_schema.migration.comparison import Subject
from replank_schema.migration.comparison_work import ComparisonWork, Stores
from replank_schema.migration.model import Migration, Phase, Plan, Tables
from replank_schema.migration.parts import CARRIERS, Part
from replank_schema.migration.report import (
    Authority,
    BackfillDone,
    ComparedReads,
    Facts,
    Lag,
    Progress,
    Rejects,
    Report,
    Retirement,
    Violated,
)

if TYPE_CHECKING:
    from replank_schema.migration.conductor import Surroundings

_PART: Final = "schema"
_STATEMENT_TIMEOUT: Final = 60.0
_LOOK_INTERVAL: Final = 1.0
_SCAN_TIMEOUT: Final = 3600.0
_SCAN_INTERVAL: Final = 2.0
_FLAGS_KNOWN_WITHIN: Final = 1.0
_END_WITHIN: Final = 3.0
_DRAIN_INTERVAL: Final = 0.1

_READS: Final = """
    select coalesce(sum(reads) filter (where outcome in ('match', 'mismatch')), 0)::bigint as compared,
           coalesce(sum(reads) filter (where outcome = 'mismatch'), 0)::bigint as mismatched,
           coalesce(sum(reads) filter (where outcome = 'error'), 0)::bigint as errors
      from {schema}.compared_read
"""


class StoresDiffer(ReplankError):
    """Writes cannot move: the two stores do not hold the same."""


class Work:
    """The parts of one run of a migration. Made by the conductor that leads it, under one lease."""

    def __init__(self, around: Surroundings, migration: Migration, plan: Plan, token: int) -> None:
        self.migration = migration
        self.plan = plan
        self.excluded: set[Part] = set()
        """Parts that must not run now, whatever the phase needs: what they work on is being taken away."""
        self._around = around
        self._token = token
        self._facts = Facts()
        self._mapping = plans.from_json(plan.mapping)
        self._compiled = compiler.compile(self._mapping)
        self._same_transaction = plan.options.same_transaction
        self._triggers = plan.options.capture == "triggers"
        self._source = around.databases.dsn(migration.source)
        self._target = around.databases.dsn(migration.target)
        self._stores = flip.Stores(
            name=migration.name,
            source=self._source,
            target=self._target,
            kafka=around.kafka,
            same_transaction=self._same_transaction,
        )
        self._lasting: dict[Part, Relay | Applier | ComparisonWork] = {}
        self._nothing_carried = asyncio.Event()
        self._nothing_carried.set()
        self._doing: dict[Part, str] = {}
        self._progress: Progress | None = None
        self._lag: Lag | None = None
        self._rejects: Rejects | None = None
        self._seen_in: datetime | None = None
        self._violated: tuple[Violated, ...] | None = None
        self._unindexed: tuple[Violated, ...] = ()
        self._authority: Authority | None = None
        self._reads = ComparedReads()

    def see(self, migration: Migration, facts: Facts) -> None:
        """Where the migration stands now, and what its settings are: running parts ask for them."""
        self.migration, self._facts = migration, facts

    def report(self) -> Report:
        """How the work is, but for the state of its parts."""
        return Report(
            progress=self._progress,
            lag=self._lag,
            rejects=self._rejects,
            seen_in=self._seen_in,
            violated=self._violated,
            unindexed=self._unindexed,
            authority=self._authority,
            reads=self._reads,
        )

    def problem_of(self, part: Part) -> str:
        """What a part that runs waits for, in its own words; empty while all is well."""
        lasting = self._lasting.get(part)
        return lasting.problem if lasting is not None else ""

    def doing(self, part: Part) -> str:
        """How far a part that ends is, in words."""
        return self._doing.get(part, "")

    def of(self, part: Part) -> Callable[[], Awaitable[None]]:
        """What is to be done for a part."""
        return {
            Part.INSTALLING: self._install,
            Part.RELAY: lambda: self._relay(Part.RELAY, self._source),
            Part.REVERSE_RELAY: lambda: self._relay(Part.REVERSE_RELAY, self._target),
            Part.APPLIER: lambda: self._apply(Part.APPLIER, "forward"),
            Part.REVERSE_APPLIER: lambda: self._apply(Part.REVERSE_APPLIER, "reverse"),
            Part.BACKFILL: self._backfill,
            Part.INDEXES: self._build_indexes,
            Part.REFERENCES: self._watch_references,
            Part.COMPARISON: lambda: self._compare(Part.COMPARISON, "forward"),
            Part.REVERSE_COMPARISON: lambda: self._compare(Part.REVERSE_COMPARISON, "reverse"),
            Part.FLIP: self._flip,
            Part.CONSTRAINTS: self._add_constraints,
            Part.COMPLETION: self._complete,
            Part.WAY_BACK: self._go_back,
            Part.RETIREMENT: self._retire,
            Part.OBSERVER: self._observe,
        }[part]

    # --- parts that last ---

    async def _relay(self, part: Part, dsn: str) -> None:
        await self._last(part, Relay(dsn, self._around.kafka))

    async def _apply(self, part: Part, direction: Direction) -> None:
        await self._last(
            part,
            Applier(
                mapping=self._mapping,
                kafka=self._around.kafka,
                source=self._source,
                target=self._target,
                direction=direction,
            ),
        )

    async def _compare(self, part: Part, direction: Direction) -> None:
        work = ComparisonWork(
            self._around.pools.write_heavy,
            Stores(self._source, self._target, self._mapping, direction),
            subject=lambda: Subject(self.migration.id, self.migration.name, self.migration.settings.min_consistency),
            settings=lambda: ComparisonSettings(chunk_rows=self.migration.settings.chunk_rows),
            throttle=Throttle(source=self._source, target=self._target, settings=self._throttle),
        )
        await self._last(part, work)

    async def _last(self, part: Part, lasting: Relay | Applier | ComparisonWork) -> None:
        stop = asyncio.Event()
        self._lasting[part] = lasting
        if part in CARRIERS:
            self._nothing_carried.clear()
        running = asyncio.create_task(lasting.run(stop), name=f"{self.migration.name}-{part}-run")
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            # It gives back what it holds, leases and partitions, so that others need not wait for them.
            stop.set()
            await asyncio.wait([running], timeout=_END_WITHIN)
            raise
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self._lasting.pop(part, None)
            if not CARRIERS & self._lasting.keys():
                self._nothing_carried.set()

    async def _observe(self) -> None:
        """See how things are in the two databases, for the report and the conditions."""
        while True:
            async with AsyncExitStack() as stack:
                source, target = [
                    await stack.enter_async_context(session(dsn, _PART, timeout=_STATEMENT_TIMEOUT))
                    for dsn in (self._source, self._target)
                ]
                while True:
                    await self._look(source, target)
                    await asyncio.sleep(_LOOK_INTERVAL)

    async def _look(self, source: Connection, target: Connection) -> None:
        name, phase_since = self.migration.name, self.migration.phase_since
        try:
            self._authority = Authority(
                source=await authority.state(source, name, "source"),
                target=await authority.state(target, name, "target"),
            )
            async with self._around.pools.general_primary.acquire() as conn:
                accepted = await store.accepted_rejects(conn, self.migration)
            still_open, settled = await rejects.count(target, name, accepted)
            self._rejects, self._seen_in = Rejects(open=still_open, accepted=settled), phase_since
            row = await target.fetchrow(_READS.format(schema=schema_of(name)))
            self._reads = ComparedReads(**dict(row)) if row else ComparedReads()
        except (authority.NoAuthority, asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            # Not set up yet, or taken away already.
            self._authority = self._rejects = None
        reverse_leads = self._authority is not None and self._authority.target == "open"
        applier = self._lasting.get(Part.REVERSE_APPLIER if reverse_leads else Part.APPLIER)
        if isinstance(applier, Applier) and not applier.problem:
            lag = applier.lag()
            self._lag = Lag(events=lag.events, seconds=lag.seconds)
        else:
            self._lag = None

    async def _watch_references(self) -> None:
        """Look for rows that refer to nothing, again and again, for the report and the conditions."""
        before, self._violated = None, None
        self._doing.pop(Part.REFERENCES, None)
        while True:
            began = time.monotonic()
            async with session(self._target, _PART, timeout=_SCAN_TIMEOUT) as target:
                found = await violations.of_references(target, self._compiled)
            took = time.monotonic() - began
            self._violated, before = violations.lasting(before, found), found
            self._doing[Part.REFERENCES] = "; ".join(violated.told for violated in self._violated or ())
            # It reads whole tables: a tenth of the time is enough.
            await asyncio.sleep(max(_SCAN_INTERVAL, 9 * took))

    # --- parts that end ---

    async def _install(self) -> None:
        """Tables, functions and both sides, closed; capture comes last, since from then on changes are applied."""
        if self._same_transaction:
            await ddl.create_tables(self._target, self._compiled, anew=True, also=self._put_in_both_sides)
        else:
            await topics.ensure_topics(self._around.kafka, self.migration.name, self.plan.options.partitions)
            async with (
                session(self._source, _PART, timeout=_STATEMENT_TIMEOUT) as source,
                session(self._target, _PART, timeout=_STATEMENT_TIMEOUT) as target,
            ):
                await outbox.install(source)
                await outbox.install(target)
                # Closed from their first moment on: a process that remembers the tables of an earlier run may write.
                await ddl.create_tables(
                    self._target, self._compiled, anew=True, also=lambda conn: reverse.install(conn, self._mapping)
                )
                await capture.install(source, self._mapping, triggers=self._triggers)
        await self._note(installed=True)

    async def _put_in_both_sides(self, conn: Connection) -> None:
        # The tables' triggers write records back by what capture brings.
        await capture.install(conn, self._mapping, same_transaction=True, triggers=self._triggers)
        await reverse.install(conn, self._mapping, same_transaction=True)

    async def _backfill(self) -> None:
        began = time.monotonic()
        backfill = Backfill(
            mapping=self._mapping,
            source=self._source,
            target=self._target,
            settings=self._backfill_settings,
            same_transaction=self._same_transaction,
            on_progress=self._see_progress,
        )
        done = await backfill.run()
        self._see_progress(done)
        seconds = time.monotonic() - began
        ended = BackfillDone(rows=done.scanned, filled=done.filled, rejected=done.rejected, seconds=seconds)
        await self._note(backfill=ended.model_dump())

    def _see_index(self, progress: ddl.IndexProgress) -> None:
        self._doing[Part.INDEXES] = f"{progress.index}: {progress.phase}, {progress.done} of {progress.total}"

    def _see_progress(self, progress: BackfillProgress) -> None:
        self._progress = Progress(
            rows=progress.scanned,
            total=progress.estimate,
            filled=progress.filled,
            kept=progress.kept,
            rejected=progress.rejected,
            different=progress.different,
            rate=progress.rate,
            eta=progress.eta,
            done=progress.done,
            waits_for=progress.waiting_for,
        )

    async def _build_indexes(self) -> None:
        try:
            await ddl.build_indexes(self._target, self._compiled, on_progress=self._see_index)
        except ddl.ConstraintViolated:
            # It names one index, and no rows.
            async with session(self._target, _PART, timeout=_SCAN_TIMEOUT) as target:
                self._unindexed = await violations.of_indexes(target, self._compiled)
            raise
        self._unindexed = ()
        await self._note(indexes=True)

    async def _add_constraints(self) -> None:
        try:
            await ddl.add_constraints(self._target, self._compiled)
        except ddl.ConstraintViolated:
            # It names one constraint, and no rows.
            async with session(self._target, _PART, timeout=_SCAN_TIMEOUT) as target:
                self._violated = await violations.of_all(target, self._compiled)
            raise
        await self._note(constraints=True)

    async def _flip(self) -> None:
        """Move the writes to the tables; where that cannot be done in time, they stay, and nobody has lost anything."""
        try:
            flipped = await flip.to_tables(self._stores, within=self.migration.settings.hold_seconds)
        except flip.FlipUndone as error:
            async with self._around.pools.general_primary.acquire() as conn, conn.transaction():
                await service.gave_up(conn, self.migration.id, self._token, str(error))
            return
        await self._arrive({"held_seconds": round(flipped.held, 3)})

    async def _complete(self) -> None:
        """Nothing flows back any more; what a way back from here needs stays."""
        async with session(self._target, _PART, timeout=_STATEMENT_TIMEOUT) as target:
            await reverse.silence(target, self._mapping)
        await self._note(reverse_removed=True)

    async def _go_back(self) -> None:
        """The way back, from wherever: each step looks at what is so, so that it may be cut off at any moment."""
        proof: dict[str, JsonValue] = {}
        if await self._leads() == "target":
            if await self._silenced():
                proof["restored"] = await self._restore_everything()
            # Changes arrive in the order of their keys, so that a row may come before the one that it refers to.
            await ddl.drop_constraints(self._target, self._compiled)
            within = self.migration.settings.hold_seconds
            flipped = await flip.to_key_value(self._stores, within=within, on_step=self._see_that_all_was_told)
            proof["held_seconds"] = round(flipped.held, 3)
        moved = await self._let_reads_follow()
        if self.migration.standing.moving_to in (Phase.ROLLED_BACK, Phase.CANCELLED):
            if moved:
                # Until every process knows, some still read what is about to be taken away.
                await asyncio.sleep(_FLAGS_KNOWN_WITHIN)
            await self._remove()
        await self._arrive(proof)

    async def _leads(self) -> authority.Side:
        try:
            return await flip.recover(self._stores)
        except authority.NoAuthority:
            # It was not all installed, or is not all there any more: then the key-value store never ceased to lead.
            return "source"

    async def _silenced(self) -> bool:
        """Whether the tables do not tell of all their changes, as after completion."""
        async with session(self._target, _PART, timeout=_STATEMENT_TIMEOUT) as target:
            return bool(await reverse.verify(target, self._mapping))

    async def _see_that_all_was_told(self, step: flip.Step) -> None:
        # A leader that was frozen in the middle of a completion, and thawed, may silence the tables even now. Nobody
        # writes while they are held, so what is told until here is all.
        if step == "held" and await self._silenced():
            raise StoresDiffer(
                f"the tables of {self.migration.name} stopped telling of their changes on the way back",
                fix="nothing: everything is restored once more",
            )

    async def _restore_everything(self) -> dict[str, JsonValue]:
        """After completion the key-value store has heard of nothing: it is told of everything, and from now on."""
        async with session(self._target, _PART, timeout=_STATEMENT_TIMEOUT) as target:
            await reverse.install(target, self._mapping, same_transaction=self._same_transaction)
        done = await ReverseBackfill(
            mapping=self._mapping,
            source=self._source,
            target=self._target,
            settings=self._backfill_settings,
            on_progress=self._see_restored,
        ).run()
        return {
            "written": done.written,
            "removed": done.removed,
            "compared": await self._compare_all("reverse"),
        }

    def _see_restored(self, progress: ReverseProgress) -> None:
        self._doing[Part.WAY_BACK] = (
            f"{progress.rows} rows looked at, {progress.written} records written, {progress.removed} removed"
            f"{f'; waits for {progress.waiting_for}' if progress.waiting_for else ''}"
        )

    async def _compare_all(self, direction: Direction) -> int:
        """Compare everything once; returns how much that was. Raises `StoresDiffer`."""
        last = ComparisonProgress()

        async def see(progress: ComparisonProgress, _: Findings) -> None:
            nonlocal last
            last = progress

        await Comparison(self._source, self._target, self._mapping, report=see, direction=direction).run(None)
        if last.different or last.unsettled:
            raise StoresDiffer(
                f"{last.different} records of {self.migration.name} differ and {last.unsettled} did not settle",
                fix="nothing yet: it is tried again; if it lasts, look at the mapping's lenient and dropped fields",
            )
        return last.compared

    async def _remove(self) -> None:
        """Take everything of the migration out of both databases and Kafka, whatever of it is there.

        Tables that are kept stay closed, and what closes them stays: nobody would notice what was written to them.
        """
        async with session(self._source, _PART, timeout=_STATEMENT_TIMEOUT) as source:
            await capture.remove(source, self.migration.name)
        await self._carry_the_rest(Part.WAY_BACK)
        keeps = self.migration.tables is not Tables.DROP
        if not keeps:
            async with session(self._target, _PART, timeout=_STATEMENT_TIMEOUT) as target:
                await reverse.remove(target, self._mapping)
            await ddl.drop(self._target, self._compiled, tables=True)
        if not (keeps and self._source == self._target):
            await ddl.drop(self._source, self._compiled, tables=False)
        if not self._same_transaction:
            await topics.remove_topics(self._around.kafka, self.migration.name)

    async def _retire(self) -> None:
        """Take everything of a migration that has ended out of both databases and Kafka.

        The store that takes no writes is left as it was asked for. Nothing of this can be taken back.
        """
        asked = self._facts.retirement
        if asked is None:
            raise AssertionError("a migration that is retiring was asked to")
        await (self._retire_key_value(asked) if asked.closed == "source" else self._retire_tables(asked))
        await self._arrive(asked.model_dump(mode="json"))

    async def _retire_key_value(self, asked: Retirement) -> None:
        await self._carry_the_rest(Part.RETIREMENT)
        async with session(self._source, _PART, timeout=_STATEMENT_TIMEOUT) as source:
            if asked.leave == "closed":
                # Before what closes it now is gone: in no moment does it take a write.
                table = relation(self._mapping.source.table)
                await retired.close(source, self.migration.name, "source", [table], triggers=self._triggers)
            # First of all, and by itself: it waits for whoever is about to ask what is dropped next.
            await capture.remove(source, self.migration.name)
        for dsn in dict.fromkeys((self._source, self._target)):
            await ddl.drop(dsn, self._compiled, tables=False)
        if not self._same_transaction:
            await topics.remove_topics(self._around.kafka, self.migration.name)

    async def _retire_tables(self, asked: Retirement) -> None:
        async with session(self._target, _PART, timeout=_STATEMENT_TIMEOUT) as target:
            tables = await reverse.tables_of(target, self.migration.name)
            if tables and asked.leave == "closed":
                await retired.close(target, self.migration.name, "target", tables)
            if asked.leave != "dropped":
                await reverse.remove(target, self._mapping)
        # Only tables that are said to be ours; what says so goes with them, or it would have to be guessed afterwards.
        await ddl.drop(self._target, self._compiled, tables=bool(tables) and asked.leave == "dropped")

    async def _carry_the_rest(self, part: Part) -> None:
        """Return when no captured change waits any more, and nobody carries any.

        What waits would be told to the next run of this name, which takes it for new; and where there is no topic for
        it, everything else in the outbox would wait behind it.
        """
        if not self._same_transaction:
            await self._all_published(part, self._source, topics.topic(self.migration.name, "forward"))
            await self._all_published(part, self._target, topics.topic(self.migration.name, "reverse"))
        self.excluded |= CARRIERS | {Part.OBSERVER}
        # The conductor ends them with its next look.
        await self._nothing_carried.wait()

    async def _all_published(self, part: Part, dsn: str, topic: str) -> None:
        async with session(dsn, _PART, timeout=_STATEMENT_TIMEOUT) as conn:
            if not await outbox.is_installed(conn):
                return
            while (await outbox.status(conn, count_cap=1, topic=topic)).depth:
                self._doing[part] = f"what was captured last for {topic} is being published"
                await asyncio.sleep(_DRAIN_INTERVAL)
        self._doing.pop(part, None)

    # --- what they share ---

    def _backfill_settings(self) -> BackfillSettings:
        return BackfillSettings(chunk_rows=self.migration.settings.chunk_rows, throttle=self._throttle())

    def _throttle(self) -> ThrottleSettings:
        settings = self.migration.settings
        return ThrottleSettings(
            rows_per_second=settings.rows_per_second,
            max_replication_lag=settings.max_lag_seconds,
            max_active_sessions=settings.max_active,
            query=settings.throttle_query,
            query_on="target",
        )

    async def _note(self, **facts: object) -> None:
        async with self._around.pools.general_primary.acquire() as conn, conn.transaction():
            await service.note(conn, self.migration.id, self._token, self.migration.standing.run, facts)

    async def _let_reads_follow(self) -> bool:
        async with self._around.pools.general_primary.acquire() as conn, conn.transaction():
            return await service.reads_follow(conn, self.migration.id, self._token)

    async def _arrive(self, proof: Mapping[str, JsonValue]) -> None:
        async with self._around.pools.general_primary.acquire() as conn, conn.transaction():
            await service.arrived(conn, self.migration.id, self._token, proof)
