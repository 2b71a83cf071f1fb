"""Exactly-once delivery: the cursor is in Kafka, in the transaction of the events that it counts."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg
import pytest

from replank import outbox
from replank.outbox import window
from replank.outbox.lease import Cursor
from replank.outbox.publisher import KafkaPublisher, PublishFailed
from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings
from replank.outbox.window import WindowReader
from replank.testing.plugin import TopicFactory
from replank.testing.wait import eventually
from tests.common.outbox.events import header, published, put, put_many

START = Cursor(number=0, previous=(1, 1, ()), current=None, last_id=0, floor_id=0, replay_to=None)


@pytest.fixture
async def exactly_once(topic_factory: TopicFactory) -> RelaySettings:
    cursors = await topic_factory(partitions=1, config={"cleanup.policy": "compact"})
    return RelaySettings(delivery="exactly_once", cursor_topic=cursors, lease=1.5, checkpoint=0.05, backoff=0.3)


async def test_a_successor_fences_its_predecessor_and_reads_where_it_stopped(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str, exactly_once: RelaySettings
) -> None:
    async with db.acquire() as conn, window.connection(postgres_dsn) as reading:
        await window.read_times_as_integers(reading)
        reader = WindowReader(reading, 0, 1, exactly_once)
        await put_many(conn, topic, ["k"] * 6)
        _, rows = await reader.poll(START, 10)
        assert rows is not None
        old, new = (KafkaPublisher(kafka, exactly_once, 0, transactional_id=topic) for _ in range(2))
        try:
            assert await old.start() is None
            await old.publish(await old.encode(window.Page(rows[:3], {}), ()), START.at(3))
            assert await new.start() == (0, 3)
            with pytest.raises(PublishFailed, match="Fenced"):
                await old.publish(await old.encode(window.Page(rows[:3], {}), ()), START.at(6))
            await new.publish(await new.encode(window.Page(rows[3:], {}), ()), START.at(6))
        finally:
            await old.close()
            await new.close()
    assert len(await published(kafka, topic, 6)) == 6


async def test_the_last_cursor_is_found_behind_many_others(kafka: str, topic: str, exactly_once: RelaySettings) -> None:
    mine = KafkaPublisher(kafka, exactly_once, 0, transactional_id=f"{topic}.mine")
    other = KafkaPublisher(kafka, exactly_once, 1, transactional_id=f"{topic}.other")
    nothing = window.Page((), {})
    try:
        await mine.start()
        await mine.publish(await mine.encode(nothing, ()), START.at(7))
        await other.start()
        for number in range(30):
            await other.publish(await other.encode(nothing, ()), START.at(number))
        await mine.close()
        assert await mine.start() == (0, 7)
    finally:
        await mine.close()
        await other.close()


async def test_a_page_that_fails_half_way_is_seen_by_nobody(  # noqa: PLR0917 - fixtures
    db: asyncpg.Pool,
    postgres_dsn: str,
    kafka: str,
    topic: str,
    topic_factory: TopicFactory,
    exactly_once: RelaySettings,
) -> None:
    small = await topic_factory(partitions=1, config={"max.message.bytes": "2000"})
    async with db.acquire() as conn:
        before = await put(conn, topic, "k")
        refused = await put(conn, small, "k", b"x" * 5000)
        after = await put(conn, topic, "k")
        async with Relay(postgres_dsn, kafka, exactly_once) as relay:
            await eventually(lambda: f"stuck at event {refused}" in relay.problem, "it is stuck", within=30)
            assert [header(record, "ce_id") for record in await published(kafka, topic)] == [before]
            await outbox.quarantine(conn, UUID(refused), "too large")
            records = await published(kafka, topic, 2)
    assert [header(record, "ce_id") for record in records] == [before, after]


async def test_switching_between_the_two_deliveries_loses_nothing(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str, exactly_once: RelaySettings
) -> None:
    ids: list[str] = []
    async with db.acquire() as conn:
        for delivery in ("exactly_once", "at_least_once", "exactly_once", "exactly_once"):
            settings = exactly_once.model_copy(update={"delivery": delivery})
            async with Relay(postgres_dsn, kafka, settings):
                ids += await put_many(conn, topic, ["k"] * 10)
                await eventually(lambda: _is_empty(conn), "it publishes", within=20)
    assert [header(record, "ce_id") for record in await published(kafka, topic, len(ids))] == ids


async def test_a_database_that_went_back_in_time_is_noticed_and_nothing_is_lost(  # noqa: PLR0917 - fixtures
    db: asyncpg.Pool,
    postgres_dsn: str,
    kafka: str,
    topic: str,
    exactly_once: RelaySettings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with db.acquire() as conn:
        (row,) = await conn.fetch("select previous, window_number from replank_outbox.shard")
        async with Relay(postgres_dsn, kafka, exactly_once):
            first = await put(conn, topic, "k")
            await published(kafka, topic, 1)
        await conn.execute(
            "update replank_outbox.shard set previous = $1, current = null, last_id = 0, window_number = $2", *row
        )
        second = await put(conn, topic, "k")
        async with Relay(postgres_dsn, kafka, exactly_once) as relay:
            records = await published(kafka, topic, 3)
            # The lost timeline's window number must not come back: its last id would be taken for this one's.
            await eventually(lambda: _is_empty(conn), "the cursor follows")
            assert await conn.fetchval("select window_number from replank_outbox.shard") > 2
            assert relay.healthy
    assert [header(record, "ce_id") for record in records] == [first, first, second]
    assert "went back in time" in caplog.text


async def _is_empty(conn: Any) -> bool:
    return (await outbox.status(conn)).depth == 0
