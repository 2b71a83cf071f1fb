"""The tables' side: what is told of records once the tables take the writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import asyncpg
import pytest
import pytest_asyncio

from replank.connection import Connection
from replank.migrate import capture, reverse
from replank.migrate.capture import CaptureRefused
from replank.testing import eventually
from replank.testing.servers import waiting_for_locks

from .sides import Sides, both_sides, shop

ORDER = {"total": 1, "items": [{"sku": "a", "qty": 1}, {"sku": "b", "qty": 1}]}


@pytest_asyncio.fixture(params=["outbox", "same_transaction"])
async def sides(request: pytest.FixtureRequest, postgres_server: str) -> AsyncIterator[Sides]:
    """Cut over: the tables take the writes."""
    same_transaction = request.param == "same_transaction"
    async with both_sides(postgres_server, databases=1, same_transaction=same_transaction) as installed:
        await installed.put("order:1", ORDER)
        await installed.put("order:2", {"total": 2})
        await installed.flip("source")
        yield installed


async def value(sides: Sides, key: str) -> object:
    """What the key-value store has once everything told has been applied."""
    await sides.carry("target")
    return await sides.value(key)


async def test_every_change_of_a_root_row_comes_back(sides: Sides) -> None:
    await sides.target.execute("insert into orders (id, total) values ('3', 3)")
    assert await value(sides, "order:3") == {"total": 3}
    await sides.target.execute("update orders set total = 4 where id = '3'")
    assert await value(sides, "order:3") == {"total": 4}
    await sides.target.execute("delete from orders where id = '3'")
    assert await value(sides, "order:3") is None
    await sides.target.execute("insert into orders (id, total) values ('3', 5)")
    assert await value(sides, "order:3") == {"total": 5}


async def test_every_change_of_a_child_row_comes_back_with_its_record(sides: Sides) -> None:
    await sides.target.execute("update order_items set quantity = 7 where sku = 'b'")
    assert await value(sides, "order:1") == {"total": 1, "items": [{"sku": "a", "qty": 1}, {"sku": "b", "qty": 7}]}
    await sides.target.execute("delete from order_items where sku = 'b'")
    assert await value(sides, "order:1") == {"total": 1, "items": [{"sku": "a", "qty": 1}]}
    await sides.target.execute("insert into order_items values ('2', 0, 'c', 3)")
    assert await value(sides, "order:2") == {"total": 2, "items": [{"sku": "c", "qty": 3}]}


async def test_a_row_that_moves_changes_both_records(sides: Sides) -> None:
    await sides.target.execute("update order_items set order_id = '2', position = 0 where sku = 'b'")
    assert await value(sides, "order:1") == {"total": 1, "items": [{"sku": "a", "qty": 1}]}
    assert await value(sides, "order:2") == {"total": 2, "items": [{"sku": "b", "qty": 1}]}
    await sides.target.execute("update orders set id = '9' where id = '2'")
    await sides.target.execute("update order_items set order_id = '9' where order_id = '2'")
    assert await value(sides, "order:2") is None
    assert await value(sides, "order:9") == {"total": 2, "items": [{"sku": "b", "qty": 1}]}


async def test_a_statement_on_very_many_records_brings_each_back(sides: Sides) -> None:
    await sides.target.execute("insert into orders (id, total) select 'm' || i, i from generate_series(1, 1000) as i")
    await sides.target.execute("update orders set total = total + 1 where id like 'm%'")
    await sides.carry("target")
    values = await sides.source.fetchval(
        "select sum((value ->> 'total')::numeric) from kv_store where key like 'order:m%'"
    )
    assert values == sum(range(2, 1002))
    await sides.target.execute("delete from orders where id like 'm%'")
    await sides.carry("target")
    assert await sides.source.fetchval("select count(*) from kv_store where key like 'order:m%'") == 0


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
async def test_two_transactions_on_different_rows_of_one_record_both_come_back(
    sides: Sides, isolation: Literal["read_committed", "repeatable_read"]
) -> None:
    async def change(conn: Connection, sku: str) -> None:
        for attempt in range(5):
            try:
                async with conn.transaction(isolation=isolation):
                    await conn.fetch("select * from order_items")  # the snapshot, if it is to be an early one
                    await asyncio.wait_for(at_once.wait(), 5) if attempt == 0 else None
                    await conn.execute("update order_items set quantity = quantity + 10 where sku = $1", sku)
            except asyncpg.SerializationError:
                continue
            else:
                return
        pytest.fail("never serialized")

    at_once = asyncio.Barrier(2)
    for _ in range(10):
        async with sides.target.acquire() as one, sides.target.acquire() as other:
            await asyncio.gather(change(one, "a"), change(other, "b"))
    expected = {"total": 1, "items": [{"sku": "a", "qty": 101}, {"sku": "b", "qty": 101}]}
    assert await value(sides, "order:1") == expected
    assert await sides.record("order:1") == expected


async def test_the_second_writer_of_a_record_is_told_of_after_the_first(sides: Sides) -> None:
    async with sides.target.acquire() as first, sides.target.acquire() as second:
        transaction = first.transaction()
        await transaction.start()
        await first.execute("update order_items set quantity = 10 where sku = 'a'")
        later = asyncio.create_task(second.execute("update order_items set quantity = 20 where sku = 'b'"))
        await eventually(lambda: waiting_for_locks(sides.target), "the second waits for the first")
        await transaction.commit()
        await later
    assert await value(sides, "order:1") == {"total": 1, "items": [{"sku": "a", "qty": 10}, {"sku": "b", "qty": 20}]}


async def test_whoever_writes_other_records_waits_for_nobody(sides: Sides) -> None:
    async with sides.target.acquire() as first, sides.target.acquire() as second, first.transaction():
        await first.execute("update orders set total = 10 where id = '1'")
        await second.execute("set lock_timeout = '1s'")
        await second.execute("update orders set total = 20 where id = '2'")


async def test_a_record_written_in_several_statements_comes_back_whole(postgres_server: str) -> None:
    async with both_sides(postgres_server, databases=1) as sides:
        await sides.flip("source")
        async with sides.target.acquire() as conn, conn.transaction():
            await conn.execute("insert into orders (id, total) values ('1', 1)")
            await conn.execute("insert into order_items values ('1', 0, 'a', 1)")
        first, second = await sides.changes("target")
        assert (first.fetch, first.value, second.fetch) == (True, None, True)
        # Whichever of the two is applied: it brings what was committed.
        await sides.source.execute(
            "delete from replank_outbox.event where value = (select value from "
            "replank_outbox.event order by id desc limit 1)"
        )
        assert await value(sides, "order:1") == {"total": 1, "items": [{"sku": "a", "qty": 1}]}


async def test_truncate_is_refused(sides: Sides) -> None:
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="order_items"):
        await sides.target.execute("truncate order_items")


async def test_silenced_tables_take_writes_and_tell_nothing(sides: Sides) -> None:
    async with sides.target.acquire() as conn:
        await reverse.silence(conn, sides.mapping)
        await conn.execute("update orders set total = 5")
        await conn.execute("truncate order_items")
    assert await value(sides, "order:2") == {"total": 2}


async def test_removing_leaves_no_trigger_and_no_function(sides: Sides) -> None:
    async with sides.target.acquire() as conn:
        await reverse.remove(conn, sides.mapping)
        await reverse.remove(conn, sides.mapping)
        await capture.remove(conn, "shop")
        assert await conn.fetchval("select count(*) from pg_trigger where not tgisinternal") == 0
        assert (await reverse.verify(conn, sides.mapping))[0].code == "not_installed"


async def test_verify_finds_a_trigger_that_is_gone(sides: Sides) -> None:
    async with sides.target.acquire() as conn:
        assert await reverse.verify(conn, sides.mapping) == []
        await conn.execute("drop trigger replank_m_shop_delete on order_items")
        (finding,) = await reverse.verify(conn, sides.mapping)
        assert finding.code == "missing_trigger"
        assert "order_items" in finding.message


async def test_tables_that_are_not_there_are_refused(postgres_dsn: str) -> None:
    conn = await asyncpg.connect(postgres_dsn)
    with pytest.raises(CaptureRefused) as refused:
        await reverse.install(conn, shop())
    assert [finding.code for finding in refused.value.findings] == ["no_outbox", "no_table", "no_table"]
    assert await conn.fetchval("select to_regnamespace('replank_m_shop')") is None
    await conn.close()
