"""A relay that is killed in the middle of its work, over and over, as a real process."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from replank import outbox
from replank.testing.plugin import TopicFactory
from replank.testing.wait import eventually
from tests.common.outbox.events import header, published, put_many

PROGRAM = Path(__file__).parent / "programs" / "relay.py"


@asynccontextmanager
async def _relay(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, str(PROGRAM), *arguments)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_killing_it_loses_nothing_and_exactly_once_repeats_nothing(  # noqa: PLR0917 - fixtures
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str, topic_factory: TopicFactory, delivery: str
) -> None:
    cursors = await topic_factory(partitions=1, config={"cleanup.policy": "compact"})
    ids: list[str] = []
    async with db.acquire() as conn, AIOKafkaConsumer(bootstrap_servers=kafka) as watcher:
        partitions = [TopicPartition(topic, number) for number in range(3)]

        async def taken(more_than: int = -1) -> int:
            count: int = sum((await watcher.end_offsets(partitions)).values())
            return count if count > more_than else 0

        for _ in range(4):
            ids += await put_many(conn, topic, [f"key-{number % 20}" for number in range(2000)], b"x" * 100)
            reached = await taken()
            async with _relay(postgres_dsn, kafka, delivery, cursors) as process:
                # Somewhere in the middle: a few pages are out, more are on their way.
                await eventually(partial(taken, reached + 150), "it publishes", within=30, interval=0.001)
                process.send_signal(signal.SIGKILL)
                await process.wait()
        async with _relay(postgres_dsn, kafka, delivery, cursors) as process:
            await eventually(lambda: _is_empty(conn), "the last one publishes the rest", within=60)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await process.wait() == 0
        records = await published(kafka, topic, len(ids))
    found = [header(record, "ce_id") for record in records]
    assert set(found) == set(ids)
    if delivery == "exactly_once":
        assert len(found) == len(ids)
    place = {event_id: number for number, event_id in enumerate(ids)}
    for key in {record.key for record in records}:
        first = list(dict.fromkeys(header(record, "ce_id") or "" for record in records if record.key == key))
        assert first == sorted(first, key=place.__getitem__)


async def _is_empty(conn: Any) -> bool:
    return (await outbox.status(conn)).depth == 0
