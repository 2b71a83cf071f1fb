"""Whether the tables would have answered as the key-value store did: asked in the background, and counted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

from opentelemetry import trace
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from replank.connection import POSTGRES_ERRORS
from replank.errors import ReplankError
from replank.migrate.client.answers import Path, differences
from replank.migrate.sql import schema_of
from replank.telemetry import metrics

Value = TypeVar("Value")
Read = Callable[[], Awaitable[Value]]
Store = Literal["kv", "tables"]

_log: Final = logging.getLogger(__name__)
_tracer: Final = trace.get_tracer("replank.migrate")

_COUNT: Final = "select {schema}.count_reads($1::text[], $2::text[], $3::bigint[])"
_TOLD: Final = "select key, version from {schema}.told_by_{side}($1, $2)"
_BEHIND: Final = """
    select exists (select from unnest($1::text[], $2::bigint[]) as t(key, version)
                     left join {schema}.{followed} a on a.key = t.key
                    where a.version is null or a.version < t.version)
"""
# So many changes have some in every partition, or are all there are.
_MOST_TOLD: Final = 1000

ENDPOINT: Final = "replank.migrate.endpoint"
_OUTCOME: Final = "replank.migrate.read.outcome"
_DIFFERENT: Final = "replank.migrate.read.different"


class Pool(Protocol):
    """A pool of connections: asyncpg's, or `replank.postgres.Pool`."""

    def acquire(self) -> AbstractAsyncContextManager[Any]:
        """A connection for the length of a block."""
        ...


class Ledger(Protocol):
    """What is known of the writes that are on their way from one store to the other, and where counts are added up."""

    async def behind(self, age: float) -> bool:
        """Whether a change that was told so many seconds ago, or earlier, is still to be applied by the other store."""
        ...

    async def count(self, endpoints: Sequence[str], outcomes: Sequence[str], counts: Sequence[int]) -> None:
        """Add up how compared reads came out."""
        ...


class ReadSettings(BaseModel):
    """How a `ReadRouter` waits and compares. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tables_timeout: PositiveFloat = 2.0
    """How long the tables may take to answer, where the key-value store can answer instead."""
    token_timeout: NonNegativeFloat = 2.0
    """How long a read waits for the caller's own writes, where no other store can answer instead."""
    comparisons: PositiveInt = 16
    """How many comparisons may be under way. A read beyond them is not compared, and counted as dropped."""
    comparison_timeout: PositiveFloat = 10.0
    """How long one read for a comparison may take."""
    looks: tuple[NonNegativeFloat, ...] = (0.1, 0.5, 2.0)
    """The pauses before the further looks at an answer that differs: a write may be on its way.

    The last one is how far the tables may be behind before nobody can tell (``unsettled``) whether they differ."""
    report_interval: PositiveFloat = 2.0
    """How often the counts of comparisons are added up in the target's database, where the migration looks."""


@dataclass(frozen=True, slots=True)
class Question(Generic[Value]):
    """A read that was answered by the key-value store, and how to ask it again of either store."""

    endpoint: str
    kv: Read[Value]
    tables: Read[Value]
    ignored: Sequence[Path]
    form: Callable[[Value], Any]


async def timed(migration: str, endpoint: str, store: Store, read: Read[Value]) -> Value:
    """Ask a store, and meter how long it takes, errors included."""
    began = time.perf_counter()
    try:
        return await read()
    finally:
        metrics.MIGRATE_READ_SECONDS.labels(migration, endpoint, store).observe(time.perf_counter() - began)


class EngineLedger:
    """What the engine keeps of the migration ``name`` in its two databases."""

    def __init__(self, name: str, source: Pool, target: Pool) -> None:
        self._source = source
        self._target = target
        self._schema = schema_of(name)
        self._count_reads = _COUNT.format(schema=self._schema)

    async def behind(self, age: float) -> bool:
        for side, followed, ours, theirs in (
            ("source", "applied", self._source, self._target),
            ("target", "restored", self._target, self._source),
        ):
            async with ours.acquire() as conn:
                told = await conn.fetch(_TOLD.format(schema=self._schema, side=side), age, _MOST_TOLD)
            if told:
                async with theirs.acquire() as conn:
                    keys, versions = zip(*told, strict=True)
                    if await conn.fetchval(_BEHIND.format(schema=self._schema, followed=followed), keys, versions):
                        return True
        return False

    async def count(self, endpoints: Sequence[str], outcomes: Sequence[str], counts: Sequence[int]) -> None:
        async with self._target.acquire() as conn:
            await conn.execute(self._count_reads, endpoints, outcomes, counts)


