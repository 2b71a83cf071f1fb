"""Put the inbox into a database, and check one that is there."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from replank.connection import Connection
from replank.errors import ReplankError
from replank.inbox import store
from replank.inbox.settings import InboxSettings
from replank.installation import Installation
from replank.outbox import Finding


class InboxMismatch(ReplankError):
    """The inbox that is installed, or the server under it, cannot be used by this library."""


_INSTALLATION: Final = Installation(
    schema="replank_inbox",
    name="the inbox",
    package="replank.inbox",
    migrations=("0001_tables.sql",),
    repeated=("functions.sql",),
    mismatch=InboxMismatch,
)
VERSION: Final = _INSTALLATION.version

_AHEAD: Final = "select coalesce(max(begins) > now(), false) from replank_inbox.applied_partition"
_CAN_WRITE: Final = """
select coalesce(bool_and(has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')), false)
from pg_catalog.pg_class c where c.relnamespace = 'replank_inbox'::regnamespace and c.relkind in ('r', 'p')
"""
_HAS_OUTBOX: Final = """
select to_regproc('replank_outbox.append') is not null
"""
_DEFAULTS: Final = InboxSettings()


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
    async with _INSTALLATION.installing(conn):
        await store.maintain(conn, retention, partition_days_ahead)
    return VERSION


async def verify(conn: Connection, *, dead_letter_topic: bool = True) -> list[Finding]:
    """What is wrong with the inbox of this database; nothing if all is well. Changes nothing.

    ``dead_letter_topic``: whether dead letters are also published, which needs an outbox beside the inbox.
    """
    findings: list[Finding] = []
    installed = await _INSTALLATION.installed(conn)
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
