"""The relay on real servers: what is committed reaches Kafka, in order, whatever happens to the relay."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import datetime
from uuid import UUID

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from replank import outbox
from replank.events import Event
from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings
from replank.telemetry import metrics
from replank.testing.plugin import FaultProxies, TopicFactory
from replank.testing.wait import eventually
from tests.common.outbox.events import header, published, put, put_many
from tests.common.outbox.recording import Log

FAST = RelaySettings(lease=1.5, checkpoint=0.05, backoff=0.3, delivery_timeout=5)


async def _drained(db: asyncpg.Pool) -> bool:
    async with db.acquire() as conn:
        return (await outbox.status(conn)).depth == 0


async def test_a_record_is_a_cloudevent_in_binary_mode(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str
) -> None:
    class Placed(Event, type="test.outbox.placed.v1", topic=topic):
        number: int

    async with db.acquire() as conn, conn.transaction():
        event_id = await outbox.append(
            conn, Placed(number=1), key="order-1", subject="order/1", headers={"tenant": "ä"}, source="test"
        )
        await put(conn, topic, "order-1", None)
    async with Relay(postgres_dsn, kafka, FAST):
        first, tombstone = await published(kafka, topic, 2)
    assert (first.key, json.loads(first.value or b"")) == (b"order-1", {"number": 1})
    headers = {name: value.decode() for name, value in first.headers}
    occurred = datetime.fromisoformat(headers.pop("ce_time"))
    stored = await db.fetchval("select created_at from replank_outbox.event where event_id = $1", event_id)
    assert occurred == stored
    assert headers == {
        "ce_specversion": "1.0",
        "ce_id": str(event_id),
        "ce_type": "test.outbox.placed.v1",
        "ce_source": "test",
        "ce_subject": "order/1",
        "content-type": "application/json",
        "tenant": "ä",
    }
    assert tombstone.value is None
    assert tombstone.partition == first.partition


async def test_many_writers_with_contended_keys_lose_nothing_and_keep_commit_order(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str
) -> None:
    """Rollbacks, savepoints and slow transactions in between. The order is witnessed by a table under the same lock."""
    await db.execute("create table ledger (key text, turn integer, event_id text, primary key (key, turn))")

    async def write(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            keys = sorted(chance.sample("abcdefgh", chance.randint(1, 3)))
            async with db.acquire() as conn:
                transaction = conn.transaction()
                await transaction.start()
                ids = await put_many(conn, topic, keys)
                # Whoever holds the key's lock sees every transaction that had it before.
                await conn.executemany(
                    "insert into ledger select $1, coalesce(max(turn), 0) + 1, $2 from ledger where key = $1",
                    list(zip(keys, ids, strict=True)),
                )
                if chance.random() < 0.1:
                    await conn.execute("select pg_sleep(0.05)")
                await (transaction.rollback() if chance.random() < 0.2 else transaction.commit())

    async with Relay(postgres_dsn, kafka, FAST):
        await asyncio.gather(*(write(seed) for seed in range(8)))
        ledger = await db.fetch("select key, event_id from ledger order by key, turn")
        records = await published(kafka, topic, len(ledger))
    ids = [header(record, "ce_id") for record in records]
    assert len(ids) == len(set(ids)) == len(ledger)
    for key in "abcdefgh":
        of_key = [header(record, "ce_id") for record in records if record.key == key.encode()]
        assert of_key == [row["event_id"] for row in ledger if row["key"] == key]


async def test_a_long_transaction_delays_only_itself(db: asyncpg.Pool, postgres_dsn: str) -> None:
    log = Log()
    async with (
        Relay(postgres_dsn, "unused:0", FAST, publisher_factory=log.publisher),
        db.acquire() as slow,
        db.acquire() as quick,
    ):
        transaction = slow.transaction()
        await transaction.start()
        late = await put(slow, "t", "slow")
        others = [await put(quick, "t", "quick") for _ in range(5)]
        await eventually(lambda: log.ids() == others, "the others are published while it is open")
        await transaction.commit()
        await eventually(lambda: log.ids() == [*others, late], "and it is not skipped afterwards")


async def test_large_values_are_published_without_holding_a_page_of_them(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str
) -> None:
    values = [bytes([65 + number]) * size for number, size in enumerate([10, 20_000, 900_000, 5, 400_000, 8192, 8193])]
    async with db.acquire() as conn:
        for value in values:
            await put(conn, topic, "k", value)
    settings = FAST.model_copy(update={"page_bytes": 500_000})
    async with Relay(postgres_dsn, kafka, settings):
        records = await published(kafka, topic, len(values))
    assert [record.value for record in records] == values


async def test_a_backlog_is_drained_in_few_statements_and_leaves_no_dead_tuples(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str
) -> None:
    async with db.acquire() as conn:
        ids = await put_many(conn, topic, [f"key-{number % 100}" for number in range(20_000)], b"x" * 200)
        before = metrics.OUTBOX_STATEMENTS.labels("0")._value.get()
        async with Relay(postgres_dsn, kafka, FAST):
            await eventually(lambda: _drained(db), "everything is published", within=60)
        statements = metrics.OUTBOX_STATEMENTS.labels("0")._value.get() - before
        records = await published(kafka, topic, len(ids))
        assert sorted(filter(None, (header(record, "ce_id") for record in records))) == sorted(ids)
        assert statements / len(ids) < 0.01
        await conn.execute("select pg_stat_force_next_flush()")
        dead = await conn.fetchval("select sum(n_dead_tup) from pg_stat_user_tables where relname like 'event\\_%'")
        assert dead == 0


async def test_keys_land_where_every_other_producer_puts_them(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic_factory: TopicFactory
) -> None:
    topic = await topic_factory(partitions=7)
    keys = [f"schlüssel-{number}" for number in range(50)]
    async with db.acquire() as conn:
        await put_many(conn, topic, keys)
    async with Relay(postgres_dsn, kafka, FAST):
        ours = {record.key: record.partition for record in await published(kafka, topic, len(keys))}
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for key in keys:
            sent = await producer.send_and_wait(topic, b"x", key=key.encode())
            assert ours[key.encode()] == sent.partition


async def test_it_goes_on_by_itself_after_postgres_was_away(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str, fault_proxy: FaultProxies
) -> None:
    postgres_proxy = await fault_proxy(_address(postgres_dsn))
    through = postgres_dsn.replace(_address(postgres_dsn), postgres_proxy.address)
    async with Relay(through, kafka, FAST) as relay:
        async with db.acquire() as conn:
            first = await put(conn, topic, "k")
            await published(kafka, topic, 1)
            await eventually(lambda: relay.healthy, "it is healthy")
            await postgres_proxy.refuse()
            postgres_proxy.cut()
            await eventually(lambda: not relay.healthy, "it says that Postgres is away")
            second = await put(conn, topic, "k")
            await postgres_proxy.heal()
            records = await published(kafka, topic, 2)
        await eventually(lambda: relay.healthy, "it is healthy again")
    assert list(dict.fromkeys(header(record, "ce_id") for record in records)) == [first, second]


async def test_a_silent_postgres_ends_the_session_and_not_the_lease(
    db: asyncpg.Pool, postgres_dsn: str, fault_proxy: FaultProxies
) -> None:
    """Once while there is nothing to publish, once in the middle of a backlog: nothing is missing, in order."""
    proxy = await fault_proxy(_address(postgres_dsn))
    log = Log()
    settings = FAST.model_copy(update={"lease": 60.0, "read_timeout": 0.3, "page_rows": 10})
    async with (
        Relay(proxy.in_front_of(postgres_dsn), "unused:0", settings, publisher_factory=log.publisher) as relay,
        db.acquire() as conn,
    ):
        await eventually(lambda: relay.healthy, "it polls")
        proxy.stall()
        await eventually(lambda: "no answer in time" in relay.problem, "it gives up the poll", within=5)
        # One page is held back, so that the silence begins while the others are read.
        log.hold = asyncio.Event()
        ids = await put_many(conn, "t", [str(number % 7) for number in range(300)])
        await proxy.heal()
        await eventually(lambda: log.held, "the backlog has begun", within=5)
        proxy.stall()
        log.hold.set()
        await eventually(lambda: "no answer in time" in relay.problem, "it gives up the page", within=5)
        assert len(log.first_deliveries()) < len(ids)
        await proxy.heal()
        await eventually(
            lambda: [record.event_id for record in log.first_deliveries()] == ids, "all of it arrives", within=5
        )
        assert await conn.fetchval("select token from replank_outbox.shard") == 1


def _address(dsn: str) -> str:
    return dsn.split("@", 1)[1].split("/", 1)[0]


async def test_a_kafka_that_is_away_is_waited_for(db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str) -> None:
    settings = FAST.model_copy(update={"delivery_timeout": 0.5})
    async with db.acquire() as conn:
        await put(conn, topic, "k")
    async with Relay(postgres_dsn, "127.0.0.1:1", settings) as relay:
        await eventually(lambda: "Kafka" in relay.problem, "it says that Kafka is away")
    assert not await _drained(db)
    async with Relay(postgres_dsn, kafka, FAST):
        await published(kafka, topic, 1)


async def test_stopping_gives_the_shards_back_at_once(db: asyncpg.Pool, postgres_dsn: str) -> None:
    log = Log()
    settings = FAST.model_copy(update={"lease": 60.0})
    async with Relay(postgres_dsn, "unused:0", settings, publisher_factory=log.publisher) as relay:
        await eventually(lambda: relay.shards == [0], "it has the shard")
    assert await db.fetchval("select owner is null and lease_until = '-infinity' from replank_outbox.shard")
    assert await db.fetchval("select count(*) from replank_outbox.relay") == 0
    async with Relay(postgres_dsn, "unused:0", settings, publisher_factory=log.publisher) as relay:
        await eventually(lambda: relay.shards == [0], "the next one need not wait for the lease to end", within=5)


async def test_a_database_without_an_outbox_is_reported_and_waited_for(pool: asyncpg.Pool, postgres_dsn: str) -> None:
    log = Log()
    async with Relay(postgres_dsn, "unused:0", FAST, publisher_factory=log.publisher) as relay:
        await eventually(lambda: "outbox install" in relay.problem, "it says what to do")
        async with pool.acquire() as conn:
            await outbox.install(conn)
            event_id = await put(conn, "t", "k")
        await eventually(lambda: log.ids() == [event_id], "it begins as soon as it can")


async def test_notify_wakes_a_relay_that_polls_rarely(pool: asyncpg.Pool, postgres_dsn: str) -> None:
    async with pool.acquire() as conn:
        await outbox.install(conn, notify=True)
    log = Log()
    settings = FAST.model_copy(update={"wake": "notify", "poll_interval": 30.0})
    async with Relay(postgres_dsn, "unused:0", settings, publisher_factory=log.publisher) as relay:
        await eventually(lambda: relay.healthy, "it is up")
        async with pool.acquire() as conn:
            event_id = await put(conn, "t", "k")
        await eventually(lambda: log.ids() == [event_id], "it is published long before the next poll", within=5)


async def test_an_event_that_kafka_refuses_stops_its_shard_until_somebody_decides(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str, topic_factory: TopicFactory
) -> None:
    small = await topic_factory(partitions=1, config={"max.message.bytes": "2000"})
    async with db.acquire() as conn:
        before = await put_many(conn, topic, ["k"] * 5)
        refused = await put(conn, small, "k", b"x" * 5000)
        after = await put_many(conn, topic, ["k"] * 5)
        with pytest.raises(outbox.NotStuck):
            await outbox.quarantine(conn, UUID(after[0]), "not this one")
        async with Relay(postgres_dsn, kafka, FAST) as relay:
            await eventually(lambda: f"stuck at event {refused}" in relay.problem, "it says where", within=20)
            (shard,) = (await outbox.status(conn)).shards
            assert str(shard.stuck_event_id) == refused
            assert "MessageSizeTooLarge" in (shard.stuck_reason or "")
            assert "stuck" in {finding.code for finding in await outbox.verify(conn)}
            assert metrics.OUTBOX_STUCK.labels("0")._value.get() == 1
            await outbox.quarantine(conn, UUID(refused), "too large, see ticket 7")
            await eventually(lambda: relay.healthy, "it is well again")
            await eventually(lambda: _drained(db), "the cursor is past it")
        # What shared its page was taken by Kafka and is published again: at least once, and first deliveries in order.
        records = await published(kafka, topic, 10)
        assert list(dict.fromkeys(header(record, "ce_id") for record in records)) == before + after
        assert await published(kafka, small) == []
        (kept,) = await conn.fetch("select event_id::text, reason, value from replank_outbox.quarantine")
        assert tuple(kept) == (refused, "too large, see ticket 7", b"x" * 5000)
        assert (await outbox.status(conn)).shards[0].stuck_event_id is None


async def test_a_stuck_shard_heals_by_itself_when_the_cause_goes_away(db: asyncpg.Pool, postgres_dsn: str) -> None:
    log = Log()
    log.refused = {"bad"}
    async with db.acquire() as conn:
        ids = [await put(conn, name, "k") for name in ("good", "bad", "good")]
        async with Relay(postgres_dsn, "unused:0", FAST, publisher_factory=log.publisher) as relay:
            await eventually(lambda: "stuck" in relay.problem, "it is stuck")
            assert log.ids() == ids[:1]
            log.refused.clear()
            await eventually(lambda: log.ids() == ids, "it goes on")
