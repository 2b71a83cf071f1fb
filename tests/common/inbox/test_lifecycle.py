"""A consumer starts when it can, says why it cannot, and stops and starts without a trace."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest
from faststream.kafka import KafkaBroker

from replank.errors import ConfigurationError
from replank.inbox import Delivery, Done, Inbox, Outcome
from replank.testing import eventually
from replank.testing.plugin import FaultProxies, TopicFactory
from replank.testing.servers import delete_topics, fresh_name, kafka_admin
from tests.common.inbox.conftest import FAST, MakeInbox, Sender, running
from tests.common.inbox.contracts import Other, Paid
from tests.common.inbox.effects import has, numbers, row, write


async def test_it_waits_for_kafka_and_says_so(
    db: asyncpg.Pool, fault_proxy: FaultProxies, send: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        inbox = Inbox(KafkaBroker(nobody, consumer_only=True, logger=None), db, consumer="c", settings=FAST)
        inbox.topic(send.topic).on(Paid)(write)
        async with inbox:
            assert not inbox.healthy
            assert "Kafka does not answer" in inbox.findings()[0]
    assert "cannot start yet" in caplog.text


async def test_it_starts_once_kafka_answers(
    db: asyncpg.Pool, kafka: str, fault_proxy: FaultProxies, send: Sender
) -> None:
    proxy = await fault_proxy(kafka)
    await proxy.refuse()
    inbox = Inbox(KafkaBroker(proxy.address, consumer_only=True, logger=None), db, consumer=send.topic, settings=FAST)
    inbox.topic(send.topic).on(Paid)(write)
    await send.paid(1)
    async with inbox:
        assert not inbox.healthy
        await proxy.heal()
        await eventually(lambda: has(db, 1), "it consumes")
        assert inbox.healthy
        assert inbox.findings() == []


async def test_it_waits_for_postgres_at_the_start_and_later(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, fault_proxy: FaultProxies, send: Sender
) -> None:
    parts = urlsplit(postgres_dsn)
    proxy = await fault_proxy(f"{parts.hostname}:{parts.port}")
    dsn = proxy.in_front_of(postgres_dsn)
    async with asyncpg.create_pool(dsn, min_size=0, max_size=10) as pool:
        inbox = Inbox(KafkaBroker(kafka, consumer_only=True, logger=None), pool, consumer=send.topic, settings=FAST)
        inbox.topic(send.topic).on(Paid)(write)
        await proxy.refuse()
        async with inbox:
            assert "Postgres does not answer" in inbox.findings()[0]
            await proxy.heal()
            await send.paid(1, key="k")
            await eventually(lambda: has(db, 1), "it consumes")
            await proxy.refuse()
            await send.paid(2, 3, key="k")
            await eventually(lambda: any("waits" in finding for finding in inbox.findings()), "it waits")
            assert await numbers(db) == [1]
            await proxy.heal()
            await eventually(lambda: has(db, 1, 2, 3), "it goes on, in order")
            for number in range(4, 10):
                proxy.cut()
                await send.paid(number, key="k")
            await eventually(lambda: has(db, *range(1, 10)), "connections that are cut lose and repeat nothing")


async def test_a_missing_topic_and_that_of_its_dead_letters_are_made(
    db: asyncpg.Pool, kafka: str, make_inbox: MakeInbox
) -> None:
    name = fresh_name()
    inbox = make_inbox()
    inbox.topic(name).on(Paid)(write)
    async with running(inbox), kafka_admin(kafka) as admin:
        assert {name, f"{name}.dlq"} <= set(await admin.list_topics())
    await delete_topics(kafka, [name, f"{name}.dlq"])


async def test_or_waited_for(db: asyncpg.Pool, kafka: str, make_inbox: MakeInbox) -> None:
    name = fresh_name()
    inbox = make_inbox(create_topics=False)
    inbox.topic(name).on(Paid)(write)
    async with inbox:
        assert f"there is no topic {name}" in inbox.findings()[0]
        assert not inbox.healthy


async def test_a_topic_that_outlives_the_memory_of_the_inbox_is_refused(
    db: asyncpg.Pool, make_inbox: MakeInbox, topic_factory: TopicFactory
) -> None:
    week, forever = "604800000", "-1"
    for config in (
        {"retention.ms": forever},
        {"retention.ms": str(2**63 - 1)},
        {"cleanup.policy": "compact"},
        {"retention.ms": week, "segment.ms": week},
    ):
        name = await topic_factory(partitions=1, config=config)
        inbox = make_inbox(retention=timedelta(days=14))
        inbox.topic(name).on(Paid)(write)
        with pytest.raises(ConfigurationError, match=f"topic {name} keeps records"):
            await inbox.start()
        kept_for_ever = make_inbox(retention=None)
        kept_for_ever.topic(name).on(Paid)(write)
        async with running(kept_for_ever):
            assert kept_for_ever.healthy


async def test_a_database_without_an_inbox_is_refused(pool: asyncpg.Pool, kafka: str, topic: str) -> None:
    inbox = Inbox(KafkaBroker(kafka, consumer_only=True, logger=None), pool, consumer="c", settings=FAST)
    inbox.topic(topic).on(Paid)(write)
    with pytest.raises(ConfigurationError, match="has no inbox"):
        await inbox.start()
    assert not inbox.healthy


async def test_dead_letters_to_a_topic_need_an_outbox(db: asyncpg.Pool, make_inbox: MakeInbox, topic: str) -> None:
    await db.execute("drop schema replank_outbox cascade")
    inbox = make_inbox()
    inbox.topic(topic).on(Paid)(write)
    with pytest.raises(ConfigurationError, match="has no outbox"):
        await inbox.start()


async def test_what_is_written_wrongly_is_refused_at_once(make_inbox: MakeInbox, topic: str) -> None:
    inbox = make_inbox()
    empty = make_inbox()
    empty.topic(topic)
    with pytest.raises(ConfigurationError, match="handles no event"):
        await empty.start()
    subscribed = inbox.topic(topic)
    subscribed.on(Paid)(write)
    with pytest.raises(ConfigurationError, match="has the handlers"):
        subscribed.on(Paid)(write)
    with pytest.raises(ConfigurationError, match="no contract"):
        subscribed.on()(write)
    with pytest.raises(ConfigurationError, match="twice"):
        inbox.topic(topic)
    with pytest.raises(ConfigurationError, match="not async"):
        subscribed.on(Other)(lambda _: Done())  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigurationError, match="no name"):
        make_inbox(consumer=" ")
    with pytest.raises(ConfigurationError, match="no name"):
        make_inbox(consumer="x" * 256)
    async with running(inbox):
        with pytest.raises(ConfigurationError, match="while it runs"):
            inbox.topic("another")
        with pytest.raises(ConfigurationError, match="started twice"):
            await inbox.start()


async def test_a_stop_waits_for_the_handler_that_runs(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    inbox = make_inbox()
    began, may_end = asyncio.Event(), asyncio.Event()

    @inbox.topic(send.topic).on(Paid)
    async def slow(delivery: Delivery[Paid]) -> Outcome:
        began.set()
        await may_end.wait()
        return await write(delivery)

    await inbox.start()
    await send.paid(1, 2, key="k")
    await asyncio.wait_for(began.wait(), 10)
    stopping = asyncio.create_task(inbox.stop())
    done, _ = await asyncio.wait([stopping], timeout=0.2)
    assert not done
    may_end.set()
    await stopping
    assert await numbers(db) == [1]


async def test_a_handler_that_does_not_end_is_cancelled_and_its_event_applied_later(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    hanging = make_inbox(consumer=send.topic, stop_timeout=timedelta(milliseconds=200))
    began = asyncio.Event()

    @hanging.topic(send.topic).on(Paid)
    async def hang(delivery: Delivery[Paid]) -> Outcome:
        await write(delivery)
        began.set()
        await asyncio.Event().wait()
        return Done()

    await hanging.start()
    await send.paid(1)
    await asyncio.wait_for(began.wait(), 10)
    await hanging.stop()
    assert await numbers(db) == []
    mended = make_inbox(consumer=send.topic)
    mended.topic(send.topic).on(Paid)(write)
    async with running(mended):
        await eventually(lambda: has(db, 1), "it is applied")


async def test_starting_and_stopping_again_and_again_loses_and_leaks_nothing(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(consumer=send.topic)
    inbox.topic(send.topic).on(Paid)(write)
    sending = asyncio.create_task(_send(send, 150))
    tasks_before = None
    for _ in range(6):
        await inbox.start()
        await inbox.stop()
        await inbox.stop()
        tasks = {
            task.get_name() for task in asyncio.all_tasks() if "inbox" in task.get_name() or "lane" in task.get_name()
        }
        assert tasks == set()
        tasks_before = tasks_before or len(asyncio.all_tasks())
        assert len(asyncio.all_tasks()) <= tasks_before + 1
    await sending
    async with running(inbox):
        await eventually(lambda: _sorted(db, 150), "all are applied, once")


async def test_a_stop_during_the_start_ends_both(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    for pause in (0.0, 0.01, 0.05, 0.2):
        inbox = make_inbox()
        inbox.topic(send.topic).on(Paid)(write)
        starting = asyncio.create_task(inbox.start())
        await asyncio.wait([starting], timeout=pause)
        starting.cancel()
        await asyncio.wait([starting])
        await inbox.stop()
        assert not inbox.healthy


async def test_one_broker_serves_several_inboxes(
    db: asyncpg.Pool, kafka: str, send: Sender, topic_factory: TopicFactory
) -> None:
    broker = KafkaBroker(kafka, consumer_only=True, logger=None)
    first = Inbox(broker, db, consumer=fresh_name(), settings=FAST)
    second = Inbox(broker, db, consumer=fresh_name(), settings=FAST)
    for inbox in (first, second):
        inbox.topic(send.topic).on(Paid)(write)
    async with running(first), running(second):
        await send.paid(1)
        await eventually(lambda: has(db, 1, 1), "both apply it")


async def test_running_consumers_are_known_in_the_database(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(consumer="archiver")
    inbox.topic(send.topic).on(Paid)(write)
    async with running(inbox):
        consumer, handlers = await row(db, "select consumer, handlers::text from replank_inbox.consumer")
        assert consumer == "archiver"
        assert handlers == f'{{"{send.topic}": {{"{Paid.event_type}": "tests.common.inbox.effects.write"}}}}'
    assert await db.fetchval("select count(*) from replank_inbox.consumer") == 0


async def _send(send: Sender, count: int) -> None:
    for number in range(count):
        await send.paid(number, key=f"k{number % 5}")


async def _sorted(db: asyncpg.Pool, count: int) -> bool:
    found = await numbers(db)
    assert len(found) <= count, "an effect happened twice"
    return sorted(found) == list(range(count))
