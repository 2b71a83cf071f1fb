"""Databases of a benchmark's own, and the counters that the server keeps about them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from replank.testing import servers
from replank.testing.wait import eventually

RESETS: Final = ("SELECT pg_advisory_unlock_all()", "CLOSE ALL", "UNLISTEN *", "RESET ALL")
"""What asyncpg sends when a connection is given back to its pool."""


class CountersLost(RuntimeError):
    """The server's statistics cannot be used: something in them was lost between two looks."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What the server had counted at one moment. Subtract two of them.

    ``statements`` are top-level calls in one database (`pg_stat_statements`), ``statement_wal`` the WAL bytes that
    these wrote; ``server_wal`` is the server's WAL position, so it includes commits, vacuum and everybody else.
    """

    statements: int
    statement_wal: int
    server_wal: int
    epoch: tuple[int, datetime]
    """Changes whenever `pg_stat_statements` has forgotten something, which it does when it is full or is reset."""

    def __sub__(self, before: Counters) -> Counters:
        """What came to pass since. Raises `CountersLost`."""
        if self.epoch != before.epoch:
            raise CountersLost("pg_stat_statements was reset, or ran full and forgot statements, while it was counting")
        return Counters(
            epoch=self.epoch,
            statements=self.statements - before.statements,
            statement_wal=self.statement_wal - before.statement_wal,
            server_wal=self.server_wal - before.server_wal,
        )


@dataclass(frozen=True, slots=True)
class Churn:
    """Row versions that updates and deletes have left behind since the database was made, vacuumed since or not."""

    named: int
    """In the tables that were asked about."""
    other: int
    """In all other tables of the database."""


class Server:
    """A Postgres server, seen from a database beside the ones that are measured, so that looking is never counted."""

    def __init__(self, dsn: str, observer: asyncpg.Connection) -> None:
        self._dsn = dsn
        self._observer = observer

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """A new database, dropped afterwards with its replication slots. Yields its DSN."""
        async with servers.database(self._dsn) as dsn:
            try:
                yield dsn
            finally:
                await self._drop_slots(_name(dsn))

    async def _drop_slots(self, database: str) -> None:
        """Drop the database's replication slots, which would keep it from being dropped."""
        await self._observer.execute(_FREE_SLOTS, database)

        async def gone() -> bool:
            await self._observer.execute(_DROP_IDLE_SLOTS, database)
            return not await self._observer.fetchval(_SLOTS_LEFT, database)

        await eventually(gone, f"the replication slots of {database} are dropped")

    async def checkpoint(self) -> None:
        """Start from a clean checkpoint, so that every subject pays for full-page images alike."""
        await self._observer.execute("checkpoint")

    async def counters(self, dsn: str) -> Counters:
        """The counters of the database behind ``dsn``."""
        # Make room first: what databases that are gone have left behind would push out what is being counted.
        await self._observer.execute(_FORGET_DROPPED)
        row = await self._observer.fetchrow(_COUNTERS, _name(dsn))
        assert row is not None
        statements, statement_wal, server_wal, forgotten, reset_at = row
        return Counters(statements, statement_wal, server_wal, epoch=(forgotten, reset_at))

    async def resets(self, dsn: str) -> int:
        """How many of the statements in the database behind ``dsn`` were no caller's, but asyncpg's own: a pool resets
        each connection that it gets back, by `RESETS` statements in one round trip."""
        count: int = await self._observer.fetchval(_RESETS, _name(dsn), list(RESETS))
        return count


@asynccontextmanager
async def server(dsn: str) -> AsyncIterator[Server]:
    """Connect to the server behind ``dsn``, which must be a superuser's: statistics and WAL positions are read."""
    async with servers.database(dsn) as beside:
        observer = await asyncpg.connect(beside)
        try:
            await observer.execute("create extension pg_stat_statements")
            yield Server(dsn, observer)
        finally:
            await observer.close()


async def churn(dsn: str, schema: str, tables: str) -> Churn:
    """Row versions left behind in the database; ``tables`` is a pattern for LIKE over names of tables in ``schema``.

    Read it when the processes that wrote have ended: sessions hand in their statistics when they close.
    """
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow(_CHURN, schema, tables)
        assert row is not None
        return Churn(named=row["named"], other=row["other"])
    finally:
        await connection.close()


def _name(dsn: str) -> str:
    return urlsplit(dsn).path.lstrip("/")


_COUNTERS = """
select (select coalesce(sum(s.calls), 0)::bigint from pg_stat_statements(false) s where s.dbid = d.oid),
       (select coalesce(sum(s.wal_bytes), 0)::bigint from pg_stat_statements(false) s where s.dbid = d.oid),
       pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
       i.dealloc,
       i.stats_reset
  from pg_database d
 cross join pg_stat_statements_info i
 where d.datname = $1
"""

_RESETS = """
select coalesce(sum(s.calls), 0)::bigint
  from pg_stat_statements s join pg_database d on d.oid = s.dbid
 where d.datname = $1 and rtrim(s.query, ';') = any($2)
"""

_FORGET_DROPPED = """
select pg_stat_statements_reset(s.userid, s.dbid, s.queryid)
  from pg_stat_statements(false) s
 where not exists (select from pg_database d where d.oid = s.dbid)
"""

_CHURN = """
select coalesce(sum(n_tup_upd + n_tup_del) filter (where schemaname = $1 and relname like $2), 0)::bigint as named,
       coalesce(sum(n_tup_upd + n_tup_del) filter (where not (schemaname = $1 and relname like $2)), 0)::bigint as other
  from pg_stat_user_tables
"""

_FREE_SLOTS = "select pg_terminate_backend(active_pid) from pg_replication_slots where database = $1 and active"

_DROP_IDLE_SLOTS = """
select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1 and not active
"""

_SLOTS_LEFT = "select count(*) from pg_replication_slots where database = $1"
