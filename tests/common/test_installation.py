"""What the library keeps in a database: installed once, brought up to date, and never harmed by who comes late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from replank import declaration, flags, inbox, outbox
from replank.connection import Connection
from replank.errors import ReplankError
from replank.installation import Installation

Install = Callable[[Connection], Awaitable[Any]]
INSTALLS: dict[str, Install] = {
    "replank_outbox": outbox.install,
    "replank_inbox": inbox.install,
    "replank_flags": flags.install,
    "replank_contracts": declaration.install,
}
every_schema = pytest.mark.parametrize("schema", INSTALLS)


class ShopMismatch(ReplankError):
    pass


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """An installation of two migrations in a package of its own, and a function that is replaced every time."""
    sql = tmp_path / "installed_shop" / "sql"
    sql.mkdir(parents=True)
    (sql.parent / "__init__.py").touch()
    (sql / "0001_orders.sql").write_text("create table replank_shop.orders (id bigint primary key);")
    (sql / "0002_paid.sql").write_text("alter table replank_shop.orders add paid boolean not null default false;")
    (sql / "0003_broken.sql").write_text("create table replank_shop.broken (); select 1 / 0;")
    (sql / "functions.sql").write_text(
        "create or replace function replank_shop.one() returns integer language sql return 1;"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return Installation(
        schema="replank_shop",
        name="the shop",
        package="installed_shop",
        migrations=("0001_orders.sql", "0002_paid.sql"),
        repeated=("functions.sql",),
        mismatch=ShopMismatch,
    )


async def _install(pool: asyncpg.Pool, what: Installation) -> int:
    async with pool.acquire() as conn, what.installing(conn) as before:
        return before


async def test_what_is_there_is_brought_up_to_date_by_the_files_it_lacks(
    pool: asyncpg.Pool, shop: Installation
) -> None:
    async with pool.acquire() as conn:
        assert await shop.installed(conn) == 0
        assert await _install(pool, replace(shop, migrations=shop.migrations[:1])) == 0
        await conn.execute("insert into replank_shop.orders (id) values (7); drop function replank_shop.one")
        assert await _install(pool, shop) == 1
        assert await _install(pool, shop) == 2
        assert await shop.installed(conn) == shop.version == 2
        assert await conn.fetchval("select replank_shop.one()") == 1
        assert tuple(*await conn.fetch("select * from replank_shop.orders")) == (7, False)


async def test_many_at_once_apply_every_file_once(pool: asyncpg.Pool, shop: Installation) -> None:
    assert sorted(await asyncio.gather(*(_install(pool, shop) for _ in range(5)))) == [0, 2, 2, 2, 2]


async def test_a_file_that_fails_leaves_nothing_of_the_whole_install(pool: asyncpg.Pool, shop: Installation) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        await _install(pool, replace(shop, migrations=(*shop.migrations, "0003_broken.sql")))
    assert await pool.fetchval("select to_regnamespace('replank_shop') is null")


async def test_a_lock_that_somebody_keeps_is_waited_for_only_so_long(pool: asyncpg.Pool, shop: Installation) -> None:
    async with pool.acquire() as conn, shop.installing(conn):
        with pytest.raises(asyncpg.LockNotAvailableError):
            await _install(pool, shop)
    assert await _install(pool, shop) == 2


@every_schema
async def test_a_newer_version_and_an_older_server_are_refused(
    pool: asyncpg.Pool, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool.acquire() as conn:
        await INSTALLS[schema](conn)
        await conn.execute(f"insert into {schema}.version (version) values (999)")
        with pytest.raises(ReplankError, match=r"has version 999.*upgrade the library"):
            await INSTALLS[schema](conn)
        monkeypatch.setattr("replank.installation.MINIMUM_SERVER", 99)
        with pytest.raises(ReplankError, match=r"needs Postgres 99.*upgrade the server"):
            await INSTALLS[schema](conn)


@every_schema
async def test_who_owns_the_schema_needs_no_right_to_create_any(
    pool: asyncpg.Pool, postgres_dsn: str, schema: str
) -> None:
    database = postgres_dsn.rsplit("/", 1)[1]
    role = f"owner_{database}"
    async with pool.acquire() as conn:
        await conn.execute(f'create role "{role}"; grant create on database "{database}" to "{role}"')
        try:
            await conn.execute(f'set role "{role}"')
            await INSTALLS[schema](conn)
            await conn.execute(f'reset role; revoke create on database "{database}" from "{role}"; set role "{role}"')
            await INSTALLS[schema](conn)
            await conn.execute(f"drop schema {schema} cascade")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await INSTALLS[schema](conn)
        finally:
            await conn.execute("reset role")
            await conn.execute(f'drop owned by "{role}"; drop role "{role}"')


async def test_flag_tables_from_before_there_were_versions_are_taken_over_as_they_are(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        await outbox.install(conn)
        await flags.install(conn)
        flag = await flags.set_flag(conn, "kept", True, by="user:ada")
        await conn.execute("drop table replank_flags.version")
        await flags.install(conn)
        assert await conn.fetchval("select max(version) from replank_flags.version") == 1
        assert await flags.get_flag(conn, "kept") == flag
        assert await flags.history(conn, "kept") == [flag]
