"""Publishing pages of events to Kafka.

A page is encoded into one batch per partition (several where it does not fit one), every record with its own headers.
Batches of different partitions travel together; those of one partition strictly one after the other, so that a batch
that fails is never overtaken. A publisher that failed is thrown away: what its producer still holds in its buffers must
not reach Kafka after a new one has started over.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    BrokerResponseError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from opentelemetry.trace import SpanKind

from replank.errors import ReplankError
from replank.outbox.lease import Cursor
from replank.outbox.partitioner import partition_hash
from replank.outbox.settings import RelaySettings
from replank.outbox.window import CREATED_AT, DEFERRED, EVENT_ID, ID, KEY, TOPIC, VALUE, Page, Row
from replank.telemetry import semconv
from replank.telemetry.context import is_sampled
from replank.telemetry.template import PendingSpan, SpanTemplate

# Microseconds between the epochs of Unix (1970) and Postgres (2000).
_POSTGRES_EPOCH: Final = 946_684_800_000_000
_SPECVERSION: Final = ("ce_specversion", b"1.0")
_CONTENT_TYPE: Final = ("content-type", b"application/json")
_TOPIC_WAIT: Final = 5.0  # seconds that a topic may take to appear
_YIELD_EVERY: Final = 200  # events, about 2 ms: a relay that shares its event loop must not stall it
_CURSOR: Final = struct.Struct(">qq")


class PublishFailed(ReplankError):
    """Kafka did not take a page. It may have taken parts of it; the same page can be published again."""


class Rejected(PublishFailed):
    """Kafka refuses something for good: too large, no such topic, not authorised. ``event_id`` says what, if known."""

    event_id: str | None = None

    def of(self, page: Page) -> Rejected:
        """The same, naming the event when the page holds only one."""
        named = Rejected(self.message, fix=self.fix)
        if len(page.rows) == 1:
            named.event_id = page.rows[0][EVENT_ID]
        return named


@dataclass(slots=True)
class Encoded:
    """A page, ready to be sent."""

    encoded_at: int  # nanoseconds since 1970
    events: int = 0
    bytes: int = 0
    oldest: int = 0  # created_at of the oldest, in microseconds since 1970
    batches: dict[TopicPartition, list[BatchBuilder]] = field(default_factory=dict)
    spans: list[tuple[PendingSpan, PendingSpan]] = field(default_factory=list)


class Publisher(Protocol):
    """Where a shard's events go. Used by one shard, one page at a time, until it fails or is closed."""

    async def start(self) -> tuple[int, int] | None:
        """Connect. Returns the window number and last id that were published last, where Kafka itself keeps them."""

    async def encode(self, page: Page, skip: Collection[int]) -> Encoded:
        """Prepare a page, leaving out the ids to skip. Sends nothing, so it may overlap the publishing of another.

        Raises `Rejected` for a topic that does not exist.
        """

    async def publish(self, encoded: Encoded, cursor: Cursor) -> None:
        """Return once every record is acknowledged; raise `PublishFailed` if that cannot be said. May wait for seconds.

        ``cursor`` is where the shard stands afterwards.
        """

    async def close(self) -> None:
        """Let go of everything. Nothing is sent after this returns."""


