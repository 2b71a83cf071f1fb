"""The applier: carries the changes of one store to the other, in the order of their versions.

It reads the change topic of a migration with a consumer of its own and calls one compiled function per batch: ``apply``
on the target (forward), ``restore`` on the source (reverse). That function keeps the newest version of every key, so a
change that comes twice, late, or from two appliers at once does nothing. Offsets are committed after the database has
committed: at least once from Kafka, once in effect.
See ``docs/decisions/0010-the-applier-keeps-versions-not-an-inbox.md``.

What the applier must never do is pass over a change in silence. A record that the database refuses is rejected, with
its reason, where people look; a record that cannot be read, or changes that Kafka deleted before they were applied,
make it stand still and say so.
"""

# ruff: noqa: S608 - the names of a mapping go through replank.migrate.sql

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from opentelemetry import context as otel_context
from opentelemetry.trace import SpanKind
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from replank.connection import POSTGRES_ERRORS, Connection
from replank.contracts.schema import RecordChanged
from replank.errors import ReplankError
from replank.events import InvalidEvent
from replank.inbox.tracing import quiet
from replank.migrate import isolation, topics
from replank.migrate.mapping import Mapping
from replank.migrate.session import backoff, session
from replank.migrate.sql import identifier, relation, schema_of
from replank.migrate.topics import Direction
from replank.telemetry import metrics, semconv
from replank.telemetry.context import Carried, is_sampled
from replank.telemetry.template import PendingSpan, SpanTemplate

_log: Final = logging.getLogger(__name__)


_POLL_MS: Final = 100
_MEASURE_INTERVAL: Final = 1.0
# Another member has the partitions now: what was not committed is delivered to it, and does nothing twice.
_NOT_OURS_ANY_MORE: Final = (CommitFailedError, IllegalStateError, RebalanceInProgressError, UnknownMemberIdError)

# The database takes the events apart, because it keeps every number of a value as it was written; JSON read and
# written again here would not.
_APPLY: Final = """
    select r.key, r.outcome
      from (select array_agg(e.event ->> 'key' order by e.n) as keys,
                   array_agg(case when e.event ->> 'op' = 'upsert' then e.event -> 'value' end order by e.n) as vals,
                   array_agg((e.event ->> 'version')::bigint order by e.n) as versions,
                   array_agg(e.traceparent order by e.n) as traceparents
              from unnest($1::jsonb[], $2::text[]) with ordinality as e(event, traceparent, n)) as batch,
           lateral {function}(batch.keys, batch.vals, batch.versions, batch.traceparents) as r
"""


class UnreadableChange(ReplankError):
    """A record of the change topic cannot be read. Passing over it could lose a write, so the applier stands still."""


class ChangesLost(ReplankError):
    """Kafka deleted changes before they were applied."""


