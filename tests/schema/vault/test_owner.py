"""The service sets the rights as the owner of its database, who is nobody special otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio

from replank.testing import servers
from replank.testing.plugin import RoleFactory
from replank.testing.services import migrate_completely
from replank_schema.vault import grants
from tests.schema.vault.test_grants import Roles, expected, rights, role_of_dsn


@pytest_asyncio.fixture
async def postgres_dsn(postgres_server: str) -> AsyncIterator[str]:
    """The DSN of a database in which there is nothing yet."""
    async with servers.database(postgres_server) as dsn:
        yield dsn


async def test_the_owner_needs_no_superuser(postgres_dsn: str, pool: asyncpg.Pool, postgres_role: RoleFactory) -> None:
    owner_dsn, standard, pro = [await postgres_role() for _ in range(3)]
    owner, database = role_of_dsn(owner_dsn), postgres_dsn.rpartition("/")[2]
    await pool.execute(f'alter database "{database}" owner to "{owner}"; create extension if not exists pg_trgm')
    try:
        await migrate_completely(owner_dsn, "replank_schema")
        conn = await asyncpg.connect(owner_dsn)
        try:
            roles: Roles = {"standard": role_of_dsn(standard), "pro": role_of_dsn(pro)}
            await grants.grant(conn, roles)
            assert await rights(conn) == await expected(conn, roles)
        finally:
            await conn.close()
    finally:
        await pool.execute(f'reassign owned by "{owner}" to current_user')
