"""What is in a topic, as any consumer in any language would find it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, ConsumerRecord


async def everything(kafka: str, topic: str) -> list[ConsumerRecord]:
    """All committed records of a topic that are there now, partition by partition, each in its order."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
    await consumer.start()
    found: list[ConsumerRecord] = []
    try:
        for target, end in (await consumer.end_offsets(consumer.assignment())).items():
            # The position also passes marks of transactions, which are never delivered.
            while await consumer.position(target) < end:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found.extend(records)
    finally:
        await consumer.stop()
    return sorted(found, key=lambda record: (record.partition, record.offset))


def header(record: ConsumerRecord, name: str) -> str:
    """A header of a record as text. Raises KeyError for one that is not there."""
    value: bytes = dict(record.headers)[name]
    return value.decode()


def repeated(records: Sequence[ConsumerRecord]) -> dict[str, int]:
    """The event ids that occur more than once, each with how often."""
    return {event_id: times for event_id, times in Counter(header(r, "ce_id") for r in records).items() if times > 1}