class ApplierSettings(BaseModel):
    """How an applier reads and applies. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_rows: PositiveInt = 1000
    """Changes that are applied together, at most."""
    statement_timeout: PositiveFloat = 60.0
    """When the database has not applied a batch after so long, it is tried again on a new connection."""
    session_timeout: PositiveFloat = 10.0
    """How long the partitions stay with an applier that died."""
    backoff: PositiveFloat = 10.0
    """The longest pause between attempts while a server is away, or while the applier stands still."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind an applier is: events in the topic that are not applied, and the age of the last applied one.

    ``seconds`` is 0 when nothing waits.
    """

    events: int
    seconds: float


@dataclass(slots=True, eq=False)
class _Change:
    """One record of the topic. ``event`` is its value as text, completed where the value had to be fetched."""

    key: str
    version: int
    fetch: bool
    event: str
    traceparent: str | None
    written_at: float
    """When the change was made, in seconds since 1970."""
    span: PendingSpan | None


class Applier(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Applies the changes of one direction of a migration until it is stopped.

    ``kafka`` is "host:port,…", ``kafka_options`` go to aiokafka; ``source`` and ``target`` are DSNs of Postgres itself
    (no pooler in transaction mode). Several appliers of one migration share the partitions of its topic.
    """

    def __init__(
        self,
        *,
        mapping: Mapping,
        kafka: str,
        source: str,
        target: str,
        direction: Direction,
        settings: ApplierSettings | None = None,
        kafka_options: dict[str, Any] | None = None,
    ) -> None:
        self.name = mapping.name
        self.direction = direction
        self.topic = topics.topic(self.name, direction)
        self.settings = settings or ApplierSettings()
        self._problem = "starting"
        self._kafka = kafka
        self._kafka_options = kafka_options or {}
        # Where changes come from, and where they go.
        self._origin, self._destination = (source, target) if direction == "forward" else (target, source)
        self._statements = _Statements(mapping, direction)
        self._sessions = AsyncExitStack()
        self._writing: Connection | None = None
        self._reading: Connection | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._committed: dict[TopicPartition, int] = {}
        self._applied_at: float | None = None
        self._lag = Lag(0, 0.0)
        self._measured_at = float("-inf")
        self._template = SpanTemplate(
            "replank.migrate",
            semconv.process(self.topic),
            SpanKind.CONSUMER,
            {
                semconv.SYSTEM: semconv.KAFKA,
                semconv.OPERATION_TYPE: semconv.PROCESS,
                semconv.OPERATION_NAME: semconv.PROCESS,
                semconv.DESTINATION: self.topic,
                semconv.CONSUMER_GROUP: topics.group(self.name, direction),
            },
        )

    @property
    def problem(self) -> str:
        """What keeps it from applying, in words; empty when all is well."""
        return self._problem

    def lag(self) -> Lag:
        """How far behind it is, as of the last second."""
        return self._lag

    async def caught_up(self, within: float) -> bool:
        """Whether everything that is in the topic now is applied within so many seconds; see `topics.caught_up`."""
        return await topics.caught_up(
            self._kafka, self.name, self.direction, within=within, kafka_options=self._kafka_options
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Apply until ``stop`` is set, then finish the batch in hand and leave the group. Outages are waited out."""
        token = otel_context.attach(otel_context.Context())
        attempt = 0
        try:
            while not stop.is_set():
                try:
                    async with self._joined() as consumer:
                        while not stop.is_set():
                            await self._turn(consumer, stop)
                            attempt = 0
                except (KafkaError, OSError, ReplankError) as error:
                    attempt += 1
                    self._fail(error)
                    await _pause(stop, backoff(attempt, self.settings.backoff))
        finally:
            await self._disconnect()
            otel_context.detach(token)
        self._problem = "stopped"

    # --- reading ---

    @asynccontextmanager
    async def _joined(self) -> AsyncIterator[AIOKafkaConsumer]:
        milliseconds = round(self.settings.session_timeout * 1000)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._kafka,
            group_id=topics.group(self.name, self.direction),
            enable_auto_commit=False,
            # Neither end would be right by itself: to begin anew applies nothing wrong, but to skip loses writes.
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=milliseconds,
            heartbeat_interval_ms=milliseconds // 4,
            fetch_max_wait_ms=_POLL_MS,
            **self._kafka_options,
        )
        self._consumer = consumer
        consumer.subscribe([self.topic], listener=self)
        try:
            await consumer.start()
            yield consumer
        finally:
            self._consumer = None
            self._committed.clear()
            await consumer.stop()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Nothing: a batch is applied and committed before the next one is read, and twice does no harm."""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin at the very first change where none was ever applied."""
        if self._consumer is None:
            return
        self._committed.clear()
        for partition in assigned:
            offset = await self._consumer.committed(partition)
            if offset is None:
                self._consumer.seek(partition, 0)
            else:
                self._committed[partition] = offset

    async def _turn(self, consumer: AIOKafkaConsumer, stop: asyncio.Event) -> None:
        """Read a batch, apply it, commit its offsets."""
        try:
            fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=self.settings.batch_rows)
        except NoOffsetForPartitionError:
            return  # a partition is being assigned in this moment, see on_partitions_assigned
        except OffsetOutOfRangeError as error:
            raise ChangesLost(
                f"Kafka has deleted changes of {self.topic} that were not applied yet",
                fix="run the backfill and a comparison with repair again; keep the topic without retention",
            ) from error
        changes = [change for records in fetched.values() for record in records if (change := self._read(record))]
        if changes and not await self._settle(changes, stop):
            return
        await self._commit(consumer)
        if changes:
            self._applied_at = changes[-1].written_at
        await self._measure(consumer)
        self._problem = ""

    def _read(self, record: ConsumerRecord[bytes, bytes]) -> _Change | None:
        headers = dict(record.headers)
        if headers.get("ce_type", b"").decode(errors="replace") != RecordChanged.event_type:
            metrics.MIGRATE_APPLIED.labels(self.name, self.direction, "foreign").inc()
            _log.warning(
                "a record of another type is passed over",
                extra={"topic": record.topic, "partition": record.partition, "offset": record.offset},
            )
            return None
        try:
            change = RecordChanged.from_value(record.value or b"")
        except InvalidEvent as error:
            raise UnreadableChange(
                f"{record.topic}/{record.partition} at offset {record.offset}: {error.message}",
                fix="upgrade the applier to what wrote it",
            ) from None
        traceparent = headers.get("traceparent", b"").decode(errors="replace") or None
        span = None
        if traceparent is not None and is_sampled(traceparent):
            attributes = {
                semconv.MESSAGE_ID: headers.get("ce_id", b"").decode(errors="replace"),
                semconv.PARTITION: str(record.partition),
                semconv.KAFKA_OFFSET: record.offset,
            }
            span = self._template.start(traceparent, time.time_ns(), attributes)
            traceparent = span.traceparent
        return _Change(
            key=change.key,
            version=change.version,
            fetch=change.fetch,
            event=(record.value or b"").decode(),
            traceparent=traceparent,
            written_at=_written_at(headers.get("ce_time"), record.timestamp),
            span=span,
        )

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        """Commit the position of every partition that moved: past what was applied, and past what is no change.

        Behind the last change may be marks of transactions; only the position passes them.
        """
        try:
            moved = {
                partition: position
                for partition in consumer.assignment()
                if (position := await consumer.position(partition)) != self._committed.get(partition)
            }
            if moved:
                await consumer.commit(moved)
                self._committed.update(moved)
        except _NOT_OURS_ANY_MORE as error:
            self._committed.clear()
            _log.info("offsets were not committed", extra={"topic": self.topic, "error": repr(error)})

    async def _measure(self, consumer: AIOKafkaConsumer) -> None:
        now = time.monotonic()
        if now < self._measured_at + _MEASURE_INTERVAL:
            return
        self._measured_at = now
        ends = await consumer.end_offsets(list(consumer.assignment()))
        behind = sum(max(0, end - self._committed.get(partition, 0)) for partition, end in ends.items())
        age = 0.0 if behind == 0 or self._applied_at is None else max(0.0, time.time() - self._applied_at)
        self._lag = Lag(behind, age)
        metrics.MIGRATE_LAG.labels(self.name, self.direction).set(behind)
        metrics.MIGRATE_LAG_SECONDS.labels(self.name, self.direction).set(age)

    # --- applying ---

    async def _settle(self, changes: Sequence[_Change], stop: asyncio.Event) -> bool:
        """Apply a batch, however often that takes. False: stopped before it was done."""
        outcomes: dict[_Change, str] = {}
        attempt = 0
        try:
            while True:
                try:
                    await self._apply(changes, outcomes)
                except POSTGRES_ERRORS as error:
                    attempt += 1
                    self._fail(error)
                    await self._disconnect()
                    await _pause(stop, backoff(attempt, self.settings.backoff))
                    if stop.is_set():
                        return False
                else:
                    break
        finally:
            ended = time.time_ns()
            for change in changes:
                if change.span is not None:
                    outcome = outcomes.get(change, "not applied")
                    failed = outcome if outcome in {"rejected", "not applied"} else ""
                    change.span.end(ended, {"replank.migrate.outcome": outcome}, error=failed)
        for outcome, count in Counter(outcomes.values()).items():
            metrics.MIGRATE_APPLIED.labels(self.name, self.direction, outcome).inc(count)
        return True

    async def _apply(self, changes: Sequence[_Change], outcomes: dict[_Change, str]) -> None:
        newest: dict[str, _Change] = {}
        for change in changes:
            known = newest.get(change.key)
            if known is None or change.version >= known.version:
                newest[change.key] = change
        # One order of keys for everybody: two appliers at once, while partitions move, do not wait for each other.
        batch = [newest[key] for key in sorted(newest)]
        with _trace_of(batch):
            conn = await self._destination_session()
            await self._fetch([change for change in batch if change.fetch])

            async def apply(part: Sequence[_Change]) -> None:
                rows = await conn.fetch(
                    self._statements.apply,
                    [change.event for change in part],
                    [change.traceparent for change in part],
                )
                outcomes.update((newest[row["key"]], row["outcome"]) for row in rows)

            async def reject(change: _Change, error: asyncpg.PostgresError) -> None:
                await self._reject(conn, change, error)
                outcomes[change] = "rejected"

            await isolation.each_or_all(batch, apply, reject)
        for change in changes:
            if newest[change.key] is not change:
                outcomes[change] = "superseded"

    async def _fetch(self, changes: Sequence[_Change]) -> None:
        """Read the values that were too large to travel. What is there now is as new as the change, or newer."""
        if not changes:
            return
        if self._reading is None:
            self._reading = await self._session(self._origin)
        rows = await self._reading.fetch(self._statements.fetch, [change.key for change in changes])
        values: dict[str, str] = {row["key"]: row["value"] for row in rows}
        for change in changes:
            value = values.get(change.key)
            op = "delete" if value is None else "upsert"
            head = json.dumps({"key": change.key, "version": change.version, "op": op})
            # The value as the server wrote it: a number that is read and written here may become another.
            change.event = head if value is None else f'{head[:-1]}, "value": {value}}}'

    async def _reject(self, conn: Connection, change: _Change, error: asyncpg.PostgresError) -> None:
        """Put a change that the database refuses where people look for it. On the way back nothing may be refused."""
        if self.direction == "reverse":
            raise error
        reason = isolation.describe(error)
        _log.warning("the database refuses a change", extra={"migration": self.name, "reason": reason})
        async with conn.transaction():
            if await conn.fetchval(self._statements.remove, change.event, change.traceparent) != "stale":
                await conn.execute(self._statements.reject, change.event, reason)

    async def _destination_session(self) -> Connection:
        if self._writing is None:
            self._writing = await self._session(self._destination)
        return self._writing

    async def _session(self, dsn: str) -> Connection:
        return await self._sessions.enter_async_context(
            session(dsn, "applier", timeout=self.settings.statement_timeout, applier=self.name)
        )

    async def _disconnect(self) -> None:
        self._writing = self._reading = None
        await self._sessions.aclose()

    def _fail(self, error: BaseException) -> None:
        problem = str(error) if isinstance(error, ReplankError) else isolation.name_of(error)
        if problem != self._problem:
            _log.warning("applier waits", extra={"migration": self.name, "direction": self.direction, "why": problem})
        self._problem = problem


class _Statements:
    """The statements of one direction: names of the migration's schema and table are all that is not a parameter."""

    def __init__(self, mapping: Mapping, direction: Direction) -> None:
        schema = schema_of(mapping.name)
        forward = direction == "forward"
        self.apply = _APPLY.format(function=f"{schema}.{'apply' if forward else 'restore'}")
        key, value = identifier(mapping.source.key), identifier(mapping.source.value)
        self.fetch = (
            f"select {key} as key, {value}::text as value from {relation(mapping.source.table)} where {key} = any($1)"
            if forward
            else f"select key, value::text as value from {schema}.down($1::text[])"
        )
        # What is in the tables is never older than the key-value store: the rows go when their record cannot follow.
        self.remove = f"""
            select r.outcome
              from (select $1::jsonb ->> 'key' as key, ($1::jsonb ->> 'version')::bigint as version) as e,
                   lateral {schema}.apply(array[e.key], array[null::jsonb], array[e.version], array[$2::text]) as r
        """
        self.reject = f"""
            insert into {schema}.reject as known (key, value, version, reason, path, first_at, last_at, attempts)
            select $1::jsonb ->> 'key', $1::jsonb -> 'value', ($1::jsonb ->> 'version')::bigint, $2, '',
                   clock_timestamp(), clock_timestamp(), 1
                on conflict (key) do update
               set value = excluded.value, version = excluded.version, reason = excluded.reason, path = excluded.path,
                   last_at = excluded.last_at, attempts = known.attempts + 1
        """


@contextmanager
def _trace_of(batch: Sequence[_Change]) -> Iterator[None]:
    """Make the statement of a batch part of its first sampled change's trace; without one it gets no span."""
    sampled = next((change.span for change in batch if change.span is not None), None)
    if sampled is None:
        with quiet():
            yield
        return
    token = otel_context.attach(Carried(sampled.traceparent).context())
    try:
        yield
    finally:
        otel_context.detach(token)


def _written_at(time_header: bytes | None, timestamp: int) -> float:
    """When a change was made, by its own word, else when it was sent; in seconds since 1970."""
    if time_header is not None:
        with suppress(ValueError):
            return datetime.fromisoformat(time_header.decode(errors="replace")).timestamp()
    return timestamp / 1000


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
