"""The service's own database, as its migrations make it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
import pytest_asyncio

from replank.testing import servers
from replank.testing.services import migrate_completely


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def migrated_dsn(postgres_server: str) -> AsyncIterator[str]:
    """The DSN of a database that is only ever copied: migrating takes ten times as long."""
    async with servers.database(postgres_server) as dsn:
        await migrate_completely(dsn, "replank_schema")
        yield dsn


@asynccontextmanager
async def copied(server_dsn: str, like: str) -> AsyncIterator[str]:
    """The DSN of a copy, which is not taken for a restored one: its transaction ids are this server's."""
    async with servers.database(server_dsn, like=like) as dsn:
        conn = await asyncpg.connect(dsn)
        try:
            await conn.execute("update replank_outbox.shard set cluster = replank_outbox.cluster()")
        finally:
            await conn.close()
        yield dsn


@pytest_asyncio.fixture
async def postgres_dsn(postgres_server: str, migrated_dsn: str) -> AsyncIterator[str]:
    """The DSN of a new database of the service, dropped after the test."""
    async with copied(postgres_server, migrated_dsn) as dsn:
        yield dsn


@pytest.fixture
def database(pool: asyncpg.Pool) -> asyncpg.Pool:
    """A pool on the database whose DSN is ``postgres_dsn``."""
    return pool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def untouched_dsn(postgres_server: str, migrated_dsn: str) -> AsyncIterator[str]:
    """The DSN of a database of the service that a module's tests share, because they leave nothing in it."""
    async with copied(postgres_server, migrated_dsn) as dsn:
        yield dsn
