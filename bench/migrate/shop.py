"""The storefront as every run needs it: seeded records in one database, a migration of them into another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

import bench
from bench.postgres import Server
from replank import outbox
from replank.migrate import capture, ddl, mapping, reverse
from replank.migrate import compile as compiler
from replank.migrate.compile import Compiled
from replank.migrate.mapping import Mapping
from replank.testing.servers import fresh_name
from replank.testing.services import migrate_completely
from replank_storefront.generate import Planted, Sizes
from replank_storefront.seed import seed

_MAPPING: Final = Path(bench.__file__).parents[1] / "examples/storefront/mapping.yaml"
_SEED: Final = 4


@dataclass(frozen=True, slots=True)
class Shop:
    """A database with a seeded ``kv_store`` and an outbox. ``planted`` knows its dirty records."""

    dsn: str
    sizes: Sizes
    planted: Planted


@dataclass(frozen=True, slots=True)
class Move:
    """A migration that is installed: both captures, the tables and functions. Nothing was moved yet."""

    mapping: Mapping
    compiled: Compiled
    shop: Shop
    target: str
    """The DSN of the tables' database."""


def described(name: str) -> Mapping:
    """The storefront's mapping, under another name, so that nobody else on this Kafka has its topics and flags."""
    return mapping.load(_MAPPING.read_text().replace("name: storefront", f"name: {name}", 1))


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A plain connection."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def seeded(server: Server, sizes: Sizes) -> AsyncIterator[Shop]:
    """A database of its own with the records of a shop, as a table that has been in use: vacuumed and analysed."""
    async with server.database() as dsn:
        await migrate_completely(dsn, "replank_storefront")
        async with connected(dsn) as connection:
            planted = await seed(connection, sizes, _SEED)
            await connection.execute("vacuum (analyze) kv_store")
            await outbox.install(connection)
        yield Shop(dsn, sizes, planted)


@asynccontextmanager
async def installed(server: Server, shop: Shop) -> AsyncIterator[Move]:
    """A migration of the shop into a new database, in the order in which the schema service installs one."""
    described_here = described(fresh_name())
    compiled = compiler.compile(described_here)
    async with server.database() as target:
        async with connected(shop.dsn) as source, connected(target) as tables:
            # What an index of the mapping needs; whoever owns the target has it made beforehand.
            await tables.execute("create extension pg_trgm")
            await ddl.create_tables(target, compiled)
            await outbox.install(tables)
            await reverse.install(tables, described_here)
            await capture.install(source, described_here)
        try:
            yield Move(described_here, compiled, shop, target)
        finally:
            async with connected(shop.dsn) as source:
                await capture.remove(source, described_here.name)
            await ddl.drop(shop.dsn, compiled, tables=False)
