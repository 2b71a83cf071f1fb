"""Pools keep workloads apart, wait no longer than they say, and survive their server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import asyncpg
import pytest
from prometheus_client import REGISTRY

from replank.errors import ConfigurationError, DependencyUnavailable
from replank.postgres import Pool, PoolExhausted, Pools, PoolSettings, PoolsSettings
from replank.testing.faults import unused_address
from replank.testing.plugin import FaultProxies
from replank.testing.wait import eventually

SMALL = PoolSettings(max_size=2, acquire_timeout=0.3, statement_timeout=2.0)


def server_of(dsn: str) -> str:
    return dsn.split("@", 1)[1].split("/", 1)[0]


@pytest.fixture
async def pools(postgres_dsn: str) -> AsyncIterator[Pools]:
    async with Pools(postgres_dsn, service="shop", settings=PoolsSettings(general_primary=SMALL)) as opened:
        yield opened


async def backends(dsn: str, application: str) -> int:
    conn = await asyncpg.connect(dsn)
    try:
        return int(
            await conn.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() and application_name like $1",
                application,
            )
        )
    finally:
        await conn.close()


async def test_a_pool_that_is_never_asked_opens_nothing(pools: Pools, postgres_dsn: str) -> None:
    async with pools.general_primary.acquire() as conn:
        assert await conn.fetchval("show application_name") == "shop/general_primary"
        assert await backends(postgres_dsn, "shop/%") == 1
    assert [status.pool for status in pools.status() if status.opened] == ["general_primary"]


async def test_an_exhausted_pool_says_which_and_leaves_the_others_alone(pools: Pools) -> None:
    pool = pools.general_primary
    async with pool.acquire(), pool.acquire():
        assert (pool.status().in_use, pool.status().max_size) == (2, 2)
        assert sample("utilisation_ratio", "general_primary") == 1.0
        with pytest.raises(PoolExhausted, match="all 2 connections of the pool general_primary"):
            async with pool.acquire():
                pass
        async with pools.write_heavy.acquire() as conn:
            assert await conn.fetchval("select 1") == 1
    assert pool.status().in_use == 0
    assert sample("utilisation_ratio", "general_primary") == 0.0
    async with pool.acquire() as conn:
        assert await conn.fetchval("select 1") == 1


async def test_connections_taken_from_the_pool_underneath_are_counted_too(pools: Pools) -> None:
    pool = await pools.general_primary.open()
    async with pool.acquire():
        assert pools.general_primary.status().in_use == 1
        assert sample("in_use_connections", "general_primary") == 1.0
    assert sample("in_use_connections", "general_primary") == 0.0


async def test_who_waits_gets_the_connection_that_comes_back(pools: Pools) -> None:
    pool = pools.general_primary

    async def ask() -> int:
        async with pool.acquire(within=5) as conn:
            return int(await conn.fetchval("select 1"))

    async with pool.acquire(), pool.acquire():
        waiting = asyncio.create_task(ask())
        await eventually(lambda: pool.status().waiting == 1, "one task waits")
    assert await waiting == 1


async def test_a_statement_that_takes_too_long_is_cancelled(postgres_dsn: str) -> None:
    settings = PoolsSettings(general_primary=PoolSettings(statement_timeout=0.1))
    async with Pools(postgres_dsn, service="shop", settings=settings) as pools:
        with pytest.raises(asyncpg.QueryCanceledError):
            async with pools.general_primary.acquire() as conn:
                await conn.execute("select pg_sleep(10)")


async def test_replica_pools_go_to_the_primary_where_there_is_no_replica_and_say_so(pools: Pools) -> None:
    targets = {status.pool: status.target for status in pools.status()}
    assert set(targets.values()) == {"primary"}
    async with pools.general_replica.acquire() as conn:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await conn.execute("create table t ()")


async def test_replica_pools_go_to_the_replica_where_there_is_one(postgres_dsn: str, fault_proxy: FaultProxies) -> None:
    replica = await fault_proxy(server_of(postgres_dsn))
    async with Pools(postgres_dsn, service="shop", replica_dsn=replica.in_front_of(postgres_dsn)) as pools:
        for pool in pools:
            await pool.check()
        assert {status.pool for status in pools.status() if status.target == "replica"} == {
            "authorization_replica",
            "general_replica",
            "read_heavy",
        }
        assert replica.connections == 3


async def test_a_server_that_is_down_is_named_with_what_to_do() -> None:
    async with unused_address() as address, Pools(f"postgresql://shop:hunter2@{address}/shop", service="shop") as pools:
        with pytest.raises(DependencyUnavailable) as caught:
            await pools.check()
    assert caught.value.dependency == "postgres"
    assert "general_primary" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_wrong_database_is_unavailable_not_a_crash(postgres_dsn: str) -> None:
    async with Pools(postgres_dsn + "_missing", service="shop") as pools:
        with pytest.raises(DependencyUnavailable, match="does not exist"):
            await pools.check()


async def test_waiting_for_a_server_that_is_down_logs_and_ends_when_it_is_up(
    postgres_dsn: str, fault_proxy: FaultProxies, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await fault_proxy(server_of(postgres_dsn))
    await proxy.refuse()
    async with Pools(proxy.in_front_of(postgres_dsn), service="shop") as pools:
        with caplog.at_level(logging.WARNING):
            ready = asyncio.create_task(pools.general_primary.wait_until_ready(first_delay=0.01, max_delay=0.05))
            await eventually(lambda: len(caplog.records) >= 2, "two failures are logged")
            assert not ready.done()
            await proxy.heal()
            async with asyncio.timeout(5):
                await ready
    assert "postgres is not ready" in caplog.text


async def test_a_server_that_does_not_answer_is_not_an_exhausted_pool(
    postgres_dsn: str, fault_proxy: FaultProxies
) -> None:
    proxy = await fault_proxy(server_of(postgres_dsn))
    proxy.stall()
    settings = PoolsSettings(general_primary=PoolSettings(min_size=0, acquire_timeout=0.2))
    async with Pools(proxy.in_front_of(postgres_dsn), service="shop", settings=settings) as pools:
        with pytest.raises(DependencyUnavailable) as caught:
            await pools.check()
    assert not isinstance(caught.value, PoolExhausted)


async def test_a_connection_that_breaks_inside_the_block_is_unavailable_and_the_pool_recovers(
    postgres_dsn: str, fault_proxy: FaultProxies
) -> None:
    proxy = await fault_proxy(server_of(postgres_dsn))
    async with Pools(proxy.in_front_of(postgres_dsn), service="shop") as pools:
        pool = pools.general_primary

        async def work() -> None:
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute("create table half_done ()")
                proxy.cut()
                await conn.execute("create table never_done ()")

        with pytest.raises(DependencyUnavailable):
            await work()
        async with pool.acquire() as conn:
            assert await conn.fetchval("select to_regclass('half_done')") is None
        assert pool.status().in_use == 0


async def test_a_connection_that_breaks_when_the_work_is_done_takes_nothing_of_it_back(
    postgres_dsn: str, fault_proxy: FaultProxies, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await fault_proxy(server_of(postgres_dsn))
    async with Pools(proxy.in_front_of(postgres_dsn), service="shop") as pools:
        pool = pools.general_primary
        async with pool.acquire() as conn:
            await conn.execute("create table done (id integer)")
            proxy.cut()
        assert "could not be reset" in caplog.text
        async with pool.acquire() as conn:
            assert await conn.fetchval("select count(*) from done") == 0
        assert pool.status().in_use == 0


async def test_an_error_of_the_work_itself_passes_unchanged(pools: Pools) -> None:
    with pytest.raises(asyncpg.UndefinedTableError):
        async with pools.general_primary.acquire() as conn:
            await conn.execute("select * from no_such_table")
    with pytest.raises(ConnectionResetError):
        async with pools.general_primary.acquire():
            raise ConnectionResetError("of something else")


async def test_closing_waits_for_work_and_then_cuts_it(pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with pools.general_primary.acquire() as conn:
            entered.set()
            await conn.execute("select pg_sleep(1.5)")

    task = asyncio.create_task(work())
    await entered.wait()
    with caplog.at_level(logging.WARNING):
        await pools.close(within=0.1)
    with pytest.raises(DependencyUnavailable):
        await task
    assert "was cut with connections in use" in caplog.text
    with pytest.raises(DependencyUnavailable, match="is closed"):
        await pools.check()


async def test_an_unknown_pool_is_an_error_that_lists_the_known(pools: Pools) -> None:
    assert isinstance(pools["read_heavy"], Pool)
    with pytest.raises(ConfigurationError, match="authorization_primary"):
        pools["fast"]


def sample(name: str, pool: str) -> float | None:
    return REGISTRY.get_sample_value(f"replank_postgres_pool_{name}", {"pool": pool, "target": "primary"})
