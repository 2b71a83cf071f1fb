"""Partitions: some ahead, the last without an end, old ones dropped once nobody needs them; writers never fail."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from replank import outbox
from replank.outbox import partitions, retention, window
from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings
from replank.telemetry import metrics
from replank.testing.wait import eventually
from tests.common.outbox.events import put
from tests.common.outbox.recording import Log

DAY = timedelta(days=1)
_BACKDATED = """
    insert into replank_outbox.event (created_at, event_id, bucket, topic, key, type, source, value)
    values ($1, gen_random_uuid(), 0, 't', 'k', 't.v1', 's', 'x')
"""
FAST = RelaySettings(checkpoint=0.05, lease=1.5, retention=timedelta(days=365))


async def _names(conn: Any) -> list[str]:
    return [partition.name for partition in await partitions.partitions(conn)]


async def _add_past_partition(conn: Any, days_ago: int) -> tuple[str, datetime]:
    """A partition of its own for a day long past, cut out of the empty first one."""
    today = (await partitions.partitions(conn))[1].lower
    assert today is not None
    lower = today - days_ago * DAY
    await conn.execute("alter table replank_outbox.event detach partition replank_outbox.event_first")
    await conn.execute("drop table replank_outbox.event_first")
    name = f"event_{lower:%Y%m%dt%H%M%S}"
    await partitions._create(conn, name, lower, lower + DAY)
    await partitions._create(conn, "event_first", None, lower)
    await partitions._create(conn, "event_gap", lower + DAY, today)
    return name, lower + DAY / 2


async def _publish_all(db: asyncpg.Pool, dsn: str) -> None:
    async with Relay(dsn, "unused:0", FAST, publisher_factory=Log().publisher), db.acquire() as conn:
        await eventually(lambda: _is_empty(conn), "everything is published")


async def _is_empty(conn: Any) -> bool:
    return (await outbox.status(conn)).depth == 0


async def test_install_makes_partitions_ahead_and_one_without_an_end(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        found = await partitions.partitions(conn)
    assert [(p.lower is None, p.upper is None) for p in found] == [(True, False), *[(False, False)] * 4, (False, True)]
    assert [p.upper for p in found[:-1]] == [p.lower for p in found[1:]]
    now = datetime.now(UTC)
    assert found[1].lower is not None
    assert found[1].lower <= now < found[1].lower + DAY


async def test_maintenance_adds_what_is_missing_ahead_and_is_idempotent(db: asyncpg.Pool, postgres_dsn: str) -> None:
    await db.execute("update replank_outbox.config set partitions_ahead = 6")
    async with window.connection(postgres_dsn, lock_timeout="200ms") as conn:
        assert await retention.maintain(conn, DAY) == (3, 0)
        assert await retention.maintain(conn, DAY) == (0, 0)
        found = await partitions.partitions(conn)
        assert [p.upper for p in found[:-1]] == [p.lower for p in found[1:]]
        assert len(found) == 9
        # What was made by itself and attached is indexed like the rest.
        assert not [f for f in await outbox.verify(conn) if f.code == "missing_index"]


async def test_a_writer_never_fails_when_maintenance_was_down_and_the_tail_is_split_afterwards(
    db: asyncpg.Pool, postgres_dsn: str
) -> None:
    async with db.acquire() as conn:
        tail = (await partitions.partitions(conn))[-1]
        assert tail.lower is not None
        late = tail.lower + 5 * DAY
        await conn.execute(_BACKDATED, late)
        assert await conn.fetchval("select count(*) from replank_outbox.event_tail") == 1
    # Maintenance comes back on that late day: simulated by asking for as many partitions ahead.
    await db.execute("update replank_outbox.config set partitions_ahead = 9")
    async with window.connection(postgres_dsn, lock_timeout="200ms") as conn:
        await partitions.extend(conn)
        found = await partitions.partitions(conn)
        assert [p.upper for p in found[:-1]] == [p.lower for p in found[1:]]
        assert found[-1].name == "event_tail"
        assert await conn.fetchval("select count(*) from replank_outbox.event_tail") == 0
        assert await conn.fetchval("select count(*) from replank_outbox.event") == 1
        holder = await conn.fetchval("select tableoid::regclass::text from replank_outbox.event")
        assert holder == f"replank_outbox.{found[-2].name}"


async def test_splitting_the_tail_gives_way_to_a_writer_and_succeeds_later(db: asyncpg.Pool, postgres_dsn: str) -> None:
    await db.execute("update replank_outbox.config set partitions_ahead = 9")
    async with db.acquire() as conn, window.connection(postgres_dsn, lock_timeout="100ms") as maintenance:
        tail = (await partitions.partitions(conn))[-1]
        transaction = conn.transaction()
        await transaction.start()
        assert tail.lower is not None
        await conn.execute(_BACKDATED, tail.lower + DAY)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await partitions.extend(maintenance)
        await transaction.commit()
        assert await partitions.extend(maintenance) >= 1
        assert await conn.fetchval("select count(*) from replank_outbox.event") == 1


async def test_a_partition_is_dropped_when_it_is_old_and_published(db: asyncpg.Pool, postgres_dsn: str) -> None:
    async with db.acquire() as conn, window.connection(postgres_dsn, lock_timeout="200ms") as maintenance:
        name, inside = await _add_past_partition(conn, days_ago=10)
        await conn.execute(_BACKDATED, inside)
        await retention.maintain(maintenance, 3 * DAY)
        assert name in await _names(conn), "it is not published"
        await _publish_all(db, postgres_dsn)
        await retention.maintain(maintenance, 30 * DAY)
        assert name in await _names(conn), "it is not old enough"
        assert (await retention.maintain(maintenance, 3 * DAY))[1] >= 1
        assert name not in await _names(conn)
        assert await conn.fetchval("select to_regclass($1)", f"replank_outbox.{name}") is None
        await put(conn, "t", "k")


async def test_a_partition_with_an_open_transaction_in_it_is_kept(db: asyncpg.Pool, postgres_dsn: str) -> None:
    """Its rows are invisible to whoever looks whether all are published."""
    async with (
        db.acquire() as conn,
        db.acquire() as slow,
        window.connection(postgres_dsn, lock_timeout="100ms") as maintenance,
    ):
        name, inside = await _add_past_partition(conn, days_ago=10)
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute(_BACKDATED, inside)
        await put(conn, "t", "k")
        await _publish_all(db, postgres_dsn)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await retention.maintain(maintenance, 3 * DAY)
        await transaction.commit()
        await retention.maintain(maintenance, 3 * DAY)
        assert name in await _names(conn), "its row has become visible and is not published"
        await _publish_all(db, postgres_dsn)
        await retention.maintain(maintenance, 3 * DAY)
        assert name not in await _names(conn)


async def test_what_an_interrupted_run_left_behind_is_repaired(db: asyncpg.Pool, postgres_dsn: str) -> None:
    async with db.acquire() as conn, window.connection(postgres_dsn, lock_timeout="200ms") as maintenance:
        name, inside = await _add_past_partition(conn, days_ago=10)
        await conn.execute(_BACKDATED, inside)
        # Died between detaching and dropping; between dropping the tail and making the next; before attaching.
        await conn.execute(f"comment on table replank_outbox.{name} is 'passed'")
        await conn.execute(f"alter table replank_outbox.event detach partition replank_outbox.{name}")
        await conn.execute("drop table replank_outbox.event_tail")
        await conn.execute("create table replank_outbox.event_29990101t000000 (like replank_outbox.event)")
        await retention.maintain(maintenance, 3 * DAY)
        for gone in (name, "event_29990101t000000"):
            assert await conn.fetchval("select to_regclass($1)", f"replank_outbox.{gone}") is None
        assert (await _names(conn))[-1] == "event_tail"


async def test_events_in_a_table_that_is_no_partition_are_never_dropped(db: asyncpg.Pool, postgres_dsn: str) -> None:
    async with db.acquire() as conn, window.connection(postgres_dsn, lock_timeout="200ms") as maintenance:
        name, inside = await _add_past_partition(conn, days_ago=10)
        await conn.execute(_BACKDATED, inside)
        await conn.execute(f"alter table replank_outbox.event detach partition replank_outbox.{name}")
        await retention.maintain(maintenance, 3 * DAY)
        assert await conn.fetchval(f"select count(*) from replank_outbox.{name}") == 1


async def test_the_relay_maintains_beside_its_work_and_survives_a_failure(db: asyncpg.Pool, postgres_dsn: str) -> None:
    settings = FAST.model_copy(update={"maintenance_interval": 0.1})
    log = Log()
    failures = metrics.OUTBOX_MAINTENANCE_FAILURES._series._value
    before = failures.get()
    async with db.acquire() as conn, db.acquire() as blocker:
        await conn.execute("update replank_outbox.config set partitions_ahead = 6")
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("lock table replank_outbox.event in share update exclusive mode")
        async with Relay(postgres_dsn, "unused:0", settings, publisher_factory=log.publisher) as relay:
            await eventually(lambda: failures.get() > before, "maintenance fails and is counted")
            event_id = await put(conn, "t", "k")
            await eventually(lambda: log.ids() == [event_id], "publishing goes on")
            assert relay.healthy
            await transaction.rollback()
            await eventually(lambda: _ahead(conn), "and it is made up for")


async def _ahead(conn: Any) -> bool:
    return len(await partitions.partitions(conn)) == 9


async def test_appending_goes_on_while_partitions_come_and_go(db: asyncpg.Pool, postgres_dsn: str) -> None:
    done = asyncio.Event()

    async def write() -> int:
        count = 0
        async with db.acquire() as conn:
            while not done.is_set():
                await put(conn, "t", str(count))
                count += 1
        return count

    writers = [asyncio.create_task(write()) for _ in range(3)]
    async with window.connection(postgres_dsn, lock_timeout="2s") as maintenance:
        for ahead in range(4, 9):
            await db.execute("update replank_outbox.config set partitions_ahead = $1", ahead)
            await retention.maintain(maintenance, 3 * DAY)
    done.set()
    written = sum(await asyncio.gather(*writers))
    assert await db.fetchval("select count(*) from replank_outbox.event") == written