class Comparisons:
    """The comparisons of one process: bounded in number and time, counted here and in the ledger."""

    def __init__(self, name: str, ledger: Ledger, settings: ReadSettings) -> None:
        self._name = name
        self._ledger = ledger
        self._settings = settings
        self._under_way: set[asyncio.Task[None]] = set()
        self._counted: Counter[tuple[str, str]] = Counter()
        self._reporting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to report what is counted."""
        if self._reporting is None:
            self._reporting = asyncio.create_task(self._report_for_ever(), name=f"replank migrate {self._name} reads")

    async def close(self, within: float) -> None:
        """Wait so many seconds for what is under way, cancel the rest, and report."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=within)
        tasks = [*self._under_way, *([self._reporting] if self._reporting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._reporting = None
        await self._report(within)

    def compare_later(self, question: Question[Value], answer: Value) -> None:
        """Ask the tables in the background whether they would have given this answer, too. Never raises."""
        if len(self._under_way) >= self._settings.comparisons:
            self._count(question.endpoint, "dropped")
            return
        try:
            # Now: what the caller does to its answer is no difference.
            ours = question.form(answer)
        except Exception as error:  # comparing never affects the answer
            _log.warning("an answer of %s cannot be compared: %s", question.endpoint, type(error).__name__)
            self._count(question.endpoint, "error")
            return
        task = asyncio.create_task(self._compare(question, ours))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _compare(self, question: Question[Value], ours: Any) -> None:
        endpoint = question.endpoint
        different: list[str] = []
        # The caller's context was copied with the task: this is a child of its span, which may have ended by now.
        with _tracer.start_as_current_span(
            f"compare {endpoint}",
            attributes={ENDPOINT: endpoint},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                outcome, different = await self._look(question, ours)
            except Exception as error:
                outcome = "error"
                # The text of an error may quote what was read.
                _log.warning("comparing %s failed: %s", endpoint, type(error).__name__)
            span.set_attributes({_OUTCOME: outcome, _DIFFERENT: different})
        if outcome == "mismatch":
            _log.warning("%s answers differently from the tables", endpoint, extra={"different": different})
        self._count(endpoint, outcome)

    async def _look(self, question: Question[Value], ours: Any) -> tuple[str, list[str]]:
        """How a comparison ends, and in what the answers differ.

        What differs at once may be a write on its way. It is a mismatch if the last look finds both: the key-value
        store answered alike before and after the tables did, and they had been told of everything, and had applied it,
        that was written before the first of the two. Where one of these is not so, nobody can tell.
        """
        asked = time.monotonic()
        different = differences(ours, await self._form(question, "tables"), question.ignored)
        if not different:
            return "match", []
        settled = False
        for number, pause in enumerate(self._settings.looks, 1):
            await asyncio.sleep(pause)
            # Costs more than a read, so it is asked for the look that decides.
            applied = number == len(self._settings.looks) and not await self._behind(time.monotonic() - asked)
            theirs = await self._form(question, "tables")
            before, ours, asked = ours, await self._form(question, "kv"), time.monotonic()
            different = differences(ours, theirs, question.ignored)
            if not different or not differences(before, theirs, question.ignored):
                return "late", []
            settled = applied and not differences(before, ours, question.ignored)
        return ("mismatch" if settled else "unsettled"), different

    async def _behind(self, age: float) -> bool:
        """Whether a change that was told so many seconds ago, or earlier, is still to be applied by the other side."""
        async with asyncio.timeout(self._settings.comparison_timeout):
            return await self._ledger.behind(age)

    async def _form(self, question: Question[Value], store: Store) -> Any:
        read = question.kv if store == "kv" else question.tables
        async with asyncio.timeout(self._settings.comparison_timeout):
            return question.form(await timed(self._name, question.endpoint, store, read))

    def _count(self, endpoint: str, outcome: str) -> None:
        metrics.MIGRATE_COMPARED.labels(self._name, endpoint, outcome).inc()
        self._counted[endpoint, outcome] += 1

    async def _report_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.report_interval)
            await self._report(self._settings.comparison_timeout)

    async def _report(self, within: float) -> None:
        if not self._counted:
            return
        counted, self._counted = self._counted, Counter()
        endpoints, outcomes = zip(*counted, strict=True)
        try:
            async with asyncio.timeout(within):
                await self._ledger.count(list(endpoints), list(outcomes), list(counted.values()))
        except (*POSTGRES_ERRORS, ReplankError) as error:
            self._counted += counted
            _log.warning("the counts of compared reads were not reported: %s", type(error).__name__)
