"""Reading through a router: whose turn it is, falling back, one's own writes, comparing in the background."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from openfeature import api
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider
from opentelemetry import trace

from replank import flags
from replank.contracts.flags import FlagChanged
from replank.flags import Flag
from replank.flags.provider import FlagProvider
from replank.migrate import capture, reverse
from replank.migrate.client import NotAppliedYet, ReadRouter, ReadSettings, Token, token_of
from replank.telemetry import metrics
from replank.testing import eventually
from replank.testing.plugin import TopicFactory
from replank.testing.spans import Spans, attributes, parent_of

from .sides import PUT, Sides, both_sides

SETTINGS = ReadSettings(
    tables_timeout=0.3, token_timeout=0.3, comparisons=2, looks=(0.0, 0.0), report_interval=0.05, comparison_timeout=5
)
FLAG = "migrate.shop.reads.order.get"


@pytest.fixture(autouse=True)
def flag() -> Iterator[dict[str, InMemoryFlag[Any]]]:
    """The flags of the process; OpenFeature keeps them for the whole of it."""
    known: dict[str, InMemoryFlag[Any]] = {}
    provider = InMemoryProvider(known)
    provider._flags = known
    api.set_provider_and_wait(provider)
    yield known
    api.shutdown()


class Shop:
    """An endpoint of an application, with the two ways to answer it."""

    def __init__(self, sides: Sides, router: ReadRouter, flag: dict[str, InMemoryFlag[Any]]) -> None:
        self.sides = sides
        self.router = router
        self.flag = flag
        self.asked: list[str] = []

    def mode(self, value: str) -> None:
        self.flag[FLAG] = InMemoryFlag("on", {"on": value})

    async def kv(self) -> Any:
        self.asked.append("kv")
        return await self.sides.value("order:1")

    async def tables(self) -> Any:
        self.asked.append("tables")
        return await self.sides.record("order:1")

    async def get(self, **how: Any) -> Any:
        self.asked.clear()
        how = {"kv": self.kv, "tables": self.tables} | how
        return await self.router.read("order.get", **how)

    async def put(self, value: Any) -> Token:
        async with self.sides.source.acquire() as conn, conn.transaction():
            await conn.execute(PUT, "order:1", value)
            return await token_of(conn)

    async def counted(self) -> dict[str, int]:
        rows = await self.sides.target.fetch("select outcome, reads from replank_m_shop.compared_read")
        return {row["outcome"]: row["reads"] for row in rows}


@pytest_asyncio.fixture
async def shop(postgres_server: str, flag: dict[str, InMemoryFlag[Any]]) -> AsyncIterator[Shop]:
    async with both_sides(postgres_server, databases=1) as sides:
        router = ReadRouter("shop", source=sides.source, target=sides.target, flags=api.get_client(), settings=SETTINGS)
        async with router:
            yield Shop(sides, router, flag)


def sample(metric: Any, *labels: str) -> float:
    return float(metric.labels("shop", "order.get", *labels)._value.get())


# Whose turn it is


async def test_without_a_flag_the_key_value_store_answers(shop: Shop) -> None:
    await shop.put('{"total": 1}')
    assert await shop.get() == {"total": 1}
    assert shop.asked == ["kv"]


async def test_each_mode_asks_whom_it_names(shop: Shop) -> None:
    await shop.put('{"total": 1}')
    await shop.sides.carry()
    for mode, asked in (("kv", ["kv"]), ("new_with_fallback", ["tables"]), ("new", ["tables"])):
        shop.mode(mode)
        assert await shop.get() == {"total": 1}
        assert shop.asked == asked


async def test_a_mode_that_does_not_exist_reads_as_before(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.mode("tables")
    await shop.get()
    await shop.get()
    assert shop.asked == ["kv"]
    assert [record.message for record in caplog.records if "'tables'" in record.message].__len__() == 1


async def test_a_change_of_a_flag_holds_for_the_next_read(shop: Shop, kafka: str, topic_factory: TopicFactory) -> None:
    topic = await topic_factory(partitions=1, config={"cleanup.policy": "compact"})
    async with shop.sides.source.acquire() as conn:
        await flags.install(conn)
    users = [f"user:{n}" for n in range(200)]

    def modes() -> Counter[str]:
        return Counter(shop.router.mode("order.get", user) for user in users)

    async with (
        FlagProvider(shop.sides.source, kafka=kafka, topic=topic) as provider,
        AIOKafkaProducer(bootstrap_servers=kafka) as producer,
    ):
        await asyncio.to_thread(api.set_provider_and_wait, provider)

        async def tell(version: int, mode: str, rollout: float) -> None:
            told = Flag(FLAG, mode, True, rollout, version, False, "user:ada", "", datetime.now(UTC))
            headers = [("ce_type", FlagChanged.event_type.encode())]
            await producer.send_and_wait(topic, told.changed().to_value(), key=FLAG.encode(), headers=headers)

        assert modes() == {"kv": 200}
        await tell(1, "compare", 100.0)
        await eventually(lambda: modes() == {"compare": 200}, "everybody compares")
        await tell(2, "new", 40.0)
        # Whom a rollout does not reach reads as before the migration.
        await eventually(lambda: set(modes()) == {"new", "kv"}, "some read the tables")
        assert 50 < modes()["new"] < 110
        assert modes() == modes()
        await tell(3, "new", 0.0)
        await eventually(lambda: modes() == {"kv": 200}, "everybody is back")


# Falling back


async def fails() -> Any:
    raise asyncpg.UndefinedTableError("no such table")


async def hangs() -> Any:
    await asyncio.Event().wait()


async def nothing() -> Any:
    return None


@pytest.mark.parametrize(("tables", "reason"), [(fails, "error"), (hangs, "timeout"), (nothing, "missing")])
async def test_what_the_tables_cannot_answer_the_key_value_store_does(
    shop: Shop, tables: Any, reason: str, spans: Spans
) -> None:
    await shop.put('{"total": 1}')
    shop.mode("new_with_fallback")
    before = sample(metrics.MIGRATE_FALLBACKS, reason)
    with trace.get_tracer("test").start_as_current_span("request"):
        assert await shop.get(tables=tables) == {"total": 1}
    assert sample(metrics.MIGRATE_FALLBACKS, reason) == before + 1
    found = attributes(spans.one("request"))
    assert found["replank.migrate.endpoint"] == "order.get"
    assert found["replank.migrate.read.mode"] == "new_with_fallback"
    assert (found["replank.migrate.read.store"], found["replank.migrate.read.fallback"]) == ("kv", reason)
    shop.mode("new")
    if tables is fails:
        with pytest.raises(asyncpg.UndefinedTableError):
            await shop.get(tables=tables)


async def test_the_caller_says_what_missing_is(shop: Shop) -> None:
    shop.mode("new_with_fallback")

    async def none_of_them() -> list[int]:
        return []

    async def some() -> list[int]:
        return [1]

    assert await shop.router.read("order.list", kv=some, tables=none_of_them) == [1]
    shop.flag["migrate.shop.reads.order.list"] = InMemoryFlag("on", {"on": "new_with_fallback"})
    assert await shop.router.read("order.list", kv=some, tables=none_of_them) == []
    assert await shop.router.read("order.list", kv=some, tables=none_of_them, missing=lambda found: not found) == [1]


async def test_a_reader_who_goes_away_is_not_answered_by_another_store(shop: Shop) -> None:
    shop.mode("new_with_fallback")
    started = asyncio.Event()

    async def slow() -> Any:
        started.set()
        await asyncio.Event().wait()

    reading = asyncio.create_task(shop.get(tables=slow))
    await started.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert shop.asked == []


# One's own writes


async def test_what_was_written_is_read_wherever_one_reads(shop: Shop) -> None:
    token = await shop.put('{"total": 1}')
    shop.mode("new_with_fallback")
    before = sample(metrics.MIGRATE_FALLBACKS, "token")
    assert await shop.get(token=token) == {"total": 1}
    assert shop.asked == ["kv"]
    assert sample(metrics.MIGRATE_FALLBACKS, "token") == before + 1
    await shop.sides.carry()
    assert await shop.get(token=token) == {"total": 1}
    assert shop.asked == ["tables"]
    # An older version that was applied is not what was written.
    token = await shop.put('{"total": 2}')
    assert await shop.get(token=token) == {"total": 2}
    assert shop.asked == ["kv"]


async def test_where_only_the_tables_may_answer_a_read_waits_for_its_writes(shop: Shop) -> None:
    shop.mode("new")
    token = await shop.put('{"total": 1}')
    with pytest.raises(NotAppliedYet):
        await shop.get(token=token)
    reading = asyncio.create_task(shop.get(token=token))
    await shop.sides.carry()
    assert await reading == {"total": 1}
    assert shop.asked == ["tables"]


async def test_after_the_cut_over_the_way_back_is_waited_for_too(shop: Shop) -> None:
    await shop.put('{"total": 1}')
    await shop.sides.flip("source")
    async with shop.sides.target.acquire() as conn, conn.transaction():
        await conn.execute("update orders set total = 2")
        token = await token_of(conn)
    # The key-value store does not have it, and it is its turn: the tables, which took the write, do.
    assert await shop.get(token=token) == {"total": 2}
    assert shop.asked == ["tables"]
    reading = asyncio.create_task(shop.get(token=token))
    await shop.sides.carry("target")
    assert await reading == {"total": 2}
    assert shop.asked == ["kv"]


async def test_the_store_that_takes_the_writes_has_them_all(shop: Shop) -> None:
    token = Token.parse("s9000000000000000000:order:of-a-migration-long-ago")
    shop.mode("new")
    await shop.put('{"total": 1}')
    await shop.sides.flip("source")
    assert await shop.get(token=token) == {"total": 1}


async def test_a_token_outlives_the_migration(shop: Shop) -> None:
    token = await shop.put('{"total": 1}')
    await shop.sides.carry()
    async with shop.sides.source.acquire() as conn:
        await capture.remove(conn, "shop")
        await reverse.remove(conn, shop.sides.mapping)
        await conn.execute("drop table replank_m_shop.applied, replank_m_shop.authority")
    shop.mode("new")
    assert await shop.get(token=token.then(Token.parse("t9:order:1,s9:order:2"))) == {"total": 1}


async def test_what_was_applied_falls_out_of_a_token(shop: Shop) -> None:
    token = await shop.put('{"total": 1}')
    await shop.sides.carry()
    later = token.then(Token.parse("s9000000000000000000:order:2"))
    assert str(await shop.router.unapplied(later)) == "s9000000000000000000:order:2"
    assert await shop.router.unapplied(token) == Token()


async def test_a_token_that_comes_back_asks_the_database_once(shop: Shop) -> None:
    token = await shop.put('{"total": 1}')
    await shop.sides.carry()
    shop.mode("new")
    assert await shop.get(token=token) == {"total": 1}
    await shop.sides.target.execute("drop table replank_m_shop.applied")
    shop.router._pools["target"] = None  # type: ignore[assignment] # nobody to ask
    assert await shop.get(token=token) == {"total": 1}


# Comparing


async def as_applier(shop: Shop, statement: str) -> None:
    """Change the tables behind the back of everybody who would tell."""
    async with shop.sides.target.acquire() as conn, conn.transaction():
        await conn.execute("set local replank_migrate.applier = 'shop'")
        await conn.execute(statement)


async def test_answers_that_agree_are_counted_where_the_migration_looks(shop: Shop, spans: Spans) -> None:
    await shop.put('{"total": 1}')
    await shop.sides.carry()
    shop.mode("compare")
    before = sample(metrics.MIGRATE_COMPARED, "match")
    with trace.get_tracer("test").start_as_current_span("request") as request:
        assert await shop.get() == {"total": 1}
    await eventually(lambda: spans.named("compare order.get"), "the tables are asked in the background")
    compared = spans.one("compare order.get")
    assert parent_of(compared) == request.get_span_context().span_id
    assert attributes(compared)["replank.migrate.read.outcome"] == "match"
    assert sample(metrics.MIGRATE_COMPARED, "match") == before + 1
    await eventually(shop.counted, "the count is reported")
    await shop.get()
    await shop.router.close()
    assert await shop.counted() == {"match": 2}


async def test_answers_that_differ_are_a_mismatch_and_never_the_answer(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.put('{"total": 1, "note": "secret"}')
    await shop.sides.carry()
    await as_applier(shop, "update orders set total = 2")
    shop.mode("compare")
    assert await shop.get() == {"total": 1, "note": "secret"}
    await shop.router.close()
    assert await shop.counted() == {"mismatch": 1}
    (told,) = [record for record in caplog.records if "differently" in record.message]
    assert told.different == ["total"]  # type: ignore[attr-defined]
    assert "secret" not in caplog.text
    await shop.get(ignore=["total"])
    await shop.router.close()
    assert await shop.counted() == {"mismatch": 1, "match": 1}


async def test_a_write_on_its_way_is_no_mismatch(shop: Shop) -> None:
    await shop.put('{"total": 1}')
    shop.mode("compare")
    looked = 0

    async def tables() -> Any:
        nonlocal looked
        looked += 1
        if looked == 2:
            await shop.sides.carry()
        return await shop.tables()

    await shop.get(tables=tables)
    await shop.router.close()
    assert await shop.counted() == {"late": 1}


@pytest.mark.parametrize("late", ["order:1", "order:2"])
async def test_while_a_change_before_the_read_is_not_applied_nobody_can_tell(shop: Shop, late: str) -> None:
    await shop.put('{"total": 1}')
    await shop.sides.carry()
    await shop.sides.put(late, {"total": 2})
    await as_applier(shop, "update orders set total = 3")
    shop.mode("compare")
    await shop.get()
    await shop.router.close()
    assert await shop.counted() == {"unsettled": 1}
    # Once it is applied, a difference is told by the next read.
    await shop.sides.carry()
    await as_applier(shop, "update orders set total = 3")
    await shop.get()
    await shop.router.close()
    assert await shop.counted() == {"unsettled": 1, "mismatch": 1}


async def test_only_what_was_told_before_the_read_and_will_be_applied_is_waited_for(shop: Shop) -> None:
    behind = shop.router._comparisons._behind
    await shop.put('{"total": 1}')
    assert await behind(0)
    assert not await behind(60)
    await shop.sides.carry()
    assert not await behind(0)
    await shop.sides.put("order:💩", {"total": 1})
    assert await behind(0)
    # What an operator took out of the way never comes.
    await shop.sides.source.execute(
        """
        insert into replank_outbox.quarantine (event_id, id, reason, created_at, topic, type, source)
        select event_id, id, 'too large', created_at, topic, type, source from replank_outbox.event
        """
    )
    assert not await behind(0)


async def test_after_the_cut_over_the_key_value_store_is_waited_for(shop: Shop) -> None:
    await shop.put('{"total": 1}')
    await shop.sides.flip("source")
    behind = shop.router._comparisons._behind
    assert not await behind(0)
    await shop.sides.target.execute("update orders set total = 2")
    assert await behind(0)
    await shop.sides.carry("target")
    assert not await behind(0)


async def test_a_record_that_never_stands_still_is_no_mismatch(shop: Shop) -> None:
    shop.mode("compare")
    count = 0

    async def kv() -> Any:
        nonlocal count
        count += 1
        return {"total": count}

    async def tables() -> Any:
        return {"total": 0}

    await shop.get(kv=kv, tables=tables)
    await shop.router.close()
    assert await shop.counted() == {"unsettled": 1}


async def test_what_the_caller_does_to_its_answer_is_no_difference(shop: Shop) -> None:
    await shop.put('{"total": 1}')
    await shop.sides.carry()
    shop.mode("compare")
    answer = await shop.get()
    answer["total"] = 2
    await shop.router.close()
    assert await shop.counted() == {"match": 1}


async def test_comparing_never_fails_a_read(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.mode("compare")

    async def unheard_of() -> Any:
        return object()

    async def secretive() -> Any:
        raise ValueError("secret")

    await shop.get(tables=secretive)
    await shop.get(kv=unheard_of)
    await shop.router.close()
    assert await shop.counted() == {"error": 2}
    assert "secret" not in caplog.text


async def test_too_many_comparisons_are_dropped_and_counted(shop: Shop) -> None:
    shop.mode("compare")
    gate = asyncio.Event()

    async def slow() -> Any:
        await gate.wait()

    for _ in range(5):
        await shop.get(tables=slow)
    gate.set()
    await shop.router.close()
    assert await shop.counted() == {"dropped": 3, "match": 2}


async def test_closing_cancels_what_does_not_end(shop: Shop) -> None:
    shop.mode("compare")
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow() -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await shop.get(tables=slow)
    await begun.wait()
    await shop.router.close(within=0.05)
    assert ended.is_set()


async def test_counts_that_cannot_be_reported_are_kept(shop: Shop) -> None:
    await shop.put('{"total": 1}')
    await shop.sides.carry()
    shop.mode("compare")
    await shop.sides.target.execute("alter table replank_m_shop.compared_read rename to away")
    await shop.get()
    await shop.router.close()
    await shop.sides.target.execute("alter table replank_m_shop.away rename to compared_read")
    await shop.router.close()
    assert await shop.counted() == {"match": 1}


async def test_the_application_needs_few_rights(shop: Shop) -> None:
    token = await shop.put('{"total": 1}')
    await shop.sides.carry()
    async with shop.sides.source.acquire() as conn:
        await conn.execute("create role shop_reader")
        try:
            await capture.grant_client(conn, "shop", "shop_reader")
            await reverse.grant_client(conn, "shop", "shop_reader")
            await conn.execute("set role shop_reader")
            pool = OneConnection(conn)
            router = ReadRouter("shop", source=pool, target=pool, flags=api.get_client(), settings=SETTINGS)
            assert await router.unapplied(token.then(Token.parse("t9:order:1"))) == Token()
            assert await router.unapplied(Token.parse("s9000000000000000000:order:1"))
            router._comparisons._count("order.get", "match")
            await router.close()
            await conn.execute("reset role")
            assert await shop.counted() == {"match": 1}
        finally:
            await conn.execute("reset role; drop owned by shop_reader; drop role shop_reader")


class OneConnection:
    """A pool of one connection, lent again and again."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    def acquire(self) -> OneConnection:
        return self

    async def __aenter__(self) -> Any:
        return self.conn

    async def __aexit__(self, *_: object) -> None:
        return None
