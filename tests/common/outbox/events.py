"""Appending by SQL, as any language does, and reading a topic back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from replank.connection import Connection


async def put(conn: Connection, topic: str, key: str | None, value: bytes | None = b"{}", **named: Any) -> str:
    """Append one event through the SQL function; returns its id."""
    event_id: UUID = await conn.fetchval(
        "select replank_outbox.append($1, $2, 'test.outbox.raw.v1', $3, traceparent => $4)",
        topic,
        key,
        value,
        named.get("traceparent"),
    )
    return str(event_id)


async def put_many(conn: Connection, topic: str, keys: Sequence[str | None], value: bytes = b"{}") -> list[str]:
    """Append one event a key through the array function; returns their ids."""
    count = len(keys)
    ids: Iterable[UUID] = await conn.fetchval(
        "select replank_outbox.append_many($1, $2, $3, $4)",
        [topic] * count,
        list(keys),
        ["test.outbox.raw.v1"] * count,
        [value] * count,
    )
    return [str(event_id) for event_id in ids]


async def published(kafka: str, topic: str, count: int = 0) -> list[ConsumerRecord]:
    """Every committed record of a topic, once there are ``count``, by partition and offset."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, isolation_level="read_committed")
    await consumer.start()
    try:
        await consumer._client.force_metadata_update()
        partitions = [TopicPartition(topic, number) for number in sorted(await _partitions(consumer, topic))]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[ConsumerRecord] = []
        while True:
            for records in (await consumer.getmany(timeout_ms=50)).values():
                found += records
            passed = [await consumer.position(partition) >= ends[partition] for partition in partitions]
            if all(passed) and len(found) >= count:
                return sorted(found, key=lambda record: (record.partition, record.offset))
    finally:
        await consumer.stop()


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    found: set[int] = await consumer._client._wait_on_metadata(topic)
    return found


def header(record: ConsumerRecord, name: str) -> str | None:
    """One header of a record, as text."""
    return {key: value.decode() for key, value in record.headers}.get(name)
