"""The service's own database, as its migrations make it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio

from replank.testing import servers
from replank.testing.services import migrate_completely


@pytest_asyncio.fixture
async def database(postgres_dsn: str, pool: asyncpg.Pool) -> asyncpg.Pool:
    """A pool on a new database of the service, whose DSN is ``postgres_dsn``."""
    await migrate_completely(postgres_dsn, "replank_schema")
    return pool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def untouched_dsn(postgres_server: str) -> AsyncIterator[str]:
    """The DSN of a database of the service that a module's tests share, because they leave nothing in it."""
    async with servers.database(postgres_server) as dsn:
        await migrate_completely(dsn, "replank_schema")
        yield dsn
