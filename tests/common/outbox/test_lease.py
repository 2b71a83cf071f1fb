"""Leases: one relay a shard, a fair share each, and nothing moves for one that has lost it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from replank import outbox
from replank.outbox import lease as leases
from replank.outbox import window
from replank.outbox.lease import LeaseLost
from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings
from replank.testing.wait import eventually
from tests.common.outbox.events import put, put_many
from tests.common.outbox.recording import Log

FAST = RelaySettings(lease=0.6, checkpoint=0.05, backoff=0.2)


async def _claim(conn: Any, owner: str, seconds: float = 30) -> leases.Lease:
    lease = await leases.claim(conn, owner, seconds)
    assert lease is not None
    return lease


async def test_a_shard_has_one_holder_and_the_token_grows_with_every_take_over(
    db: asyncpg.Pool, postgres_dsn: str
) -> None:
    async with window.connection(postgres_dsn) as conn:
        first = await _claim(conn, "one")
        assert await leases.claim(conn, "two", 30) is None
        await first.release(conn)
        second = await _claim(conn, "two")
        assert second.token == first.token + 1


async def test_whoever_lost_the_lease_can_move_nothing(db: asyncpg.Pool, postgres_dsn: str) -> None:
    async with window.connection(postgres_dsn) as conn:
        old = await _claim(conn, "one")
        cursor, _ = await old.read_cursor(conn)
        await conn.execute("update replank_outbox.shard set lease_until = '-infinity'")
        for statement in (
            lambda: old.read_cursor(conn),
            lambda: old.move(conn, cursor.at(7)),
            lambda: old.restored(conn, "other", cursor.previous, 7),
        ):
            with pytest.raises(LeaseLost):
                await statement()
        new = await _claim(conn, "two")
        with pytest.raises(LeaseLost):
            await old.move(conn, cursor.at(7))
        await old.release(conn)
        assert await conn.fetchval("select owner from replank_outbox.shard") == "two"
        assert (await new.read_cursor(conn))[0] == cursor
        assert (await leases.beat(conn, "one", 30, [old])).lost == [old]


async def test_a_holder_stops_by_its_own_clock_before_the_database_says_so(
    db: asyncpg.Pool, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with window.connection(postgres_dsn) as conn:
        lease = await _claim(conn, "one", seconds=10)
        lease.require()
        monkeypatch.setattr("replank.outbox.lease.time.monotonic", lambda: lease.expires)
        with pytest.raises(LeaseLost, match="token 1"):
            lease.require()


async def test_a_dead_relays_shard_is_taken_over_when_its_lease_ends(db: asyncpg.Pool, postgres_dsn: str) -> None:
    log = Log()
    async with db.acquire() as conn:
        dead = await _claim(conn, "dead", seconds=0.5)
        event_id = await put(conn, "t", "k")
        async with Relay(postgres_dsn, "unused:0", FAST, publisher_factory=log.publisher):
            await eventually(lambda: log.ids() == [event_id], "the living one takes over")
            assert await conn.fetchval("select token from replank_outbox.shard") == dead.token + 1


async def test_a_relay_that_loses_its_lease_stops_and_what_it_held_back_is_not_acknowledged(
    db: asyncpg.Pool, postgres_dsn: str
) -> None:
    log = Log(hold=asyncio.Event())
    async with db.acquire() as conn, Relay(postgres_dsn, "unused:0", FAST, publisher_factory=log.publisher) as relay:
        await eventually(lambda: relay.healthy, "it works")
        event_id = await put(conn, "t", "k")
        await eventually(lambda: relay.shards == [0], "it holds the shard")
        await conn.execute(
            "update replank_outbox.shard set owner = 'thief', token = token + 1,"
            " lease_until = clock_timestamp() + interval '1 minute'"
        )
        await eventually(lambda: relay.shards == [], "it lets go")
        assert log.hold is not None
        log.hold.set()
        assert (await outbox.status(conn)).depth == 1
        await conn.execute("update replank_outbox.shard set lease_until = '-infinity'")
        await eventually(lambda: event_id in log.ids(), "the next holder publishes it")


async def test_shards_spread_fairly_and_move_when_relays_come_and_go(pool: asyncpg.Pool, postgres_dsn: str) -> None:
    async with pool.acquire() as conn:
        await outbox.install(conn, shards=4)
    log = Log()

    def relay() -> Relay:
        return Relay(postgres_dsn, "unused:0", FAST, publisher_factory=log.publisher)

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(relay())
        await eventually(lambda: first.shards == [0, 1, 2, 3], "alone it has all")
        second = relay()
        async with second:
            await eventually(lambda: len(first.shards) == len(second.shards) == 2, "each has its half")
            assert sorted(first.shards + second.shards) == [0, 1, 2, 3]
            async with pool.acquire() as conn:
                ids = await put_many(conn, "t", [f"key-{number}" for number in range(100)])
            await eventually(lambda: sorted(log.ids()) == sorted(ids), "every shard is published, once")
        await eventually(lambda: first.shards == [0, 1, 2, 3], "what is given back is taken")


async def test_a_key_belongs_to_one_shard_whatever_its_topic(pool: asyncpg.Pool, postgres_dsn: str) -> None:
    async with pool.acquire() as conn:
        await outbox.install(conn, shards=8)
        for _ in range(5):
            await put_many(conn, "t", [f"key-{number}" for number in range(40)])
    log = Log()
    async with Relay(postgres_dsn, "unused:0", FAST, publisher_factory=log.publisher):
        await eventually(lambda: len(log.records) == 200, "all are published", within=20)
    shards: dict[str | None, set[int]] = {}
    for record in log.records:
        shards.setdefault(record.key, set()).add(record.shard)
    assert all(len(of_key) == 1 for of_key in shards.values())
    assert len(set.union(*shards.values())) > 4
