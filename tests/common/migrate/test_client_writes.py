"""Writing through a router, and through a DualWriter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
import pytest_asyncio
from opentelemetry import trace

from replank import outbox
from replank.migrate import authority, capture, retired
from replank.migrate.client import DualWriter, WriteRouter, WritesElsewhere, WritesHeld, carry_trace
from replank.outbox import NotInTransaction
from replank.testing import eventually
from replank.testing.spans import Spans, attributes

from .sides import PUT, Sides, both_sides, shop

Write = Callable[[], Awaitable[str]]


@pytest_asyncio.fixture
async def sides(postgres_server: str) -> AsyncIterator[Sides]:
    async with both_sides(postgres_server, databases=1) as installed:
        yield installed


@pytest.fixture
def in_kv(sides: Sides) -> Write:
    async def write() -> str:
        await sides.put("order:1", {"total": 1})
        return "kv"

    return write


@pytest.fixture
def in_tables(sides: Sides) -> Write:
    async def write() -> str:
        insert = "insert into orders (id, total) values ('1', 2) on conflict (id) do update set total = excluded.total"
        await sides.target.execute(insert)
        return "tables"

    return write


async def test_a_write_goes_to_the_store_that_takes_it(sides: Sides, in_kv: Write, in_tables: Write) -> None:
    router = WriteRouter("shop")
    assert await router.write(kv=in_kv, tables=in_tables) == "kv"
    await sides.flip("source")
    assert await router.write(kv=in_kv, tables=in_tables) == "tables"
    assert router.store == "tables"
    assert await sides.target.fetchval("select total from orders") == 2
    # A process that was not there at the time finds out by itself.
    assert await WriteRouter("shop").write(kv=in_kv, tables=in_tables) == "tables"
    await sides.flip("target")
    assert await router.write(kv=in_kv, tables=in_tables) == "kv"


async def test_a_held_write_waits_and_goes_where_the_authority_went(
    sides: Sides, in_kv: Write, in_tables: Write, spans: Spans
) -> None:
    async with sides.source.acquire() as conn:
        await authority.hold(conn, "shop", "source")
        attempts = 0

        async def counted() -> str:
            nonlocal attempts
            attempts += 1
            return await in_kv()

        async def write() -> str:
            with trace.get_tracer("test").start_as_current_span("write"):
                return await WriteRouter("shop").write(kv=counted, tables=in_tables)

        writing = asyncio.create_task(write())
        await eventually(lambda: attempts >= 3, "it is tried again")
        assert not writing.done()
        await authority.open(conn, "shop", "target")
        await authority.close(conn, "shop", "source")
        assert await writing == "tables"
    found = attributes(spans.one("write"))
    assert found["replank.migrate.write.store"] == "tables"
    assert found["replank.migrate.write.attempts"] == attempts + 1


async def test_a_write_that_no_store_takes_ends_with_what_was_said(
    sides: Sides, in_kv: Write, in_tables: Write
) -> None:
    async with sides.source.acquire() as conn:
        await authority.hold(conn, "shop", "source")
        with pytest.raises(WritesHeld):
            await WriteRouter("shop", patience=0.1).write(kv=in_kv, tables=in_tables)
        await authority.close(conn, "shop", "source")
        with pytest.raises(WritesElsewhere):
            await WriteRouter("shop", patience=0.1).write(kv=in_kv, tables=in_tables)


async def test_when_the_tables_are_dropped_writes_go_back_to_the_key_value_store(
    sides: Sides, in_kv: Write, in_tables: Write
) -> None:
    router = WriteRouter("shop")
    await sides.flip("source")
    assert await router.write(kv=in_kv, tables=in_tables) == "tables"
    await sides.flip("target")
    await sides.target.execute("drop table orders cascade")
    assert await router.write(kv=in_kv, tables=in_tables) == "kv"


async def test_a_missing_table_is_told_where_the_tables_take_the_writes(
    sides: Sides, in_kv: Write, in_tables: Write
) -> None:
    await sides.flip("source")
    await sides.target.execute("drop table orders cascade")
    with pytest.raises(asyncpg.UndefinedTableError, match="orders"):
        await WriteRouter("shop").write(kv=in_kv, tables=in_tables)


async def test_every_other_error_is_the_callers(in_tables: Write) -> None:
    calls = 0

    async def fails() -> str:
        nonlocal calls
        calls += 1
        raise asyncpg.UniqueViolationError("the shop's own")

    with pytest.raises(asyncpg.UniqueViolationError):
        await WriteRouter("shop").write(kv=fails, tables=in_tables)
    assert calls == 1


async def test_a_transaction_overtaken_by_a_flip_is_run_again(sides: Sides, in_tables: Write) -> None:
    attempts = 0

    async def in_kv_above_read_committed() -> str:
        nonlocal attempts
        attempts += 1
        async with sides.source.acquire() as conn, conn.transaction(isolation="repeatable_read"):
            await conn.fetch("select * from kv_store")
            if attempts == 1:
                await sides.flip("source")
            await conn.execute(PUT, "order:1", json.dumps({"total": 1}))
            return "kv"

    assert await WriteRouter("shop").write(kv=in_kv_above_read_committed, tables=in_tables) == "tables"
    assert attempts == 2


# Stores without triggers


@pytest_asyncio.fixture
async def bare(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A source whose table has no triggers."""
    conn = await asyncpg.connect(postgres_dsn)
    await outbox.install(conn)
    await conn.execute("create table kv_store (key text primary key, value jsonb not null)")
    await capture.install(conn, shop(), triggers=False)
    yield conn
    await conn.close()


