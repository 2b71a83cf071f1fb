"""Windows: what is visible, once, in order, by index, from wherever reading stopped."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from replank.outbox import window
from replank.outbox.lease import Cursor
from replank.outbox.settings import RelaySettings
from replank.outbox.window import EVENT_ID, ID, WindowReader
from replank.testing.plugin import FaultProxies
from tests.common.outbox.events import put, put_many

START = Cursor(number=0, previous=(1, 1, ()), current=None, last_id=0, floor_id=0, replay_to=None)


@asynccontextmanager
async def _reader(dsn: str, **changed: Any) -> AsyncIterator[WindowReader]:
    settings = RelaySettings(**changed)
    async with window.connection(dsn, statement_timeout=settings.read_timeout) as conn:
        await window.read_times_as_integers(conn)
        yield WindowReader(conn, 0, 1, settings)


async def _read(reader: WindowReader, cursor: Cursor, page_rows: int) -> list[list[str]]:
    async with aclosing(reader.pages(cursor, lambda: page_rows)) as pages:
        return [[row[EVENT_ID] for row in page.rows] async for page in pages]


async def test_each_event_is_in_exactly_one_window_however_transactions_overlap(
    db: asyncpg.Pool, postgres_dsn: str
) -> None:
    async with _reader(postgres_dsn) as reader, db.acquire() as one, db.acquire() as two, db.acquire() as three:
        early, rolled_back = one.transaction(), three.transaction()
        await early.start()
        a = await put(one, "t", "a")
        await rolled_back.start()
        await put(three, "t", "c")
        b = await put(two, "t", "b")
        snapshot, rows = await reader.poll(START, 10)
        assert [row[EVENT_ID] for row in rows or ()] == [b]
        cursor = START.window(snapshot).closed()
        snapshot, rows = await reader.poll(cursor, 10)
        assert rows == []
        cursor = cursor.advanced(snapshot)
        await rolled_back.rollback()
        await early.commit()
        d = await put(two, "t", "d")
        snapshot, rows = await reader.poll(cursor, 10)
        assert [row[EVENT_ID] for row in rows or ()] == [a, d]
        snapshot, rows = await reader.poll(cursor.window(snapshot).closed(), 10)
        assert rows == []


async def test_a_window_that_is_larger_than_a_page_says_so(db: asyncpg.Pool, postgres_dsn: str) -> None:
    async with _reader(postgres_dsn) as reader, db.acquire() as conn:
        await put_many(conn, "t", ["k"] * 11)
        assert (await reader.poll(START, 10))[1] is None
        assert len((await reader.poll(START, 11))[1] or ()) == 11


@pytest.mark.parametrize(("page_rows", "chunk_rows"), [(1, 1), (3, 1000), (4, 7), (1000, 1000), (2, 3)])
async def test_pages_are_the_whole_window_in_id_order_whatever_their_size(
    db: asyncpg.Pool, postgres_dsn: str, page_rows: int, chunk_rows: int
) -> None:
    async with _reader(postgres_dsn, chunk_rows=chunk_rows) as reader, db.acquire() as conn, db.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        await put(slow, "t", "late")
        ids = await put_many(conn, "t", [str(number) for number in range(30)])
        snapshot, _ = await reader.poll(START, 1)
        # Neither what commits after the snapshot nor what is appended after it is in this window.
        await transaction.commit()
        await put(conn, "t", "after")
        pages = await _read(reader, START.window(snapshot), page_rows)
        assert [event_id for page in pages for event_id in page] == ids
        assert max(len(page) for page in pages) <= page_rows


async def test_a_window_can_be_read_again_from_any_id_on(db: asyncpg.Pool, postgres_dsn: str) -> None:
    async with _reader(postgres_dsn, chunk_rows=4) as reader, db.acquire() as conn:
        ids = await put_many(conn, "t", [str(number) for number in range(10)])
        snapshot, _ = await reader.poll(START, 1)
        await put_many(conn, "t", ["later"] * 5)
        rows = [row for row in (await reader.poll(START, 100))[1] or () if row[EVENT_ID] in ids]
        for place, row in enumerate(rows):
            pages = await _read(reader, START.window(snapshot).at(row[ID]), 3)
            assert [event_id for page in pages for event_id in page] == ids[place + 1 :]


async def test_a_read_transaction_that_lasted_long_enough_is_ended_and_reading_goes_on(
    db: asyncpg.Pool, postgres_dsn: str
) -> None:
    async with _reader(postgres_dsn, read_transaction=1e-9) as reader, db.acquire() as conn:
        ids = await put_many(conn, "t", [str(number) for number in range(10)])
        snapshot, _ = await reader.poll(START, 1)
        pages = await _read(reader, START.window(snapshot), 3)
        assert [event_id for page in pages for event_id in page] == ids


@pytest.mark.parametrize("part", ["poll", "first page", "next page"])
async def test_a_server_that_vanished_is_given_up_after_the_read_timeout(
    db: asyncpg.Pool, postgres_dsn: str, fault_proxy: FaultProxies, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(window, "_BACKLOG_PATIENCE", 2)
    proxy = await fault_proxy(urlsplit(postgres_dsn).netloc.rpartition("@")[2])
    async with db.acquire() as conn:
        await put_many(conn, "t", [str(number) for number in range(10)])
    vanished = 0.0

    async def read() -> None:
        nonlocal vanished
        async with _reader(proxy.in_front_of(postgres_dsn), read_timeout=0.3) as reader:
            snapshot, _ = await reader.poll(START, 1)
            pages = reader.pages(START.window(snapshot), lambda: 2)
            if part == "next page":
                await anext(pages)
            proxy.strand()
            vanished = time.monotonic()
            await (reader.poll(START, 1) if part == "poll" else anext(pages))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(), 10)
    assert 0.2 < time.monotonic() - vanished < 3


async def test_whoever_is_cancelled_in_the_middle_of_a_window_does_not_wait_for_a_server_that_vanished(
    db: asyncpg.Pool, postgres_dsn: str, fault_proxy: FaultProxies
) -> None:
    proxy = await fault_proxy(urlsplit(postgres_dsn).netloc.rpartition("@")[2])
    async with db.acquire() as conn:
        await put_many(conn, "t", [str(number) for number in range(10)])
    in_the_middle = asyncio.Event()

    async def read() -> None:
        async with _reader(proxy.in_front_of(postgres_dsn), read_timeout=60.0) as reader:
            snapshot, _ = await reader.poll(START, 1)
            async with aclosing(reader.pages(START.window(snapshot), lambda: 2)) as pages:
                async for _page in pages:
                    proxy.strand()
                    in_the_middle.set()

    reading = asyncio.create_task(read())
    await in_the_middle.wait()
    reading.cancel()
    ended, _ = await asyncio.wait([reading], timeout=3)
    assert ended
    assert reading.cancelled()


@pytest.mark.parametrize("statement", ["POLL", "PAGES", "MEASURE", "VALUES"])
async def test_no_statement_ever_scans_the_table(db: asyncpg.Pool, postgres_dsn: str, statement: str) -> None:
    """With stale statistics, in a quiet database with much retained, in the session that the relay uses."""
    await db.execute("select replank_outbox.append('t', n::text, 't.v1', 'x') from generate_series(1, 20000) as n")
    parameters = {
        "POLL": ("pg_snapshot, integer, bigint, integer, integer", "'{s}', 100, 0, 0, 1"),
        "PAGES": ("pg_snapshot, pg_snapshot, bigint, bigint, integer, integer", "'{s}', '{s}', 0, 100, 0, 1"),
        "MEASURE": ("pg_snapshot, pg_snapshot, bigint, bigint, integer, integer", "'{s}', '{s}', 0, 100, 0, 1"),
        "VALUES": ("xid8[], bigint[]", "'{{5,6}}', '{{1,2}}'"),
    }
    types, values = parameters[statement]
    async with window.connection(postgres_dsn) as conn:
        snapshot = await conn.fetchval("select pg_current_snapshot()::text")
        await conn.execute(f"prepare plan ({types}) as {getattr(window, statement)}")
        text = await conn.fetchval(
            f"explain (analyze, buffers, format json) execute plan ({values.format(s=snapshot)})"
        )
    (plan,) = json.loads(text)
    nodes = list(_nodes(plan["Plan"]))
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"]
    assert [node for node in nodes if node["Node Type"] in {"Index Scan", "Index Only Scan"}]
    # Nothing new: a handful of pages of the index, whatever is retained.
    assert sum(node.get("Actual Rows", 0) for node in nodes if "Scan" in node["Node Type"] and "Index Name" in node) < 3
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 60


def _nodes(plan: dict[str, Any]) -> Any:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
