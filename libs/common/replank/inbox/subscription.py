"""One topic read by one consumer group: fetch, spread over lanes, settle, commit.

Records of a Kafka partition are spread over a few lanes by the hash of their key. A lane works on one event (or batch)
at a time, in order; lanes run at the same time, so that the commits of several share one flush to disk. An offset is
committed once it and all before it in its partition are settled. A lane that has to wait holds up its own keys; its
partition is paused meanwhile, so that no more piles up, and all other partitions flow on.

The FastStream subscriber owns the Kafka consumer: configuration, security, group membership. The loop that reads from
it is our own, because FastStream's has only three answers to a record (drop, commit, seek back) and takes the next one
only after the last.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final, assert_never

import asyncpg
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from faststream import AckPolicy

from replank.connection import Connection
from replank.errors import DependencyUnavailable
from replank.events import Event
from replank.inbox import envelope
from replank.inbox.envelope import Envelope
from replank.inbox.limit import DlqGauge, DlqLimit
from replank.inbox.outcome import is_transient
from replank.inbox.processing import Backoff, Failed, Handler, Processor, Settled, Split, Verdict, Work, backoff_for
from replank.inbox.settings import InboxSettings
from replank.inbox.usage import Usage
from replank.telemetry import metrics

if TYPE_CHECKING:
    from faststream.kafka import KafkaBroker

_log: Final = logging.getLogger(__name__)
_MOST_IN_ONE_GO: Final = 100  # events that a lane settles on one connection before it lets another lane have it
_POLL_MS: Final = 200
_MOST_POLLED: Final = 1000


class Subscription(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Reads one topic for one consumer. Made by `Inbox.topic`."""

    def __init__(
        self,
        broker: KafkaBroker,
        pool: asyncpg.Pool,
        *,
        consumer: str,
        topic: str,
        batch: bool,
        ordered: bool,
        limit: DlqLimit,
        settings: InboxSettings,
        usage: Usage,
    ) -> None:
        self.topic = topic
        self.group = f"{consumer}.{topic}"
        self.handlers: dict[str, tuple[type[Event], Handler]] = {}
        self.batch = batch
        self.stopped_because: str | None = None
        """Why it stands still, if it stopped at its dead-letter limit."""
        self.unreachable: str | None = None
        """What Kafka last answered, while it does not do its part."""
        self.processor = Processor(
            consumer=consumer,
            group=self.group,
            topic=topic,
            ordered=ordered,
            settings=settings,
            handlers=self.handlers,
            usage=usage,
        )
        self.settings = settings
        self.slots = asyncio.Semaphore(settings.concurrency)
        self.pool = pool
        self.gauge = DlqGauge(limit)
        self._limit = limit
        self._labels = (consumer, topic)
        self._life = asyncio.Lock()
        self._partitions: dict[TopicPartition, Partition] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._consumer: AIOKafkaConsumer | None = None
        session = settings.session_timeout
        milliseconds = round(session.total_seconds() * 1000)
        self._subscriber = broker.subscriber(
            topic,
            group_id=self.group,
            auto_offset_reset="earliest",
            # Else the records of aborted transactions, which an exactly-once relay leaves behind, would be applied.
            isolation_level="read_committed",
            ack_policy=AckPolicy.MANUAL,
            listener=self,
            # A partition that is resumed is fetched again only when the request in flight has come back.
            fetch_max_wait_ms=100,
            session_timeout_ms=milliseconds,
            heartbeat_interval_ms=milliseconds // 4,
            # Time for running handlers to finish before the partitions go to somebody else.
            rebalance_timeout_ms=milliseconds + round(settings.stop_timeout.total_seconds() * 1000),
            no_reply=True,
            include_in_schema=False,
        )

    # --- life ---

    async def start(self) -> None:
        """Join the group and begin to read, if it does not already. Raises `DependencyUnavailable`."""
        async with self._life:
            if not self.running:
                # What is left of one that ended by itself, or of a start that failed.
                await self._end()
                await self._begin()

    async def stop(self) -> None:
        """Let running handlers finish (within ``stop_timeout``), commit what is settled, leave the group."""
        async with self._life:
            await self._end()

    async def _begin(self) -> None:
        try:
            if not self._subscriber.running:
                await self._subscriber.start()
        except (KafkaError, OSError) as error:
            await self._subscriber.stop()
            raise DependencyUnavailable("kafka", f"cannot subscribe to {self.topic}: {error!r}") from error
        self._consumer = self._subscriber.consumer
        self._tasks = [
            asyncio.create_task(self._poll(), name=f"poll {self.group}"),
            asyncio.create_task(self._commit_regularly(), name=f"commit {self.group}"),
        ]

    async def _end(self) -> None:
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        await self._close(list(self._partitions))
        if self._subscriber.running or self._subscriber.consumer is not None:
            await self._subscriber.stop()
        self._consumer = None

    @property
    def running(self) -> bool:
        """Whether it is started and its tasks are alive."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    async def resume(self) -> None:
        """After it stopped at its dead-letter limit: begin again with the event that would have been one too many."""
        async with self._life:
            await self._end()
            self.gauge = DlqGauge(self._limit)
            self.stopped_because = None
            metrics.INBOX_STOPPED.labels(*self._labels).set(0)
            await self._begin()

    def findings(self) -> list[str]:
        """What is wrong with it now, in words; nothing if all is well."""
        if self.stopped_because:
            return [f"{self.topic}: stopped at the dead-letter limit: {self.stopped_because}"]
        if not self.running:
            return [f"{self.topic}: not reading"]
        if self.unreachable:
            return [f"{self.topic}: {self.unreachable}"]
        waiting = [partition for partition in self._partitions.values() if partition.waiting_for]
        return [f"{self.topic}/{partition.number}: waits: {partition.waiting_for}" for partition in waiting]

    @property
    def healthy(self) -> bool:
        """Whether it reads: not stopped, and Kafka answers. That a handler waits for something is no ill health."""
        return self.running and not self.stopped_because and not self.unreachable

    # --- reading ---

    async def _poll(self) -> None:
        consumer = self._reader()
        failures = 0
        while True:
            try:
                fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_MOST_POLLED)
            except ConsumerStoppedError:
                return
            except KafkaError as error:
                failures += 1
                self.unreachable = f"Kafka answers {type(error).__name__}"
                _log.warning("reading from Kafka failed", extra={"topic": self.topic, "error": repr(error)})
                await asyncio.sleep(self.processor.backoff(failures).total_seconds())
                continue
            failures = 0
            # No await between getmany and here: what it answered belongs to the partitions that are assigned now.
            for tp, records in fetched.items():
                if self.stopped_because:
                    break
                partition = self._partitions.get(tp)
                if partition is None:
                    partition = self._partitions[tp] = Partition(tp, consumer, self)
                partition.put(map(envelope.read, records))
            # getmany answers without waiting while it has records: let the lanes have their turn.
            await asyncio.sleep(0)

    def _reader(self) -> AIOKafkaConsumer:
        assert self._consumer is not None  # noqa: S101 - set by start, which starts the tasks that call this
        return self._consumer

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Kafka takes partitions away: finish what runs, forget what waits, commit what is settled."""
        await self._close(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Kafka gave partitions. A stopped subscription keeps them, lest another process runs into the same limit."""
        if self.stopped_because and (consumer := self._subscriber.consumer) is not None:
            consumer.pause(*assigned)

    async def _close(self, tps: Iterable[TopicPartition]) -> None:
        closing = {tp: self._partitions[tp] for tp in tps if tp in self._partitions}
        await asyncio.gather(*(partition.close(self.settings.stop_timeout) for partition in closing.values()))
        await self._commit(closing)
        for tp in closing:
            self._partitions.pop(tp, None)

    # --- committing ---

    async def _commit_regularly(self) -> None:
        interval = self.settings.commit_interval.total_seconds()
        beat = self.settings.heartbeat.total_seconds()
        loop = asyncio.get_running_loop()
        asked = loop.time() - beat
        while True:
            await self._commit(self._partitions)
            if loop.time() - asked >= beat:
                asked = loop.time()
                await self._measure_lag()
            await asyncio.sleep(interval)

    async def _commit(self, partitions: Mapping[TopicPartition, Partition]) -> None:
        moved = {
            tp: (partition, partition.next_offset)
            for tp, partition in partitions.items()
            if partition.next_offset is not None and partition.next_offset != partition.committed
        }
        if not moved or self._consumer is None:
            return
        try:
            await self._consumer.commit({tp: offset for tp, (_, offset) in moved.items()})
        except (CommitFailedError, IllegalStateError, RebalanceInProgressError, UnknownMemberIdError) as error:
            # Somebody else has the partitions, or will: they are read again from the last commit, as duplicates.
            _log.info("offsets were not committed", extra={"topic": self.topic, "error": repr(error)})
        except KafkaError as error:
            self.unreachable = f"committing offsets fails: {type(error).__name__}"
            _log.warning("offsets were not committed", extra={"topic": self.topic, "error": repr(error)})
        else:
            for partition, offset in moved.values():
                partition.committed = offset

    async def _measure_lag(self) -> None:
        consumer = self._reader()
        assigned = consumer.assignment()
        try:
            async with asyncio.timeout(self.settings.heartbeat.total_seconds()):
                ends = await consumer.end_offsets(assigned) if assigned else {}
                lag = 0
                for tp, end in ends.items():
                    position = await consumer.position(tp)
                    partition = self._partitions.get(tp)
                    if partition is not None and partition.next_offset is not None:
                        if not partition.pending:
                            # Behind the last record may be marks of transactions, which are never delivered.
                            partition.next_offset = max(partition.next_offset, position)
                        position = partition.next_offset
                    lag += max(0, end - position)
        except IllegalStateError:
            return  # a rebalance has just begun: the next time will do
        except (KafkaError, TimeoutError) as error:
            self.unreachable = f"Kafka does not answer: {type(error).__name__}"
            _log.warning("Kafka does not answer", extra={"topic": self.topic, "error": repr(error)})
            return
        self.unreachable = None
        metrics.INBOX_LAG.labels(*self._labels).set(lag)

    # --- stopping at the limit ---

    def trip(self, event: Envelope, why: str, failed: Failed) -> None:
        """Stand still before an event that would be one dead letter too many."""
        if self.stopped_because:
            return
        self.stopped_because = f"{why}; the next one is event {event.event_id} ({failed.death.reason})"
        metrics.INBOX_LIMIT_TRIPS.labels(*self._labels).inc()
        metrics.INBOX_STOPPED.labels(*self._labels).set(1)
        consumer = self._reader()
        consumer.pause(*consumer.assignment())
        _log.error(
            "subscription stopped at its dead-letter limit; nothing is lost: mend the handler and restart the process, "
            "or call resume()",
            extra={
                "topic": self.topic,
                "group": self.group,
                "why": why,
                "event_id": str(event.event_id),
                "event_type": event.type,
                "partition": event.partition,
                "offset": event.offset,
                "reason": str(failed.death.reason),
            },
        )

    def retried(self, event: Envelope, backoff: Backoff, pause: timedelta, attempt: int) -> None:
        """Say that an event is tried again. The error's text stays out of the log: it may hold data."""
        metrics.INBOX_RETRIES.labels(*self._labels).inc()
        _log.warning(
            "event is tried again",
            extra={
                "topic": self.topic,
                "event_id": str(event.event_id),
                "event_type": event.type,
                "attempt": attempt,
                "pause_seconds": round(pause.total_seconds(), 3),
                "why": backoff.cause,
            },
        )


@dataclass(slots=True)
class Job:
    """A record, and what there is to do about it."""

    envelope: Envelope
    todo: Work | Failed


class Partition:
    """What was read of one Kafka partition and is not settled yet."""

    def __init__(self, tp: TopicPartition, consumer: AIOKafkaConsumer, subscription: Subscription) -> None:
        self.number: int = tp.partition
        self.pending: deque[Envelope] = deque()
        """In order of their offsets; settled ones stay until all before them are."""
        self.next_offset: int | None = None
        """The first offset that is not settled."""
        self.committed: int | None = None
        self.waiting_for: str | None = None
        """What a lane waits for before it tries again, if one does."""
        self._tp = tp
        self._consumer = consumer
        self._subscription = subscription
        self._bytes = 0
        self._unsettled = 0
        self._waiting = 0
        self._paused = False
        self._closed = False
        # A batch handler is given the order of the whole partition; single handlers that of each key.
        count = 1 if subscription.batch else subscription.settings.lanes
        self._lanes = [Lane(self, subscription) for _ in range(count)]

    def put(self, envelopes: Iterable[Envelope]) -> None:
        """Take what was read, in order."""
        prepare, lanes = self._subscription.processor.prepare, self._lanes
        skipped = []
        for event in envelopes:
            if self.next_offset is None:
                self.next_offset = self.committed = event.offset
            self.pending.append(event)
            self._unsettled += 1
            self._bytes += event.size
            todo = prepare(event)
            if todo is None:
                skipped.append(event)
            else:
                lane = (event.offset if event.key is None else zlib.crc32(event.key)) % len(lanes)
                lanes[lane].put(Job(event, todo))
        self.settle(skipped)

    def settle(self, events: Iterable[Envelope]) -> None:
        """Nothing is left to do about these."""
        for event in events:
            event.settled = True
            self._unsettled -= 1
            self._bytes -= event.size
        while self.pending and self.pending[0].settled:
            self.next_offset = self.pending.popleft().offset + 1
        self._flow()

    def wait(self, what: str) -> None:
        """A lane begins to wait: read no more of this partition until it is over."""
        self._waiting += 1
        self.waiting_for = what
        self._flow()

    def waited(self) -> None:
        """A lane's wait is over."""
        self._waiting -= 1
        if not self._waiting:
            self.waiting_for = None
        self._flow()

    def _flow(self) -> None:
        settings = self._subscription.settings
        # Once full, half of it is worked off before more is read.
        share = 2 if self._paused else 1
        full = self._unsettled * share >= settings.buffer_records or self._bytes * share >= settings.buffer_bytes
        pause = full or self._waiting > 0
        if pause == self._paused or self._closed or self._subscription.stopped_because:
            return
        # A rebalance may be taking it away in this moment: then there is nothing to pause.
        with suppress(IllegalStateError):
            (self._consumer.pause if pause else self._consumer.resume)(self._tp)
            self._paused = pause

    async def close(self, grace: timedelta) -> None:
        """Forget what is not begun, let what is begun finish within ``grace``, and cancel it after that."""
        self._closed = True
        await asyncio.gather(*(lane.close(grace) for lane in self._lanes))


class Lane:
    """Settles events one after the other (or batch after batch), in the order in which they were put in."""

    def __init__(self, partition: Partition, subscription: Subscription) -> None:
        self._partition = partition
        self._subscription = subscription
        self._processor = subscription.processor
        self._batch_size = subscription.settings.batch_size if subscription.batch else 1
        self._queue: deque[Job] = deque()
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._attempt = 1
        """Of what is first in the queue."""
        self._doomed: Failed | None = None
        """Why what is first in the queue is to become a dead letter: decided, and counted against the limit."""
        self._singly = 0
        """How many events are to be handled one by one, because a batch with them failed."""
        self._task = asyncio.create_task(self._run(), name=f"lane {subscription.group}/{partition.number}")

    def put(self, job: Job) -> None:
        """Take an event."""
        self._queue.append(job)
        self._filled.set()

    async def close(self, grace: timedelta) -> None:
        """Begin nothing more; wait for what is being done, within ``grace``."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace.total_seconds()):
                await self._idle.wait()
        await cancel([self._task])

    def _over(self) -> bool:
        # What was counted as dead before the subscription stopped is still put away.
        return self._closing or (self._subscription.stopped_because is not None and self._doomed is None)

    async def _run(self) -> None:
        while not self._over():
            if not self._queue:
                self._filled.clear()
                await self._filled.wait()
            backoff = await self._work_off()
            if backoff is not None:
                pause = self._processor.backoff(self._attempt) if backoff.after is None else backoff.after
                self._attempt += 1
                if self._queue:
                    self._subscription.retried(self._queue[0].envelope, backoff, pause, self._attempt)
                self._partition.wait(backoff.cause)
                try:
                    await asyncio.sleep(pause.total_seconds())
                finally:
                    self._partition.waited()

    async def _work_off(self) -> Backoff | None:
        """Settle what is queued, some of it on one connection; answers what to wait for, if anything."""
        try:
            async with self._subscription.slots, self._subscription.pool.acquire() as conn:
                self._idle.clear()
                for _ in range(_MOST_IN_ONE_GO):
                    if self._over() or not self._queue:
                        return None
                    backoff = await self._next(conn)
                    if backoff is not None:
                        return backoff
        except Exception as error:
            if not is_transient(error):
                _log.exception("an event could not be processed", extra={"topic": self._subscription.topic})
            return backoff_for(error)
        finally:
            self._idle.set()
        return None

    async def _next(self, conn: Connection) -> Backoff | None:
        """Take what is first in the queue one step further."""
        unit = self._unit()
        verdict = await self._attempt_at(conn, unit)
        match verdict:
            case Settled(applied):
                self._subscription.gauge.lived(applied)
                for _ in unit:
                    self._queue.popleft()
                self._singly = max(0, self._singly - len(unit))
                self._attempt, self._doomed = 1, None
                self._partition.settle(job.envelope for job in unit)
            case Backoff():
                return verdict
            case Failed(death, final=False):
                return Backoff(None, death.detail)
            case Failed():
                why = self._subscription.gauge.died()
                if why is None:
                    self._doomed = verdict
                else:
                    self._subscription.trip(unit[0].envelope, why, verdict)
            case Split():
                self._singly = len(unit)
            case _:
                assert_never(verdict)
        return None

    async def _attempt_at(self, conn: Connection, unit: list[Job]) -> Verdict:
        first = unit[0]
        if self._doomed is not None:
            return await self._processor.bury(conn, first.envelope, self._doomed.death)
        if isinstance(first.todo, Failed):
            return first.todo
        if len(unit) == 1:
            return await self._processor.apply(conn, first.todo, self._attempt)
        batch = [job.todo for job in unit if isinstance(job.todo, Work)]
        return await self._processor.apply_batch(conn, batch, self._attempt)

    def _unit(self) -> list[Job]:
        """What is done next: the first event, and for a batch handler those behind it that can go with it."""
        first = self._queue[0]
        if self._batch_size == 1 or self._singly or not self._goes_with(first, first):
            return [first]
        return list(takewhile(lambda job: self._goes_with(first, job), islice(self._queue, self._batch_size)))

    def _goes_with(self, first: Job, job: Job) -> bool:
        same = isinstance(first.todo, Work) and isinstance(job.todo, Work) and first.todo.handler is job.todo.handler
        return same and job.envelope.key not in self._processor.known_parked


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have ended. What one of them raised is logged."""
    for task in (tasks := list(tasks)):
        task.cancel()
    for task, outcome in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(outcome, Exception):
            _log.error("task ended with an error", extra={"task": task.get_name()}, exc_info=outcome)
