"""Following the topic of the flags from its beginning, for as long as the process lives."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from replank.contracts.flags import FlagChanged
from replank.events import InvalidEvent
from replank.flags.errors import InvalidFlag
from replank.flags.model import Flag
from replank.flags.table import FlagTable
from replank.flags.topic import ensure_topic
from replank.telemetry import metrics, semconv
from replank.telemetry.context import carried_in

log = logging.getLogger(__name__)

_FIRST_WAIT: Final = 0.2
_LONGEST_WAIT: Final = 5.0
# While catching up, how often to look whether the end is reached.
_CATCH_UP_POLL: Final = 0.1


class Follower:
    """Applies every change on the topic to a table, and tells how fresh that table is.

    Every process reads the whole topic by itself: no consumer group, no committed offsets. The version of a flag makes
    reading a change again harmless, so after every interruption it starts over from the beginning.

    ``changed`` gets the flags that a batch of records changed. ``current`` is called when the table is as new as the
    topic, ``stale`` (with the cause) whenever Kafka does not answer; both again and again. All run on the event loop.
    """

    def __init__(
        self,
        kafka: str,
        topic: str,
        table: FlagTable,
        *,
        changed: Callable[[Sequence[Flag]], None],
        current: Callable[[], None],
        stale: Callable[[str], None],
        heartbeat: float,
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._table = table
        self._changed = changed
        self._current = current
        self._stale = stale
        self._heartbeat = heartbeat
        self._tracer = trace.get_tracer("replank.flags")
        self._wait = _FIRST_WAIT

    async def run(self) -> None:
        """Follow until cancelled. Kafka may come and go."""
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning(
                    "flags are not being followed, trying again",
                    extra={"topic": self._topic, "cause": f"{type(error).__name__}: {error}"},
                )
                self._stale(f"Kafka does not answer ({type(error).__name__})")
            except Exception as error:
                # A fault of ours, or of a broker: a process that follows again is better than one that never does.
                log.exception("following the flags failed, trying again", extra={"topic": self._topic})
                self._stale(f"following the topic failed ({type(error).__name__})")
            else:
                continue
            await asyncio.sleep(self._wait * random.uniform(0.5, 1))  # noqa: S311 - only spreads the load
            self._wait = min(self._wait * 2, _LONGEST_WAIT)

    async def _follow(self) -> None:
        """Read from the beginning, then follow. Returns when the topic is not the same any more."""
        async with asyncio.timeout(self._heartbeat * 2):
            await ensure_topic(self._kafka, self._topic)
        # Without a group it is given all partitions of the topic, also those that are added later.
        consumer = AIOKafkaConsumer(
            self._topic,
            bootstrap_servers=self._kafka,
            # The relay may publish in transactions: what is not committed has not happened.
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            request_timeout_ms=int(self._heartbeat * 1000),
            metadata_max_age_ms=30_000,
        )
        try:
            await consumer.start()
            async with asyncio.timeout(self._heartbeat):
                ends = await consumer.end_offsets(sorted(consumer.assignment()))
            caught_up = False
            while consumer.assignment() == ends.keys():
                wait = self._heartbeat if caught_up else _CATCH_UP_POLL
                batches = await consumer.getmany(timeout_ms=int(wait * 1000))
                self._apply([record for records in batches.values() for record in records], live=caught_up)
                if not caught_up and await _reached(consumer, ends):
                    caught_up = True
                    self._wait = _FIRST_WAIT
                    self._current()
                elif not batches and not await self._still_there(consumer, ends):
                    return
        finally:
            await _stop(consumer)

    async def _still_there(self, consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
        """Ask Kafka something, since a consumer is silent about a Kafka that is. False if the topic was made anew."""
        async with asyncio.timeout(self._heartbeat):
            now = await consumer.end_offsets(list(ends))
            for partition, end in now.items():
                if end < await consumer.position(partition):
                    return False
        return True

    def _apply(self, records: Sequence[Any], *, live: bool) -> None:
        changed = [flag for record in records if (flag := self._take(record, live=live)) is not None]
        if changed:
            self._changed(changed)

    def _take(self, record: Any, *, live: bool) -> Flag | None:
        """Apply one record; the flag if it changed something. What is no flag is counted, logged and passed over."""
        kind = next((value for name, value in record.headers if name == "ce_type"), None)
        if kind is not None and kind != FlagChanged.event_type.encode():
            metrics.FLAGS_RECORDS.labels(result="foreign").inc()
            return None
        try:
            flag = Flag.of(FlagChanged.from_value(record.value or b""))
        except (InvalidEvent, InvalidFlag) as error:
            metrics.FLAGS_RECORDS.labels(result="malformed").inc()
            log.warning(
                "a record is not a flag and is passed over",
                extra={
                    "topic": record.topic,
                    "partition": record.partition,
                    "offset": record.offset,
                    "cause": error.message,
                },
            )
            return None
        if not self._table.apply(flag):
            metrics.FLAGS_RECORDS.labels(result="outdated").inc()
            return None
        metrics.FLAGS_RECORDS.labels(result="applied").inc()
        # What is read again at a start is history: neither late nor part of anybody's trace.
        if live:
            metrics.FLAGS_PROPAGATION_SECONDS.observe(max(0.0, time.time() - flag.updated_at.timestamp()))
            self._trace(record, flag)
        return flag

    def _trace(self, record: Any, flag: Flag) -> None:
        carried = carried_in(record.headers)
        if not carried.sampled:
            return
        attributes = {
            semconv.SYSTEM: semconv.KAFKA,
            semconv.OPERATION_TYPE: semconv.PROCESS,
            semconv.OPERATION_NAME: semconv.PROCESS,
            semconv.DESTINATION: record.topic,
            semconv.PARTITION: str(record.partition),
            semconv.KAFKA_OFFSET: record.offset,
            "feature_flag.key": flag.name,
        }
        self._tracer.start_span(
            semconv.process(record.topic), carried.context(), kind=SpanKind.CONSUMER, attributes=attributes
        ).end()


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer whose Kafka may be gone.

    aiokafka's `stop` cancels its own fetches and lets that cancellation out (Fetcher.close, seen in 0.14), as if the
    caller were cancelled, and before the connections are closed: hence a task of its own, and closing them here.
    """
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.wait([stopping])
    if stopping.cancelled():
        await consumer._client.close()
    else:
        stopping.result()


async def _reached(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
    for partition, end in ends.items():
        if await consumer.position(partition) < end:
            return False
    return True
