"""A database with an outbox, ways to fill it, and ways to look at what came out."""

from __future__ import annotations

import asyncpg
import pytest_asyncio

from replank import outbox


@pytest_asyncio.fixture
async def db(pool: asyncpg.Pool) -> asyncpg.Pool:
    """A pool on a database with an outbox of one shard."""
    async with pool.acquire() as conn:
        await outbox.install(conn)
    return pool
