"""What the library keeps in somebody's database: schemas of its own, installed once and brought up to date ever after.

A capability that needs tables owns one schema and, in its package, a folder ``sql``. The numbered files there are
applied once each, in order; the table ``version`` of the schema remembers them. Other files are applied by every
install. A service's own tables are another matter: they have `replank.postgres.migrations`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from replank.connection import Connection
from replank.errors import ReplankError

MINIMUM_SERVER: Final = 15
"""The oldest major version of Postgres that the library works with."""

_LOCK_TIMEOUT: Final = "set local lock_timeout = '3s'"
_LOCK: Final = "select pg_advisory_xact_lock(hashtextextended($1::text || '.install', 0))"
_SCHEMA_EXISTS: Final = "select to_regnamespace($1) is not null"
_VERSION_TABLE_EXISTS: Final = "select to_regclass($1::text || '.version') is not null"
# The schema's name is one of the library's own, written in lower case: it needs no quotes.
_SCHEMA: Final = "create schema if not exists {schema}"
_VERSION_TABLE: Final = """
    create table if not exists {schema}.version (
        version integer primary key, installed_at timestamptz not null default clock_timestamp())
"""
_READ_VERSION: Final = "select coalesce(max(version), 0) from {schema}.version"
_WRITE_VERSION: Final = "insert into {schema}.version (version) values ($1)"


@dataclass(frozen=True, slots=True)
class Installation:
    """One schema of the library's, and what it takes to have it in a database."""

    schema: str
    name: str
    """What people call it, with its article: it begins the messages of ``mismatch``."""
    package: str
    """The importable package with the folder ``sql``."""
    migrations: Sequence[str]
    """Files that are applied once each, in order: the place of a file, from 1, is the version it leads to."""
    mismatch: type[ReplankError]
    """Raised when the server or the schema is not one that this library can work with."""
    repeated: Sequence[str] = ()
    """Files that every install applies, after the migrations: functions, to be replaced as a whole."""

    @property
    def version(self) -> int:
        """The version that this library installs and works with."""
        return len(self.migrations)

    async def installed(self, conn: Connection) -> int:
        """The version that is in the database; 0 when there is none."""
        if not await conn.fetchval(_VERSION_TABLE_EXISTS, self.schema):
            return 0
        version: int = await conn.fetchval(self._of_schema(_READ_VERSION))
        return version

    @asynccontextmanager
    async def installing(self, conn: Connection) -> AsyncIterator[int]:
        """Bring the schema up to date; the block gets the version that was there before, 0 for none.

        All in one transaction that ends with the block, alone among those who install the same schema. The role needs
        CREATE on the database, or to own the schema if that is there.

        Raises ``mismatch`` for a server older than `MINIMUM_SERVER` and for a newer version than this library knows;
        `asyncpg.LockNotAvailableError` when a lock is not to be had within 3 seconds.
        """
        async with conn.transaction():
            server = conn.get_server_version()
            if server.major < MINIMUM_SERVER:
                raise self.mismatch(
                    f"{self.name} needs Postgres {MINIMUM_SERVER}, this is {server.major}", fix="upgrade the server"
                )
            await conn.execute(_LOCK_TIMEOUT)
            await conn.execute(_LOCK, self.schema)
            # Not "if not exists" alone: that asks for CREATE on the database even where there is nothing to create.
            if not await conn.fetchval(_SCHEMA_EXISTS, self.schema):
                await conn.execute(self._of_schema(_SCHEMA))
            await conn.execute(self._of_schema(_VERSION_TABLE))
            installed = await self.installed(conn)
            if installed > self.version:
                raise self.mismatch(
                    f"{self.name} has version {installed}, this library knows {self.version}", fix="upgrade the library"
                )
            for version in range(installed + 1, self.version + 1):
                await conn.execute(self._file(self.migrations[version - 1]))
                await conn.execute(self._of_schema(_WRITE_VERSION), version)
            for file in self.repeated:
                await conn.execute(self._file(file))
            yield installed

    def _of_schema(self, template: str) -> str:
        return template.format(schema=self.schema)

    def _file(self, name: str) -> str:
        return importlib.resources.files(self.package).joinpath("sql", name).read_text("utf-8")
