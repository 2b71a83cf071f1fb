"""Put the outbox into a database, and check one that is there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from replank.connection import Connection
from replank.errors import ConfigurationError, ReplankError
from replank.installation import Installation
from replank.outbox import partitions

_log = logging.getLogger(__name__)


class OutboxMismatch(ReplankError):
    """The outbox that is installed cannot be used as asked."""


_INSTALLATION: Final = Installation(
    schema="replank_outbox",
    name="the outbox",
    package="replank.outbox",
    migrations=("0001_tables.sql",),
    repeated=("functions.sql",),
    mismatch=OutboxMismatch,
)
VERSION: Final = _INSTALLATION.version

_CONFIGURE: Final = """
    insert into replank_outbox.config (shards, partition_interval, partitions_ahead) values ($1, $2, $3)
"""
_CREATE_SHARDS: Final = """
    insert into replank_outbox.shard (shard, cluster)
    select shard, replank_outbox.cluster() from generate_series(0, $1::integer - 1) as shard
"""
_RECONFIGURE: Final = "update replank_outbox.config set partition_interval = $1, partitions_ahead = $2"
_INSTALLED: Final = "select to_regclass('replank_outbox.shard') is not null"
_SHARDS: Final = "select shards from replank_outbox.config"
_NOTIFY_OFF: Final = "drop trigger if exists wake on replank_outbox.event"
_NOTIFY_ON: Final = """
    create trigger wake after insert on replank_outbox.event
        for each statement execute function replank_outbox.wake()
"""
_NOTIFIES: Final = """
    select exists (select from pg_trigger where tgrelid = 'replank_outbox.event'::regclass and tgname = 'wake')
"""
_GRANT: Final = """
    select format('grant usage on schema replank_outbox to %1$I;'
                  'grant execute on function replank_outbox.append, replank_outbox.append_many, '
                  'replank_outbox.append_ordered to %1$I', $1::text)
"""

_FUNCTIONS: Final = (
    *("append", "append_many", "append_ordered"),
    *("bucket", "check_headers", "cluster", "locks_held", "uuid7", "wake"),
)
_MISSING_FUNCTIONS: Final = """
    select wanted.name from unnest($1::text[]) as wanted(name)
     where not exists (select from pg_proc
                        where pronamespace = 'replank_outbox'::regnamespace and proname = wanted.name)
"""
_WITHOUT_INDEX: Final = """
    select i.inhrelid::regclass::text as name from pg_inherits i
     where i.inhparent = 'replank_outbox.event'::regclass
       and not exists (select from pg_index x where x.indrelid = i.inhrelid and x.indisvalid
                          and pg_get_indexdef(x.indexrelid, 1, true) = 'xid'
                          and pg_get_indexdef(x.indexrelid, 2, true) = 'id')
"""
_BOUNDED_AHEAD: Final = """
    select date_bin(partition_interval, clock_timestamp(), timestamptz '2000-01-01 00:00:00+00') + partition_interval
      from replank_outbox.config
"""
_SEQUENCE_CACHE: Final = "select seqcache from pg_sequence where seqrelid = 'replank_outbox.event_id'::regclass"
_SHARD_FINDINGS: Final = """
    select shard, updated_at is null as never_ran, lease_until < clock_timestamp() as free,
           stuck_event_id, stuck_reason,
           cluster <> replank_outbox.cluster()
           or pg_snapshot_xmax(coalesce(current, previous)) > pg_snapshot_xmax(pg_current_snapshot()) as restored
      from replank_outbox.shard order by shard
"""
_CAN_RELAY: Final = """
    select pg_has_role(current_user, relowner, 'usage') from pg_class where oid = 'replank_outbox.event'::regclass
"""
_OLDEST_TRANSACTION: Final = """
    select max(clock_timestamp() - xact_start) from pg_stat_activity
     where backend_xid is not null and datname = current_database() and pid <> pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something `verify` noticed. ``error`` means that events are or will be stuck or refused; ``code`` is stable."""

    severity: Literal["error", "warning"]
    code: str
    message: str
    fix: str


async def install(
    conn: Connection,
    *,
    shards: int = 1,
    notify: bool = False,
    partition_interval: timedelta = timedelta(days=1),
    partitions_ahead: int = 3,
) -> int:
    """Install the outbox, or bring one that is there up to date; returns its version. Safe to repeat and to race.

    ``shards`` is fixed by the first install: more shards let more relays work at once. ``notify`` makes every append
    wake the relay through NOTIFY, which serialises commits across the whole database: off by default, the relay polls.
    The role needs CREATE on the database, or to own the schema ``replank_outbox``; it becomes the owner.

    Raises `OutboxMismatch` for another number of shards, for a newer outbox than this library knows, and for a server
    older than Postgres 15; `asyncpg.LockNotAvailableError` when a lock is not to be had within 3 seconds.
    """
    if not 1 <= shards <= 64:
        raise ConfigurationError(f"the outbox cannot have {shards} shards", fix="choose 1 to 64")
    async with _INSTALLATION.installing(conn) as installed:
        if installed == 0:
            await conn.execute(_CONFIGURE, shards, partition_interval, partitions_ahead)
            await conn.execute(_CREATE_SHARDS, shards)
            await partitions.create_first(conn)
        else:
            existing: int = await conn.fetchval(_SHARDS)
            if existing != shards:
                raise OutboxMismatch(
                    f"the outbox has {existing} shards, not {shards}",
                    fix=f"install it with shards={existing}; the number is fixed by the first install",
                )
            await conn.execute(_RECONFIGURE, partition_interval, partitions_ahead)
        if notify != await conn.fetchval(_NOTIFIES):
            await conn.execute(_NOTIFY_ON if notify else _NOTIFY_OFF)
    _log.info("outbox installed", extra={"version": VERSION, "shards": shards, "was": installed})
    return VERSION


async def is_installed(conn: Connection) -> bool:
    """Whether this database has an outbox, of whatever version."""
    return bool(await conn.fetchval(_INSTALLED))


async def grant_append(conn: Connection, role: str) -> None:
    """Let ``role`` append events, and do nothing else with the outbox. Call it as the outbox's owner."""
    await conn.execute(await conn.fetchval(_GRANT, role))