class _Headers(dict[str, tuple[str, bytes]]):
    """Header tuples by value: types and sources are few, encoding them again for every record would be wasteful."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __missing__(self, value: str) -> tuple[str, bytes]:
        if len(self) >= 10_000:
            self.clear()
        header = self[value] = (self._name, value.encode())
        return header


class _Keys(dict[str, tuple[bytes, int]]):
    """Keys as bytes, with their partition hash."""

    def __missing__(self, key: str) -> tuple[bytes, int]:
        if len(self) >= 20_000:
            self.clear()
        encoded = key.encode()
        entry = self[key] = (encoded, partition_hash(encoded))
        return entry


class KafkaPublisher:
    """Publishes with an idempotent producer; with ``transactional_id``, in transactions that hold the cursor, too."""

    def __init__(
        self,
        kafka: str,
        settings: RelaySettings,
        shard: int,
        *,
        transactional_id: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._kafka = kafka
        self._settings = settings
        self._shard = shard
        self._transactional_id = transactional_id
        self._options = dict(options or {})
        self._producer: AIOKafkaProducer | None = None
        self._cursor_partition = TopicPartition(settings.cursor_topic, 0)
        self._types = _Headers("ce_type")
        self._sources = _Headers("ce_source")
        self._keys = _Keys()
        self._unkeyed = 0
        self._second = -1
        self._second_text = b""
        self._templates: dict[str, SpanTemplate] = {}
        self._wait_template = SpanTemplate(
            "replank.outbox", semconv.OUTBOX_WAIT, SpanKind.INTERNAL, {semconv.OUTBOX_SHARD: shard}
        )

    async def start(self) -> tuple[int, int] | None:
        transactional: dict[str, Any] = {}
        if self._transactional_id is not None:
            transactional = {
                "transactional_id": self._transactional_id,
                # Kafka asks to come back while it ends the transaction before: soon, every page begins with this.
                "retry_backoff_ms": 20,
                "transaction_timeout_ms": int((self._settings.delivery_timeout + 10) * 1000),
            }
        producer = AIOKafkaProducer(
            bootstrap_servers=self._kafka,
            client_id=f"replank-outbox-{self._shard}",
            acks="all",
            enable_idempotence=True,
            max_batch_size=self._settings.batch_bytes,
            max_request_size=self._settings.max_request_bytes,
            compression_type=None if self._settings.compression == "none" else self._settings.compression,
            request_timeout_ms=int(self._settings.delivery_timeout * 1000),
            metadata_max_age_ms=60_000,
            **transactional,
            **self._options,
        )
        self._producer = producer
        try:
            async with asyncio.timeout(self._settings.delivery_timeout):
                await producer.start()
                if self._transactional_id is None:
                    return None
                return await self._read_cursor(self._transactional_id)
        except (KafkaError, TimeoutError, OSError) as error:
            raise PublishFailed(f"no connection to Kafka at {self._kafka}: {_describe(error)}") from error

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        # Its own stop() first waits until everything is delivered, for ever if need be: the opposite of what is wanted.
        producer._closed = True
        sender = producer._sender.sender_task
        await producer.client.close()
        # It waits for requests of its own when it is cancelled; cancelling it again cancels those, one at a time.
        while sender is not None and not sender.done():
            sender.cancel()
            await asyncio.wait([sender], timeout=0.5)

    async def encode(self, page: Page, skip: Collection[int]) -> Encoded:
        producer = self._require()
        encoded = Encoded(time.time_ns())
        partitions: dict[str, list[TopicPartition]] = {}
        # When it was sent, not when it was created: Kafka's retention counts from here. ce_time says the other.
        timestamp = encoded.encoded_at // 1_000_000
        oldest = encoded.encoded_at // 1000
        for row in page.rows:
            if row[ID] in skip:
                continue
            value = row[VALUE] if row[DEFERRED] is None else page.values[row[ID]]
            topic: str = row[TOPIC]
            targets = partitions.get(topic)
            if targets is None:
                targets = partitions[topic] = await self._partitions(producer, topic)
            if row[KEY] is None:
                key = None
                self._unkeyed += 1
                target = targets[self._unkeyed % len(targets)]
            else:
                key, key_hash = self._keys[row[KEY]]
                target = targets[key_hash % len(targets)]
            queue = encoded.batches.get(target)
            if queue is None:
                queue = encoded.batches[target] = [producer.create_batch()]
            headers = self._headers(row, encoded)
            if queue[-1].append(timestamp=timestamp, key=key, value=value, headers=headers) is None:
                queue.append(producer.create_batch())
                queue[-1].append(timestamp=timestamp, key=key, value=value, headers=headers)
            encoded.bytes += len(value or b"")
            encoded.events += 1
            oldest = min(oldest, row[CREATED_AT] + _POSTGRES_EPOCH)
            if encoded.events % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        encoded.oldest = oldest
        return encoded

    def _headers(self, row: Row, encoded: Encoded) -> list[tuple[str, bytes]]:
        _, event_id, created_at, topic, key, type_, source, subject, _, _, parent, tracestate, baggage, extra = row
        second, microsecond = divmod(created_at + _POSTGRES_EPOCH, 1_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        headers = [
            _SPECVERSION,
            ("ce_id", event_id.encode()),
            self._types[type_],
            self._sources[source],
            ("ce_time", b"%b.%06dZ" % (self._second_text, microsecond)),
            _CONTENT_TYPE,
        ]
        if subject is not None:
            headers.append(("ce_subject", subject.encode()))
        if parent is not None:
            if is_sampled(parent):
                created_ns = (created_at + _POSTGRES_EPOCH) * 1000
                parent = self._begin_spans(encoded, parent, created_ns, (event_id, topic, key))
            headers.append(("traceparent", parent.encode()))
            if tracestate is not None:
                headers.append(("tracestate", tracestate.encode()))
        if baggage is not None:
            headers.append(("baggage", baggage.encode()))
        if extra is not None:
            headers.extend([(name, text.encode()) for name, text in json.loads(extra).items()])
        return headers

    async def publish(self, encoded: Encoded, cursor: Cursor) -> None:
        producer = self._require()
        try:
            async with asyncio.timeout(self._settings.delivery_timeout):
                if self._transactional_id is None:
                    await self._send(producer, encoded)
                else:
                    await producer.begin_transaction()
                    await self._send(producer, encoded)
                    await self._send_cursor(producer, self._transactional_id, cursor)
                    await producer.commit_transaction()
        except TimeoutError:
            raise PublishFailed(
                f"Kafka did not acknowledge a page within {self._settings.delivery_timeout:g} s"
            ) from None
        except KafkaError as error:
            raise _failure(error) from error
        self._end_spans(encoded)

    async def _send(self, producer: AIOKafkaProducer, encoded: Encoded) -> None:
        results = await asyncio.gather(
            *(self._send_partition(producer, target, queue) for target, queue in encoded.batches.items()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _send_partition(
        self, producer: AIOKafkaProducer, target: TopicPartition, queue: list[BatchBuilder]
    ) -> None:
        for builder in queue:
            await (await producer.send_batch(builder, target.topic, partition=target.partition))

    async def _partitions(self, producer: AIOKafkaProducer, topic: str) -> list[TopicPartition]:
        try:
            async with asyncio.timeout(_TOPIC_WAIT):
                found = await producer.partitions_for(topic)
        except InvalidTopicError as error:
            raise Rejected(f"{topic!r} is no valid topic name") from error
        except (TimeoutError, UnknownTopicOrPartitionError) as error:
            if await producer.client.force_metadata_update():
                raise Rejected(f"topic {topic!r} does not exist") from error
            raise PublishFailed(f"no connection to Kafka at {self._kafka}") from error
        except KafkaError as error:
            raise _failure(error) from error
        return [TopicPartition(topic, partition) for partition in sorted(found)]

    def _begin_spans(self, encoded: Encoded, parent: str, created_ns: int, event: tuple[str, str, str | None]) -> str:
        """Begin the spans of one sampled event; returns the context that its consumers continue."""
        event_id, topic, key = event
        template = self._templates.get(topic)
        if template is None:
            template = self._templates[topic] = SpanTemplate(
                "replank.outbox",
                semconv.publish(topic),
                SpanKind.PRODUCER,
                {
                    semconv.SYSTEM: semconv.KAFKA,
                    semconv.DESTINATION: topic,
                    semconv.OPERATION_TYPE: semconv.SEND,
                    semconv.OPERATION_NAME: "publish",
                    semconv.SERVER_ADDRESS: self._kafka.split(",")[0].rpartition(":")[0],
                },
            )
        # The clocks of two machines may disagree: a wait is never negative.
        wait = self._wait_template.start(parent, min(created_ns, encoded.encoded_at), {semconv.MESSAGE_ID: event_id})
        attributes = {semconv.MESSAGE_ID: event_id}
        if key is not None:
            attributes[semconv.KAFKA_KEY] = key
        publish = template.start(wait.traceparent, encoded.encoded_at, attributes)
        encoded.spans.append((wait, publish))
        return publish.traceparent

    def _end_spans(self, encoded: Encoded) -> None:
        acknowledged = time.time_ns()
        for wait, publish in encoded.spans:
            wait.end(encoded.encoded_at)
            publish.end(acknowledged)

    async def _read_cursor(self, transactional_id: str) -> tuple[int, int] | None:
        """The last committed cursor of this shard.

        Starting the producer has ended whatever transaction its predecessor left open, so nothing of this shard is in
        doubt any more. Other shards' transactions may be: reading goes on until all before the end are settled, because
        behind them may be a cursor of ours.
        """
        topic = self._settings.cursor_topic
        await self._create_cursor_topic(topic)
        producer = self._require()
        key = transactional_id.encode()
        targets = await self._partitions(producer, topic)
        self._cursor_partition = target = targets[partition_hash(key) % len(targets)]
        end = await self._high_watermark(target)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._kafka, isolation_level="read_committed", enable_auto_commit=False, **self._options
        )
        await consumer.start()
        try:
            consumer.assign([target])
            beginning = (await consumer.beginning_offsets([target]))[target]
            # Ours is most likely among the last ones; look further back only if it is not.
            back, upper = 1000, end
            while upper > beginning:
                lower = max(beginning, upper - back)
                found = await _last_value(consumer, target, key, lower, upper)
                if found is not None:
                    number, last_id = _CURSOR.unpack(found)
                    return number, last_id
                back, upper = back * 10, lower
            return None
        finally:
            await consumer.stop()

    async def _high_watermark(self, target: TopicPartition) -> int:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._kafka, enable_auto_commit=False, **self._options)
        await consumer.start()
        try:
            end: int = (await consumer.end_offsets([target]))[target]
            return end
        finally:
            await consumer.stop()

    async def _create_cursor_topic(self, topic: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._kafka, **self._options)
        await admin.start()
        try:
            if topic in await admin.list_topics():
                return
            brokers = len((await admin.describe_cluster())["brokers"])
            configs = {
                "cleanup.policy": "compact",
                # Compaction leaves the newest segment alone: small ones keep what a starting relay reads short.
                "segment.ms": "600000",
                "segment.bytes": str(16 * 1024 * 1024),
                "min.cleanable.dirty.ratio": "0.1",
            }
            answer = await admin.create_topics(
                [NewTopic(topic, num_partitions=8, replication_factor=min(3, brokers), topic_configs=configs)]
            )
            for name, code, *_ in answer.topic_errors:
                error = for_code(code)
                if code and error is not TopicAlreadyExistsError:
                    raise PublishFailed(
                        f"the topic {name} cannot be created: {error.__name__}",
                        fix="create it by hand, compacted, or let the relay's Kafka user create it",
                    )
        finally:
            await admin.close()

    async def _send_cursor(self, producer: AIOKafkaProducer, transactional_id: str, cursor: Cursor) -> None:
        value = _CURSOR.pack(cursor.number, cursor.last_id)
        topic, partition = self._cursor_partition
        await (await producer.send(topic, value, key=transactional_id.encode(), partition=partition))

    def _require(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise PublishFailed("the publisher is not connected")
        return self._producer


async def _last_value(
    consumer: AIOKafkaConsumer, target: TopicPartition, key: bytes, lower: int, upper: int
) -> bytes | None:
    """The value of the last committed record with this key in ``[lower, upper)``."""
    consumer.seek(target, lower)
    found: bytes | None = None
    # The position passes markers and aborted records, too, which are never returned.
    while await consumer.position(target) < upper:
        records = await consumer.getmany(target, timeout_ms=200)
        for record in records.get(target, ()):
            if record.key == key and record.offset < upper:
                found = record.value
    return found


def _failure(error: KafkaError) -> PublishFailed:
    """Whether to try again as it is, or to look for the one record that Kafka refuses."""
    fenced = isinstance(error, ProducerFenced | OutOfOrderSequenceNumber | KafkaConnectionError)
    if isinstance(error, MessageSizeTooLargeError) or (
        isinstance(error, BrokerResponseError) and not error.retriable and not fenced
    ):
        return Rejected(f"Kafka refuses a record: {_describe(error)}")
    return PublishFailed(f"Kafka did not take a page: {_describe(error)}")


def _describe(error: BaseException) -> str:
    # The texts of Kafka errors name topics and nodes, never records.
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
