"""Authority: one store takes the writes at every moment, and the databases see to it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from functools import partial
from typing import Literal
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from replank.connection import Connection
from replank.migrate import authority
from replank.migrate.authority import NoAuthority, Side, WritesElsewhere, WritesHeld, WrongStep
from replank.migrate.client import WriteRouter
from replank.migrate.locks import LocksNotGranted
from replank.testing import eventually

from .sides import PUT, Sides, both_sides, install, shop

Isolation = Literal["read_committed", "repeatable_read", "serializable"]

INSERT_ORDER = "insert into orders (id, total) values ($1, $2)"


@pytest_asyncio.fixture
async def sides(postgres_server: str) -> AsyncIterator[Sides]:
    async with both_sides(postgres_server) as installed:
        yield installed


@pytest_asyncio.fixture
async def source(sides: Sides) -> AsyncIterator[Connection]:
    async with sides.source.acquire() as conn:
        yield conn


async def refused(write: str, conn: Connection | asyncpg.Pool, *arguments: object) -> object:
    """What the database says to a write, as the library understands it; None when it takes it."""
    try:
        await conn.execute(write, *arguments)
    except asyncpg.PostgresError as error:
        found = authority.refusal(error)
        if found is None:
            raise
        return type(found)
    return None


async def until_held(sides: Sides, side: Side) -> None:
    """Wait until everybody knows that a side is held."""

    async def held() -> bool:
        async with sides.pool(side).acquire() as conn:
            return await authority.state(conn, "shop", side) == "held"

    await eventually(held, f"the {side} is held")


async def test_the_key_value_store_is_open_and_the_tables_are_closed_at_first(sides: Sides, source: Connection) -> None:
    assert await authority.state(source, "shop", "source") == "open"
    async with sides.target.acquire() as target:
        assert await authority.state(target, "shop", "target") == "closed"
    assert await refused(PUT, sides.source, "order:1", "{}") is None
    for write in ("insert into orders values ('1')", "update orders set total = 1", "delete from order_items"):
        assert await refused(write, sides.target) is WritesElsewhere


async def test_a_held_side_says_so_to_every_write_even_to_one_that_finds_nothing(
    sides: Sides, source: Connection
) -> None:
    assert await authority.hold(source, "shop", "source") == "open"
    assert await authority.hold(source, "shop", "source") == "held"
    for write in (
        "insert into kv_store values ('order:1', '{}')",
        "update kv_store set value = '{}' where key = 'order:none'",
        "delete from kv_store where key = 'order:none'",
        "insert into kv_store values ('order:1', '{}') on conflict do nothing",
    ):
        assert await refused(write, sides.source) is WritesHeld
    assert await authority.close(source, "shop", "source") == "held"
    assert await refused("delete from kv_store where key = 'order:none'", sides.source) is WritesElsewhere
    assert await authority.open(source, "shop", "source") == "closed"
    assert await refused(PUT, sides.source, "order:1", "{}") is None


async def test_whatever_caused_an_error_is_asked_too(sides: Sides, source: Connection) -> None:
    await authority.hold(source, "shop", "source")
    with pytest.raises(asyncpg.PostgresError) as caught:
        await sides.source.execute(PUT, "order:1", "{}")
    wrapped = RuntimeError("the shop's own")
    wrapped.__cause__ = caught.value
    assert isinstance(authority.refusal(wrapped), WritesHeld)
    assert authority.refusal(RuntimeError()) is None
    assert authority.refusal(asyncpg.SerializationError("somebody else's")) is None


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_whoever_has_written_may_finish_while_whoever_comes_is_refused_at_once(
    sides: Sides, source: Connection, isolation: Isolation
) -> None:
    async with sides.source.acquire() as writer, sides.source.acquire() as other:
        transaction = writer.transaction(isolation=isolation)
        await transaction.start()
        await writer.execute(PUT, "order:1", "{}")
        holding = asyncio.create_task(authority.hold(source, "shop", "source"))
        await until_held(sides, "source")
        await other.execute("set lock_timeout = '100ms'")
        await other.execute(f"set default_transaction_isolation = '{isolation.replace('_', ' ')}'")
        assert await refused(PUT, other, "order:3", "{}") is WritesHeld
        # Also by another statement, on a record that it had not touched.
        await writer.execute(PUT, "order:2", "{}")
        assert not holding.done()
        await transaction.commit()
    assert await holding == "open"
    assert {change.key for change in await sides.changes()} == {"order:1", "order:2"}


async def test_what_was_taken_back_lets_nobody_in(sides: Sides, source: Connection) -> None:
    async with sides.source.acquire() as writer, writer.transaction():
        savepoint = writer.transaction()
        await savepoint.start()
        await writer.execute(PUT, "order:1", "{}")
        await savepoint.rollback()
        # It holds no lock any more, so nobody waits for it.
        assert await authority.hold(source, "shop", "source", within=1) == "open"
        savepoint = writer.transaction()
        await savepoint.start()
        assert await refused(PUT, writer, "order:1", "{}") is WritesHeld
        await savepoint.rollback()


async def test_whoever_tells_before_writing_is_waited_for_too(sides: Sides, source: Connection) -> None:
    async with sides.source.acquire() as writer, writer.transaction():
        await writer.execute("select replank_m_shop.written(array['order:1'])")
        with pytest.raises(LocksNotGranted):
            await authority.hold(source, "shop", "source", within=0.1)


async def test_holding_does_not_wait_for_a_vacuum(sides: Sides, source: Connection) -> None:
    async with sides.source.acquire() as vacuum, vacuum.transaction():
        await vacuum.execute("lock table kv_store in share update exclusive mode")
        await authority.hold(source, "shop", "source", within=1)


async def test_holding_gives_up_and_leaves_the_side_as_it_was(sides: Sides, source: Connection) -> None:
    async with sides.source.acquire() as writer, writer.transaction():
        await writer.execute(PUT, "order:1", "{}")
        with pytest.raises(LocksNotGranted, match="1 transactions"):
            await authority.hold(source, "shop", "source", within=0.2)
        assert await authority.state(source, "shop", "source") == "open"
        holding = asyncio.create_task(authority.hold(source, "shop", "source"))
        await until_held(sides, "source")
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        assert await authority.state(source, "shop", "source") == "open"
        await sides.source.execute("update replank_m_shop.authority set writes = 'held' where side = 'source'")
        # A hold that somebody else has begun has not waited for anybody yet.
        with pytest.raises(LocksNotGranted):
            await authority.hold(source, "shop", "source", within=0.2)
        assert await authority.state(source, "shop", "source") == "held"
        await writer.execute(PUT, "order:2", "{}")


async def test_a_side_is_not_held_where_nobody_would_know(source: Connection) -> None:
    async with source.transaction():
        with pytest.raises(WrongStep, match="inside a transaction"):
            await authority.hold(source, "shop", "source")


async def test_writers_who_begin_with_the_children_do_not_keep_a_side_from_being_held(sides: Sides) -> None:
    await sides.flip("source")
    stop, opened, held = asyncio.Event(), asyncio.Event(), asyncio.Event()
    begun: set[int] = set()
    written = 0

    async def write(number: int) -> None:
        nonlocal written
        while not stop.is_set():
            await opened.wait()
            try:
                async with sides.target.acquire() as conn, conn.transaction():
                    id_ = f"{number}-{written}"
                    await conn.execute("insert into order_items values ($1, 0, 'a', 1)", id_)
                    begun.add(number)
                    await held.wait()
                    await conn.execute(INSERT_ORDER, id_, 1)
            except asyncpg.PostgresError as error:
                if authority.refusal(error) is None:
                    raise
            else:
                written += 1

    writers = [asyncio.create_task(write(number)) for number in range(8)]
    async with sides.target.acquire() as conn:
        for _ in range(10):
            begun.clear()
            held.clear()
            opened.set()
            await eventually(lambda: len(begun) == 8, "everybody is in the middle of a transaction")
            # Nobody who comes later is waited for.
            opened.clear()
            holding = asyncio.create_task(authority.hold(conn, "shop", "target", within=2))
            await until_held(sides, "target")
            held.set()
            assert await holding == "open"
            # Nobody is in the middle of anything.
            assert await conn.fetchval("select (select count(*) from order_items) = (select count(*) from orders)")
            assert await refused("delete from orders", sides.target) is WritesHeld
            await authority.open(conn, "shop", "target")
    stop.set()
    opened.set()
    await asyncio.gather(*writers)
    assert await sides.target.fetchval("select count(*) from orders") == written


async def test_a_transaction_with_an_older_snapshot_cannot_write_past_a_decision(
    sides: Sides, source: Connection
) -> None:
    async with sides.source.acquire() as old:
        transaction = old.transaction(isolation="repeatable_read")
        await transaction.start()
        await old.fetch("select * from kv_store")
        await authority.hold(source, "shop", "source")
        with pytest.raises(asyncpg.SerializationError) as caught:
            await old.execute(PUT, "order:1", "{}")
        await transaction.rollback()
    assert isinstance(authority.refusal(caught.value), WritesHeld)
    assert await sides.changes() == []


async def test_an_open_side_is_not_closed_without_being_held(sides: Sides, source: Connection) -> None:
    with pytest.raises(WrongStep):
        await authority.close(source, "shop", "source")
    async with sides.target.acquire() as target:
        with pytest.raises(WrongStep):
            await authority.hold(target, "shop", "target")
        assert await authority.state(target, "shop", "target") == "closed"


async def test_a_database_that_is_no_side_says_so(sides: Sides, pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        with pytest.raises(NoAuthority):
            await authority.state(conn, "shop", "source")
        with pytest.raises(NoAuthority):
            await authority.hold(conn, "shop", "source")
    async with sides.source.acquire() as conn:
        with pytest.raises(NoAuthority, match="the target of the migration shop"):
            await authority.hold(conn, "shop", "target")


async def test_one_database_never_has_two_open_sides(postgres_server: str) -> None:
    async with both_sides(postgres_server, databases=1) as sides, sides.source.acquire() as conn:
        with pytest.raises(asyncpg.UniqueViolationError):
            await authority.open(conn, "shop", "target")
        await sides.put("order:1", {"total": 1})
        await sides.flip("source")
        await conn.execute("update orders set total = 2")
        await sides.flip("target")
        assert await sides.value("order:1") == {"total": 2}


async def test_an_applier_cannot_change_the_side_that_is_open(sides: Sides, source: Connection) -> None:
    restore = "select replank_m_shop.restore(array['order:1'], array['{}'::jsonb], array[1::bigint], array[null])"
    with pytest.raises(asyncpg.PostgresError) as caught:
        await source.execute(restore)
    assert caught.value.sqlstate == authority.APPLIER_REFUSED
    await sides.flip("source")
    await source.execute(restore)
    # What is stale changes nothing, and so may come at any time.
    await sides.flip("target")
    await source.execute(restore)


@pytest.mark.parametrize("function", ["apply", "fill", "fill_compared"])
async def test_what_comes_after_an_applier_in_its_transaction_is_refused_as_ever(sides: Sides, function: str) -> None:
    records = (["order:1"], ['{"total": 1}'], *([[7], [None]] if function == "apply" else []))
    arguments = "$1, $2::text[]::jsonb[], $3, $4" if function == "apply" else "$1, $2"
    async with sides.target.acquire() as conn, conn.transaction():
        await conn.execute(f"select {sides.schema}.{function}({arguments})", *records)
        assert await conn.fetchval("select count(*) from orders") == 1
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await conn.execute(INSERT_ORDER, "2", 2)
        assert isinstance(authority.refusal(refusal.value), WritesElsewhere)


async def test_whoever_owns_the_databases_need_not_be_a_superuser(postgres_dsn: str) -> None:
    role = f"replank_test_{uuid4().hex[:12]}"
    owner = await asyncpg.connect(postgres_dsn)
    database = await owner.fetchval("select current_database()")
    await owner.execute(
        f'create role {role}; grant create on database "{database}" to {role}; grant create on schema public to {role}'
    )
    try:
        await owner.execute(f"set role {role}")
        await install(owner, owner, shop(), same_transaction=False)
        await owner.execute(PUT, "order:1", '{"total": 1}')
        await owner.execute(
            "select replank_m_shop.apply($1, $2::text[]::jsonb[], $3, $4)", ["order:1"], ['{"total": 1}'], [1], [None]
        )
        assert await owner.fetchval("select count(*) from orders") == 1
        await authority.hold(owner, "shop", "source")
        await authority.close(owner, "shop", "source")
        await authority.open(owner, "shop", "target")
        await owner.execute(
            "select replank_m_shop.restore($1, $2::text[]::jsonb[], $3, $4)", ["order:2"], ['{"total": 2}'], [2], [None]
        )
        assert await owner.fetchval("select count(*) from kv_store") == 2
        await owner.execute(INSERT_ORDER, "3", 3)
        assert await refused(PUT, owner, "order:3", "{}") is WritesElsewhere
    finally:
        await owner.execute(f"reset role; drop owned by {role}; drop role {role}")
        await owner.close()


# The flip, under load

WRITERS = 8
FLIPS = 20


class Writer:
    """Writes to whichever store takes it: new records, and one record of its own that it counts up in."""

    def __init__(self, sides: Sides, number: int, isolation: Isolation) -> None:
        self.sides = sides
        self.number = number
        self.isolation = isolation
        self.router = WriteRouter("shop", patience=30)
        self.written: list[str] = []
        self.stores: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            id_ = f"{self.number}-{len(self.written)}"
            await self.router.write(kv=partial(self.in_kv, id_), tables=partial(self.in_tables, id_))
            self.written.append(id_)
            self.stores.add(self.router.store)

    async def in_kv(self, id_: str) -> None:
        async with self.sides.source.acquire() as conn, conn.transaction(isolation=self.isolation):
            counter = f"order:counter-{self.number}"
            # A read first: above read committed, this is when the snapshot is taken.
            text = await conn.fetchval("select value::text from kv_store where key = $1", counter)
            count = json.loads(text)["total"] if text else 0
            await asyncio.sleep(random.uniform(0, 0.003))
            await conn.execute(PUT, f"order:{id_}", json.dumps({"total": count + 1}))
            await conn.execute(PUT, counter, json.dumps({"total": count + 1}))

    async def in_tables(self, id_: str) -> None:
        async with self.sides.target.acquire() as conn, conn.transaction(isolation=self.isolation):
            counter = f"counter-{self.number}"
            count = await conn.fetchval("select total from orders where id = $1", counter) or 0
            await asyncio.sleep(random.uniform(0, 0.003))
            await conn.execute(INSERT_ORDER, id_, count + 1)
            await conn.execute(
                f"{INSERT_ORDER} on conflict (id) do update set total = excluded.total", counter, count + 1
            )


async def test_no_write_is_lost_or_made_twice_through_twenty_flips_under_load(sides: Sides) -> None:
    writers = [
        Writer(sides, number, "read_committed" if number % 2 else "repeatable_read") for number in range(WRITERS)
    ]
    stop = asyncio.Event()
    tasks = [asyncio.create_task(writer.run(stop)) for writer in writers]
    for flip in range(FLIPS):
        before = [len(writer.written) for writer in writers]

        def all_have_written(before: list[int] = before) -> bool:
            for task in tasks:
                if task.done():
                    task.result()
            return all(len(writer.written) > count for writer, count in zip(writers, before, strict=True))

        await eventually(all_have_written, f"everybody writes before flip {flip}", within=30)
        await sides.flip("target" if flip % 2 else "source")
    stop.set()
    await asyncio.gather(*tasks)
    await sides.carry("source")

    kept = {row["key"]: json.loads(row["value"]) for row in await sides.source.fetch("select key, value from kv_store")}
    for writer in writers:
        assert writer.stores == {"kv", "tables"}
        # Each write counted up from the one before: a lost, doubled or reordered one breaks the row.
        assert kept.pop(f"order:counter-{writer.number}")["total"] == len(writer.written)
        for place, id_ in enumerate(writer.written):
            assert kept.pop(f"order:{id_}")["total"] == place + 1
    assert kept == {}
    # And the tables have the same.
    keys = [row["key"] for row in await sides.source.fetch("select key from kv_store")]
    rows = await sides.target.fetch("select key, value from replank_m_shop.down($1)", keys)
    assert len(rows) == len(keys) == await sides.target.fetchval("select count(*) from orders")