async def told(conn: asyncpg.Connection) -> list[tuple[str, str, object]]:
    rows = await conn.fetch("select convert_from(value, 'UTF8') as change from replank_outbox.event order by id")
    changes = [json.loads(row["change"]) for row in rows]
    return [(change["key"], change["op"], change.get("value")) for change in changes]


async def test_a_dual_writer_tells_of_what_it_writes(bare: asyncpg.Connection) -> None:
    writer = DualWriter("shop", table="public.kv_store")
    async with bare.transaction():
        await writer.put(bare, "order:1", {"total": 1})
        await writer.put(bare, "order:1", {"total": 2})
        await writer.delete(bare, "order:1")
        await writer.delete(bare, "order:none")
    transaction = bare.transaction()
    await transaction.start()
    await writer.put(bare, "order:2", {})
    await transaction.rollback()
    assert await told(bare) == [
        ("order:1", "upsert", {"total": 1}),
        ("order:1", "upsert", {"total": 2}),
        ("order:1", "delete", None),
    ]
    assert await bare.fetchval("select count(*) from kv_store") == 0


async def test_what_a_dual_writer_did_not_find_it_does_not_tell_of(bare: asyncpg.Connection, postgres_dsn: str) -> None:
    writer = DualWriter("shop", table="kv_store")
    other = await asyncpg.connect(postgres_dsn)
    async with other.transaction():
        await writer.put(other, "order:1", {"total": 1})
        # It does not see the record, which is there afterwards.
        async with bare.transaction():
            await writer.delete(bare, "order:1")
    await other.close()
    assert await bare.fetchval("select count(*) from kv_store") == 1
    assert [op for _, op, _ in await told(bare)] == ["upsert"]


async def test_a_dual_writer_keeps_to_the_authority(bare: asyncpg.Connection) -> None:
    writer = DualWriter("shop", table="kv_store")
    await authority.hold(bare, "shop", "source")
    with pytest.raises(WritesHeld):
        async with bare.transaction():
            await writer.put(bare, "order:1", {})
    await authority.close(bare, "shop", "source")
    with pytest.raises(WritesElsewhere):
        async with bare.transaction():
            await writer.delete(bare, "order:1")
    assert await told(bare) == []


async def test_a_dual_writer_needs_a_transaction(bare: asyncpg.Connection) -> None:
    with pytest.raises(NotInTransaction):
        await DualWriter("shop", table="kv_store").put(bare, "order:1", {})


async def test_a_dual_writer_only_writes_before_a_migration_and_after_one_that_was_taken_back(
    bare: asyncpg.Connection, postgres_dsn: str
) -> None:
    writer = DualWriter("shop", table="kv_store")
    await capture.remove(bare, "shop")
    early = await asyncpg.connect(postgres_dsn)
    transaction = early.transaction(isolation="repeatable_read")
    await transaction.start()
    await early.fetchval("select count(*) from kv_store")
    async with bare.transaction():
        await writer.put(bare, "order:1", {})
    await capture.install(bare, shop(), triggers=False)
    # Its snapshot knows of no migration: it may not write past it, and has to be run again.
    with pytest.raises(WritesElsewhere):
        await writer.put(early, "order:2", {})
    await transaction.rollback()
    async with early.transaction(isolation="repeatable_read"):
        await writer.put(early, "order:2", {})
    await early.close()
    assert await told(bare) == [("order:2", "upsert", {})]
    assert await bare.fetchval("select count(*) from kv_store") == 2


async def test_a_migration_by_a_writer_begins_when_those_who_did_not_tell_have_ended(
    bare: asyncpg.Connection, postgres_dsn: str
) -> None:
    await capture.remove(bare, "shop")
    early = await asyncpg.connect(postgres_dsn)
    async with early.transaction():
        await DualWriter("shop", table="kv_store").put(early, "order:1", {})
        installing = asyncio.create_task(capture.install(bare, shop(), triggers=False))
        waits = "select exists (select from pg_locks where relation = 'kv_store'::regclass and not granted)"
        await eventually(lambda: early.fetchval(waits), "it waits")
        assert not installing.done()
    await installing
    await early.close()
    assert await told(bare) == []


async def test_a_dual_writer_of_a_retired_migration_sends_its_writes_to_the_tables(
    bare: asyncpg.Connection,
) -> None:
    writer = DualWriter("shop", table="kv_store")
    await retired.close(bare, "shop", "source", ["kv_store"], triggers=False)
    await capture.remove(bare, "shop")

    async def in_kv() -> str:
        async with bare.transaction():
            await writer.put(bare, "order:1", {})
        return "kv"

    async def in_tables() -> str:
        return "tables"

    assert await WriteRouter("shop").write(kv=in_kv, tables=in_tables) == "tables"
    assert await bare.fetchval("select count(*) from kv_store") == 0
    await bare.execute(retired.opened_by("shop", "source"))
    assert await in_kv() == "kv"


async def test_the_trace_of_a_write_is_that_of_its_change(bare: asyncpg.Connection, spans: Spans) -> None:
    with trace.get_tracer("test").start_as_current_span("request") as span:
        async with bare.transaction():
            await DualWriter("shop", table="kv_store").put(bare, "order:1", {})
        async with bare.transaction():
            await carry_trace(bare)
            await bare.execute("select replank_m_shop.written(array['order:1'])")
    trace_id = f"{span.get_span_context().trace_id:032x}"
    carried = await bare.fetch("select traceparent from replank_outbox.event")
    assert [row["traceparent"].split("-")[1] for row in carried] == [trace_id, trace_id]
