"""Put the inbox into a database, and check one that is there."""

from __future__ import annotations

import importlib.resources
from datetime import timedelta
from typing import Final

from replank.connection import Connection
from replank.errors import ReplankError
from replank.inbox import store
from replank.inbox.settings import InboxSettings
from replank.outbox import Finding

# Every file is applied once, in order; its number is the version. functions.sql is applied by every install.
_MIGRATIONS: Final = ("0001_tables.sql",)
VERSION: Final = len(_MIGRATIONS)

_MINIMUM_SERVER: Final = 15

_LOCK: Final = "select pg_advisory_xact_lock(hashtextextended('replank_inbox.install', 0))"
_LOCK_TIMEOUT: Final = "set local lock_timeout = '3s'"
_SCHEMA: Final = "create schema if not exists replank_inbox"
_SCHEMA_EXISTS: Final = "select to_regnamespace('replank_inbox') is not null"
_VERSION_TABLE: Final = """
create table if not exists replank_inbox.version (
    version integer primary key, installed_at timestamptz not null default clock_timestamp())
"""
_HAS_VERSION: Final = "select to_regclass('replank_inbox.version') is not null"
_READ_VERSION: Final = "select coalesce(max(version), 0) from replank_inbox.version"
_WRITE_VERSION: Final = "insert into replank_inbox.version (version) values ($1)"
_AHEAD: Final = "select coalesce(max(begins) > now(), false) from replank_inbox.applied_partition"
_CAN_WRITE: Final = """
select coalesce(bool_and(has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')), false)
from pg_catalog.pg_class c where c.relnamespace = 'replank_inbox'::regnamespace and c.relkind in ('r', 'p')
"""
_HAS_OUTBOX: Final = """
select to_regproc('replank_outbox.append') is not null
"""
_DEFAULTS: Final = InboxSettings()


class InboxMismatch(ReplankError):
    """The inbox that is installed, or the server under it, cannot be used by this library."""


async def install(
    conn: Connection,
    *,
    retention: timedelta | None = _DEFAULTS.retention,
    partition_days_ahead: int = _DEFAULTS.partition_days_ahead,
) -> int:
    """Install the inbox, or bring one that is there up to date; returns its version. Safe to repeat and to race.

    The role needs CREATE on the database, or to own the schema ``replank_inbox``; it becomes the owner.

    Raises `InboxMismatch` for a newer inbox than this library knows and for a server older than Postgres 15;
    `asyncpg.LockNotAvailableError` when a lock is not to be had within 3 seconds.
    """
    async with conn.transaction():
        server = conn.get_server_version()
        if server.major < _MINIMUM_SERVER:
            raise InboxMismatch(f"the inbox needs Postgres {_MINIMUM_SERVER}, this is {server.major}", fix="upgrade it")
        await conn.execute(_LOCK_TIMEOUT)
        await conn.execute(_LOCK)
        # Not "if not exists" alone: that asks for CREATE on the database even where there is nothing to create.
        if not await conn.fetchval(_SCHEMA_EXISTS):
            await conn.execute(_SCHEMA)
        await conn.execute(_VERSION_TABLE)
        installed: int = await conn.fetchval(_READ_VERSION)
        if installed > VERSION:
            raise InboxMismatch(
                f"the inbox has version {installed}, this library knows {VERSION}", fix="upgrade the library"
            )
        for version in range(installed + 1, VERSION + 1):
            await conn.execute(_sql(_MIGRATIONS[version - 1]))
            await conn.execute(_WRITE_VERSION, version)
        await conn.execute(_sql("functions.sql"))
        await store.maintain(conn, retention, partition_days_ahead)
    return VERSION


def _sql(name: str) -> str:
    return importlib.resources.files("replank.inbox").joinpath("sql", name).read_text(encoding="utf-8")


async def verify(conn: Connection, *, dead_letter_topic: bool = True) -> list[Finding]:
    """What is wrong with the inbox of this database; nothing if all is well. Changes nothing.

    ``dead_letter_topic``: whether dead letters are also published, which needs an outbox beside the inbox.
    """
    findings: list[Finding] = []
    installed: int = await conn.fetchval(_READ_VERSION) if await conn.fetchval(_HAS_VERSION) else 0
    if installed != VERSION:
        found = f"the inbox has version {installed}" if installed else "this database has no inbox"
        return [
            Finding(
                "error",
                "version",
                f"{found}, this library needs {VERSION}",
                "run inbox.install(conn)" if installed < VERSION else "upgrade the library",
            )
        ]
    if not await conn.fetchval(_CAN_WRITE):
        findings.append(
            Finding(
                "error", "privileges", "this role may not write to the inbox", "install it as the role that consumes"
            )
        )
    if not await conn.fetchval(_AHEAD):
        findings.append(
            Finding(
                "warning",
                "partitions",
                "the partitions for the days to come are missing, so that retention will free less at a time",
                "keep a consumer running: it makes them; its log says why it could not",
            )
        )
    if dead_letter_topic and not await conn.fetchval(_HAS_OUTBOX):
        findings.append(
            Finding(
                "error",
                "no_outbox",
                "dead letters are to be published, and this database has no outbox",
                "run outbox.install(conn), or set dead_letter_topic=False",
            )
        )
    return findings
