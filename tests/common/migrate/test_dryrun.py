"""A dry run moves a sample on the real server, tells what became of it, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from replank.migrate.dryrun import DryRun, Rejected, dry_run
from tests.common.migrate.shop import ORDER, Target, dumps, shop

SAMPLE: dict[str, Any] = {
    "order:1": ORDER,
    "order:2": {"clientId": "c", "email": "already@clean.example"},
    "order:3": {"clientId": "c", "email": " A@B.example "},
    "order:4": {"clientId": "c", "internalNote": "gone"},
    "order:5": {"clientId": "c", "total": "12"},
    "order:6": {"clientId": "c", "items": [{"qty": 1}, {"qty": "2"}]},
    "order:7": {"clientId": "c", "items": [{"qty": "2"}]},
    "client:1": {"name": "n"},
    "session:1": {},
    "elsewhere": {},
}


async def test_every_record_is_accounted_for_once(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        found = await dry_run(conn, shop(), [(key, dumps(value)) for key, value in SAMPLE.items()])
    assert found == DryRun(
        records=10,
        exact=3,
        lenient=2,
        broken=(),
        ignored=1,
        rejects=(
            Rejected("order", "items[].qty", "expected number, found string", 2, ("order:6", "order:7")),
            Rejected(None, "key", "no entity has such keys", 1, ("elsewhere",)),
            Rejected("order", "total", "expected number, found string", 1, ("order:5",)),
        ),
        entities={"order": 7, "client": 1},
    )
    assert (found.rejected, found.rejected_share) == (4, 0.4)


async def test_nothing_stays(pool: asyncpg.Pool) -> None:
    catalog = "select nspname || '.' || relname from pg_class join pg_namespace n on n.oid = relnamespace order by 1"
    async with pool.acquire() as conn:
        before = await conn.fetch(catalog)
        await dry_run(conn, shop(), [("order:1", dumps(ORDER))])
        assert await conn.fetch(catalog) == before
        assert not conn.is_in_transaction()


async def test_a_migration_that_is_under_way_is_not_touched(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        target = await Target.install(conn, shop())
        await target.apply(("order:1", ORDER, 1))
        found = await dry_run(conn, shop(), [("order:1", dumps({"clientId": "other"}))])
        assert found.exact == 1
        assert await target.down(["order:1"]) == {"order:1": ORDER}


async def test_a_sample_that_is_empty_says_so(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        found = await dry_run(conn, shop(), [])
    assert (found.records, found.rejected_share) == (0, 0.0)


async def test_a_role_that_may_create_nothing_is_told(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute("create role replank_dry_run_nobody; set local role replank_dry_run_nobody")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await dry_run(conn, shop(), [])
        await transaction.rollback()
