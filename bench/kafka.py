"""Topics of a benchmark's own, and what can be read from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition

from replank.testing import servers

PARTITIONS = 6


@asynccontextmanager
async def topic(bootstrap: str) -> AsyncIterator[str]:
    """A new topic, deleted afterwards with all whose names begin with its name. Yields its name."""
    name = servers.fresh_name()
    await servers.create_topic(bootstrap, name, partitions=PARTITIONS)
    try:
        yield name
    finally:
        async with servers.kafka_admin(bootstrap) as admin:
            await admin.delete_topics([found for found in await admin.list_topics() if found.startswith(name)])


@asynccontextmanager
async def reader(bootstrap: str, name: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer of the whole topic from its beginning, without a group, that sees committed records only."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 << 20,
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(name, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        yield consumer
    finally:
        await consumer.stop()


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a topic had come, in readable offsets over all partitions, at a time on the monotonic clock."""

    at: float
    offsets: int


class EndOffsets:
    """Watches a topic grow without reading it, so that watching costs the watched hardly anything."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def now(self) -> Reached:
        """The readable end of the topic. In a transactional topic, commit markers take offsets of their own."""
        ends = await self._consumer.end_offsets(self._consumer.assignment())
        return Reached(at=time.monotonic(), offsets=sum(ends.values()))

    async def growth(self, every_s: float) -> AsyncIterator[Reached]:
        """The readable end, again and again, ``every_s`` seconds after the answer before."""
        while True:
            yield await self.now()
            await asyncio.sleep(every_s)
