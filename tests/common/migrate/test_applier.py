"""The applier: every captured change reaches the other store, in the order of its versions, whatever dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest_asyncio
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from replank.migrate import authority, topics
from replank.migrate.applier import Applier, ApplierSettings
from replank.migrate.topics import Direction
from replank.outbox.relay import Relay
from replank.testing import servers
from replank.testing.plugin import FaultProxies
from replank.testing.processes import Process
from replank.testing.spans import Spans, attributes, parent_of
from replank.testing.wait import eventually
from tests.common.migrate.moving import (
    MAPPING,
    Move,
    connected,
    differences,
    migration,
    order,
    producer,
    publish,
    put,
)

SETTINGS = ApplierSettings(session_timeout=6.0, backoff=0.3)


@pytest_asyncio.fixture
async def move(postgres_server: str, kafka: str) -> AsyncIterator[Move]:
    async with migration(postgres_server, kafka) as made:
        yield made


def applier_of(
    move: Move, direction: Direction = "forward", settings: ApplierSettings = SETTINGS, target: str | None = None
) -> Applier:
    return Applier(
        mapping=move.mapping,
        kafka=move.kafka,
        source=move.source,
        target=target or move.target,
        direction=direction,
        settings=settings,
    )


@asynccontextmanager
async def running(applier: Applier) -> AsyncIterator[Applier]:
    stop = asyncio.Event()
    task = asyncio.create_task(applier.run(stop))
    try:
        yield applier
    finally:
        stop.set()
        await task


async def orders(move: Move) -> dict[str, str | None]:
    async with connected(move.target) as conn:
        return {row["id"]: row["note"] for row in await conn.fetch("select id, note from orders")}


async def test_what_is_written_to_the_store_arrives_in_the_tables(move: Move) -> None:
    async with Relay(move.source, move.kafka), running(applier_of(move)) as applier:
        async with connected(move.source) as conn:
            await put(conn, [(f"order:{n}", order(n)) for n in range(200)])
            await put(conn, [("order:3", order(3, items=[])), ("session:1", {"user": 1})])
            await conn.execute("delete from kv_store where key in ('order:5', 'order:6')")
        await eventually(lambda: _same(move), "both stores agree", within=20)
        await eventually(lambda: applier.problem == "", "all is well")
        await eventually(lambda: applier.lag().events == 0, "nothing waits")
    assert len(await orders(move)) == 198


async def _same(move: Move) -> bool:
    return not await differences(move)


async def test_the_newest_version_holds_whatever_order_changes_come_in(move: Move) -> None:
    topic = topics.topic(move.name, "forward")
    async with producer(move.kafka) as sending, running(applier_of(move)) as applier:
        await publish(sending, topic, "order:1", 7, order(1, note="seventh"))
        assert await applier.caught_up(20)
        await publish(sending, topic, "order:1", 5, order(1, note="fifth"))
        await publish(sending, topic, "order:1", 7, order(1, note="seventh"))
        await publish(sending, topic, "order:2", 9, op="delete")
        await publish(sending, topic, "order:2", 8, order(2))
        await publish(sending, topic, "order:4", 2, order(4, note="second"))
        await publish(sending, topic, "order:4", 1, order(4, note="first"))
        assert await applier.caught_up(20)
    assert await orders(move) == {"1": "seventh", "4": "second"}


async def test_numbers_arrive_as_they_were_written(move: Move) -> None:
    exact = '{"clientId":"c","weight":1.10,"big":12345678901234567890.123}'
    async with producer(move.kafka) as sending, running(applier_of(move)) as applier:
        await sending.send_and_wait(
            topics.topic(move.name, "forward"),
            b'{"key":"order:1","op":"upsert","version":1,"value":%b}' % exact.encode(),
            key=b"order:1",
            headers=[("ce_id", b"1"), ("ce_type", b"replank.schema.record.changed.v1")],
        )
        assert await applier.caught_up(20)
    async with connected(move.target) as conn:
        rest = await conn.fetchval("select rest::text from orders")
    assert "12345678901234567890.123" in rest
    assert "1.10" in rest


async def test_a_value_too_large_to_travel_is_read_where_it_was_written(move: Move) -> None:
    async with Relay(move.source, move.kafka), running(applier_of(move)):
        async with connected(move.source) as conn:
            await put(conn, [("order:1", order(1, note="x" * 400_000)), ("order:2", order(2, note="y" * 400_000))])
            await conn.execute("delete from kv_store where key = 'order:2'")

        async def arrived() -> bool:
            return {key: len(note or "") for key, note in (await orders(move)).items()} == {"1": 400_000}

        await eventually(arrived, "the large value, and no deleted one", within=20)


async def test_a_record_that_the_database_refuses_is_rejected_alone(move: Move) -> None:
    topic = topics.topic(move.name, "forward")
    async with connected(move.target) as conn:
        await conn.execute("alter table orders add constraint not_bad check (note <> 'bad')")
    async with producer(move.kafka) as sending:
        await publish(sending, topic, "order:7", 1, order(7, note="good at first"))
        async with running(applier_of(move)) as applier:
            assert await applier.caught_up(20)
            for n in range(40):
                await publish(sending, topic, f"order:{n}", n + 2, order(n, note="bad" if n in {7, 23} else "good"))
            assert await applier.caught_up(20)
            await eventually(lambda: applier.problem == "", "all is well")
    assert set(await orders(move)) == {str(n) for n in range(40)} - {"7", "23"}
    async with connected(move.target) as conn:
        rejects = await conn.fetch(
            f"select key, version, reason, value ->> 'note' as note from {move.schema}.reject order by key"
        )
        left = await conn.fetchval("select count(*) from order_items where order_id = '7'")
    assert [(row["key"], row["version"], row["note"]) for row in rejects] == [
        ("order:23", 25, "bad"),
        ("order:7", 9, "bad"),
    ]
    assert all("not_bad" in row["reason"] for row in rejects)
    assert left == 0


async def test_a_good_version_takes_the_place_of_a_rejected_one(move: Move) -> None:
    topic = topics.topic(move.name, "forward")
    async with connected(move.target) as conn:
        await conn.execute("alter table orders add constraint not_bad check (note <> 'bad')")
        async with producer(move.kafka) as sending, running(applier_of(move)) as applier:
            await publish(sending, topic, "order:1", 1, order(1, note="bad"))
            assert await applier.caught_up(20)
            await publish(sending, topic, "order:1", 2, order(1, note="good"))
            assert await applier.caught_up(20)
        assert await conn.fetchval(f"select count(*) from {move.schema}.reject") == 0
    assert await orders(move) == {"1": "good"}


async def test_a_record_that_cannot_be_read_is_never_passed_over(move: Move) -> None:
    topic = topics.topic(move.name, "forward")
    async with producer(move.kafka) as sending, running(applier_of(move)) as applier:
        await sending.send_and_wait(
            topic,
            b'{"key": "order:1"}',
            key=b"order:1",
            headers=[("ce_id", b"1"), ("ce_type", b"replank.schema.record.changed.v1")],
        )
        await publish(sending, topic, "order:1", 2, order(1))
        await eventually(lambda: "version" in applier.problem, "the applier says what it cannot read", within=20)
        assert not await applier.caught_up(0.5)
    assert await orders(move) == {}


async def test_changes_that_kafka_deleted_are_missed(move: Move) -> None:
    topic = topics.topic(move.name, "forward")
    async with producer(move.kafka) as sending, servers.kafka_admin(move.kafka) as admin:
        for version in range(1, 4):
            await publish(sending, topic, "order:1", version, order(1))
        for partition in range(3):
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=-1)})
    async with running(applier_of(move)) as applier:
        await eventually(lambda: "deleted changes" in applier.problem, "the loss is told", within=20)


async def test_a_target_that_goes_away_is_waited_for(move: Move, fault_proxy: FaultProxies) -> None:
    topic = topics.topic(move.name, "forward")
    place = urlsplit(move.target)
    proxy = await fault_proxy(f"{place.hostname}:{place.port}")
    async with (
        producer(move.kafka) as sending,
        running(applier_of(move, target=proxy.in_front_of(move.target))) as applier,
    ):
        await publish(sending, topic, "order:1", 1, order(1))
        assert await applier.caught_up(20)
        await proxy.refuse()
        proxy.cut()
        await publish(sending, topic, "order:2", 2, order(2))
        await eventually(lambda: applier.problem, "the applier says that it waits", within=20)
        assert not await applier.caught_up(0.2)
        await proxy.heal()
        assert await applier.caught_up(20)
        await eventually(lambda: applier.problem == "", "all is well")
    assert set(await orders(move)) == {"1", "2"}


async def test_an_applier_that_is_killed_again_and_again_loses_nothing(move: Move) -> None:
    topic = topics.topic(move.name, "forward")
    program = [
        "tests.common.migrate.programs.applier",
        MAPPING.format(name=move.name),
        move.source,
        move.target,
        move.kafka,
    ]
    async with producer(move.kafka) as sending:
        for n in range(600):
            await publish(sending, topic, f"order:{n % 150}", n + 1, order(n, note=f"version {n + 1}"))

    async def applied() -> int:
        async with connected(move.target) as conn:
            return int(await conn.fetchval(f"select count(*) from {move.schema}.applied"))

    for enough in (1, 60):
        async with Process(*program) as process:
            await process.line_with("started")

            async def far_enough(enough: int = enough) -> bool:
                return await applied() >= enough

            await eventually(far_enough, f"{enough} records are applied", within=30, interval=0.005)
            process.kill()
    async with running(applier_of(move)) as applier:
        assert await applier.caught_up(30)
    assert await orders(move) == {str(n): f"version {n + 451}" for n in range(150)}


async def test_transaction_marks_behind_the_last_change_are_passed(move: Move) -> None:
    topic = topics.topic(move.name, "forward")
    sending = AIOKafkaProducer(bootstrap_servers=move.kafka, transactional_id=servers.fresh_name())
    await sending.start()
    try:
        async with sending.transaction():
            await publish(sending, topic, "order:1", 1, order(1))
    finally:
        await sending.stop()
    async with running(applier_of(move)) as applier:
        assert await applier.caught_up(20)
    assert set(await orders(move)) == {"1"}


async def test_what_is_written_to_the_tables_comes_back(move: Move) -> None:
    async with connected(move.source) as source, connected(move.target) as target:
        await authority.hold(source, move.name, "source")
        await authority.open(target, move.name, "target")
        await authority.close(source, move.name, "source")
        async with Relay(move.target, move.kafka), running(applier_of(move, "reverse")):
            async with target.transaction():
                await target.execute("insert into orders (id, client_id, total) values ('1', 'c', 2.5), ('2', 'c', 3)")
                await target.execute(
                    "insert into order_items (order_id, position, sku, quantity) values ('1', 0, 's', 2)"
                )
            await target.execute("delete from orders where id = '2'")

            async def back() -> bool:
                return {
                    row["key"]: json.loads(row["value"]) for row in await source.fetch("select * from kv_store")
                } == {"order:1": {"clientId": "c", "total": 2.5, "items": [{"sku": "s", "qty": 2}]}}

            await eventually(back, "the order is a record again", within=20)


async def test_a_change_is_part_of_its_writers_trace(move: Move, spans: Spans) -> None:
    topic = topics.topic(move.name, "forward")
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with producer(move.kafka) as sending:
        await publish(sending, topic, "order:1", 1, order(1), traceparent=f"00-{trace}-{parent}-01")
        await publish(sending, topic, "order:2", 1, order(2), traceparent=f"00-{trace}-{parent}-00")
        async with running(applier_of(move)) as applier:
            assert await applier.caught_up(20)
    span = spans.one(f"process {topic}")
    assert parent_of(span) == int(parent, 16)
    assert attributes(span)["replank.migrate.outcome"] == "applied"
    async with connected(move.target) as conn:
        kept = await conn.fetchval(f"select traceparent from {move.schema}.applied where key = 'order:1'")
    assert kept.split("-")[1] == trace
    assert span.context is not None
    assert kept.split("-")[2] == f"{span.context.span_id:016x}"