async def verify(conn: Connection) -> list[Finding]:
    """Everything that is wrong with this database's outbox; empty when all is well. Reads only."""
    version = await _INSTALLATION.installed(conn)
    if version == 0:
        return [_error("not_installed", "this database has no outbox", "run `replank outbox install --dsn …`")]
    if version != VERSION:
        fix = "run `replank outbox install --dsn …`" if version < VERSION else "upgrade the library"
        return [_error("wrong_version", f"the outbox has version {version}, this library needs {VERSION}", fix)]
    return [*await _verify_objects(conn), *await _verify_partitions(conn), *await _verify_running(conn)]


async def _verify_objects(conn: Connection) -> list[Finding]:
    reinstall = "run `replank outbox install --dsn …` again"
    findings = [
        _error("missing_function", f"the function replank_outbox.{name} is missing", reinstall)
        for (name,) in await conn.fetch(_MISSING_FUNCTIONS, list(_FUNCTIONS))
    ]
    findings += [
        _error("missing_index", f"{name} has no valid index on (xid, id)", f"create index on {name} (xid, id)")
        for (name,) in await conn.fetch(_WITHOUT_INDEX)
    ]
    if (cache := await conn.fetchval(_SEQUENCE_CACHE)) != 1:
        findings.append(
            _error(
                "sequence_cache",
                f"the sequence replank_outbox.event_id caches {cache} values: per-key order is lost",
                "alter sequence replank_outbox.event_id cache 1",
            )
        )
    if not await conn.fetchval(_CAN_RELAY):
        findings.append(
            Finding(
                "warning",
                "not_owner",
                "this role does not own the outbox: a relay that runs as it cannot maintain partitions",
                "run the relay as the role that installed the outbox",
            )
        )
    return findings


async def _verify_partitions(conn: Connection) -> list[Finding]:
    existing = await partitions.partitions(conn)
    findings = []
    if not existing or existing[-1].upper is not None:
        findings.append(
            _error("missing_tail", "there is no open-ended partition: appends will fail in time", "start a relay")
        )
    bounded_until = max((p.upper for p in existing if p.upper is not None), default=None)
    if bounded_until is None or bounded_until < await conn.fetchval(_BOUNDED_AHEAD):
        findings.append(
            Finding(
                "warning",
                "missing_partition_ahead",
                f"no bounded partition ahead: they end at {bounded_until}",
                "start a relay, or look for `outbox maintenance` in its log",
            )
        )
    findings += [
        Finding("warning", "detach_pending", f"detaching {p.name} was interrupted", "a running relay finishes it")
        for p in existing
        if p.detaching
    ]
    return findings


async def _verify_running(conn: Connection) -> list[Finding]:
    findings = []
    for shard, never_ran, free, stuck_event_id, stuck_reason, restored in await conn.fetch(_SHARD_FINDINGS):
        if never_ran:
            findings.append(_error("never_ran", f"no relay has ever worked on shard {shard}", "start a relay"))
        elif free:
            findings.append(_error("no_relay", f"no relay holds shard {shard}", "start a relay"))
        if stuck_event_id is not None:
            findings.append(
                _error(
                    "stuck",
                    f"shard {shard} is stuck at event {stuck_event_id}: {stuck_reason}",
                    "remove the cause, or take the event out of the way with outbox.quarantine",
                )
            )
        if restored:
            findings.append(
                _error(
                    "restored",
                    f"the cursor of shard {shard} is another cluster's: this database was restored from a dump",
                    "start a relay: it notices, and publishes everything that is retained again",
                )
            )
    oldest: timedelta | None = await conn.fetchval(_OLDEST_TRANSACTION)
    if oldest is not None and oldest > timedelta(hours=1):
        findings.append(
            Finding(
                "warning",
                "long_transaction",
                f"a writing transaction has been open for {oldest}",
                "end it: its own events wait for its commit, and so do later events of the keys that it appended to",
            )
        )
    return findings


def _error(code: str, message: str, fix: str) -> Finding:
    return Finding("error", code, message, fix)
