"""Installing into any database, checking it, and saying what is wrong in words that tell what to do."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from replank import outbox
from replank.errors import ConfigurationError
from tests.common.outbox.events import put


async def _codes(db: asyncpg.Pool) -> set[str]:
    async with db.acquire() as conn:
        return {finding.code for finding in await outbox.verify(conn)}


async def test_it_can_be_repeated_and_raced_and_keeps_what_is_there(pool: asyncpg.Pool) -> None:
    async def install() -> int:
        async with pool.acquire() as conn:
            return await outbox.install(conn)

    assert await asyncio.gather(*(install() for _ in range(4))) == [1, 1, 1, 1]
    async with pool.acquire() as conn:
        await put(conn, "t", "k")
        await outbox.install(conn, partitions_ahead=5)
        assert await conn.fetchval("select count(*) from replank_outbox.event") == 1
        assert await conn.fetchval("select partitions_ahead from replank_outbox.config") == 5


async def test_the_number_of_shards_is_fixed_and_bounded(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        with pytest.raises(outbox.OutboxMismatch, match="shards=1"):
            await outbox.install(conn, shards=2)
        with pytest.raises(ConfigurationError, match="1 to 64"):
            await outbox.install(conn, shards=0)


async def test_a_newer_outbox_is_left_alone(db: asyncpg.Pool) -> None:
    await db.execute("insert into replank_outbox.version (version) values (999)")
    async with db.acquire() as conn:
        with pytest.raises(outbox.OutboxMismatch, match="upgrade the library"):
            await outbox.install(conn)
    assert await _codes(db) == {"wrong_version"}


async def test_a_role_that_may_only_create_schemas_can_install_it(pool: asyncpg.Pool, postgres_dsn: str) -> None:
    database = postgres_dsn.rsplit("/", 1)[1]
    role = f"owner_{database}"
    async with pool.acquire() as conn:
        await conn.execute(f'create role "{role}"; grant create on database "{database}" to "{role}"')
        try:
            await conn.execute(f'set role "{role}"')
            await outbox.install(conn)
            await outbox.install(conn)
            await put(conn, "t", "k")
            assert {finding.code for finding in await outbox.verify(conn)} == {"never_ran"}
        finally:
            await conn.execute("reset role")
            await conn.execute(f'drop owned by "{role}"; drop role "{role}"')


async def test_verify_finds_what_is_broken(db: asyncpg.Pool, pool: asyncpg.Pool) -> None:
    assert await _codes(db) == {"never_ran"}
    await db.execute("drop function replank_outbox.append_many")
    await db.execute("alter sequence replank_outbox.event_id cache 10")
    await db.execute("drop index replank_outbox.event_window")
    await db.execute("drop table replank_outbox.event_tail")
    await db.execute("update replank_outbox.shard set updated_at = now(), previous = '99999999:99999999:'")
    assert await _codes(db) == {
        "missing_function",
        "sequence_cache",
        "missing_index",
        "missing_tail",
        "no_relay",
        "restored",
    }
    await db.execute("drop schema replank_outbox cascade")
    assert await _codes(db) == {"not_installed"}


async def test_status_counts_what_is_committed_and_not_published(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn, db.acquire() as other:
        transaction = other.transaction()
        await transaction.start()
        await put(other, "t", "uncommitted")
        for number in range(5):
            await put(conn, "t", str(number))
        status = await outbox.status(conn)
        assert (status.depth, status.depth_capped) == (5, False)
        assert status.oldest_age is not None
        assert timedelta(0) < status.oldest_age < timedelta(minutes=1)
        capped = await outbox.status(conn, count_cap=3)
        assert (capped.depth, capped.depth_capped) == (3, True)
        await transaction.commit()
        assert (await outbox.status(conn)).depth == 6
    assert [partition.name for partition in status.partitions][0::5] == ["event_first", "event_tail"]
    assert all(partition.bytes > 0 for partition in status.partitions)
