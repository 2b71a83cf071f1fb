"""Partitions of the event table: bounded ones some time ahead of now, and a last one without an end.

In normal operation everything here takes SHARE UPDATE EXCLUSIVE on the event table, which no reader and no writer
notices. Only when maintenance was down for longer than the partitions reached ahead, and rows have landed in the last
partition, is there a moment of ACCESS EXCLUSIVE, under a short lock_timeout.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from replank.connection import Connection

_log = logging.getLogger(__name__)

TAIL: Final = "event_tail"
FIRST: Final = "event_first"


# Bounds are read back from the catalog, which cannot disagree with itself.
_LIST: Final = """
    select c.relname as name,
           nullif(substring(e.bound from 'FROM \\(''?([^'')]*)''?\\)'), 'MINVALUE')::timestamptz as lower,
           nullif(substring(e.bound from 'TO \\(''?([^'')]*)''?\\)'), 'MAXVALUE')::timestamptz as upper,
           pg_total_relation_size(c.oid) as bytes,
           i.inhdetachpending as detaching
      from pg_inherits i
      join pg_class c on c.oid = i.inhrelid
     cross join lateral (select pg_get_expr(c.relpartbound, c.oid) as bound) as e
     where i.inhparent = 'replank_outbox.event'::regclass
     order by 2 nulls first
"""
# Intervals are counted from a fixed day, so that every process computes the same bounds.
_BOUNDS: Final = """
    select date_bin(partition_interval, clock_timestamp(), timestamptz '2000-01-01 00:00:00+00') as current_start,
           partition_interval as step, partitions_ahead as ahead
      from replank_outbox.config
"""
_END_OF_TAIL: Final = """
    select date_bin(partition_interval, greatest(clock_timestamp(), newest), timestamptz '2000-01-01 00:00:00+00')
           + partition_interval
      from replank_outbox.config, (select max(created_at) as newest from replank_outbox.event_tail) as tail
"""
_HAS_TAIL: Final = """
    select exists (select from pg_inherits where inhparent = 'replank_outbox.event'::regclass
                      and inhrelid = to_regclass('replank_outbox.event_tail'))
"""
_TAIL_HAS_ROWS: Final = "select exists (select from replank_outbox.event_tail)"
# Whoever has written to a partition and not committed holds ROW EXCLUSIVE on it, and has rows there that nobody sees.
_WAIT_FOR_WRITERS: Final = "select format('lock table replank_outbox.%I in share mode', $1::text)"
_NAME: Final = "select to_char($1::timestamptz at time zone 'UTC', '\"event_\"YYYYMMDD\"t\"HH24MISS')"

# A table of ours that is no partition: a maintenance run died between two of its steps.
_ORPHANS: Final = """
    select c.relname as name, obj_description(c.oid, 'pg_class') = 'passed' as passed
      from pg_class c
     where c.relnamespace = 'replank_outbox'::regnamespace and c.relkind = 'r' and not c.relispartition
       and c.relname ~ '^event_(tail|[0-9]{8}t[0-9]{6})$'
"""
# DDL takes no parameters: Postgres' own format() quotes the identifiers and literals.
_HAS_ROWS: Final = "select format('select exists (select from replank_outbox.%I)', $1::text)"
_CREATE: Final = (
    "select format('create table if not exists replank_outbox.%I (like replank_outbox.event including all)', $1::text)"
)
_ATTACH: Final = """
    select format('alter table replank_outbox.event attach partition replank_outbox.%I for values from (%s) to (%s)',
                  $1::text, coalesce(quote_literal($2::timestamptz), 'minvalue'),
                  coalesce(quote_literal($3::timestamptz), 'maxvalue'))
"""
_BOUND: Final = """
    select format('alter table replank_outbox.event_tail add constraint bound check (created_at is not null'
                  ' and created_at >= %L::timestamptz and created_at < %L::timestamptz) not valid',
                  $1::timestamptz, $2::timestamptz)
"""
_UNBOUND: Final = "alter table replank_outbox.event_tail drop constraint if exists bound"
_VALIDATE: Final = "alter table replank_outbox.event_tail validate constraint bound"
_DETACH: Final = "alter table replank_outbox.event detach partition replank_outbox.event_tail"
_DETACH_CONCURRENTLY: Final = """
    select format('alter table replank_outbox.event detach partition replank_outbox.%I concurrently', $1::text)
"""
_FINALIZE: Final = """
    select format('alter table replank_outbox.event detach partition replank_outbox.%I finalize', $1::text)
"""
_RENAME_TAIL: Final = "select format('alter table replank_outbox.event_tail rename to %I', $1::text)"
_DROP_BOUND: Final = "select format('alter table replank_outbox.%I drop constraint bound', $1::text)"
_MARK_PASSED: Final = "select format('comment on table replank_outbox.%I is ''passed''', $1::text)"
_DROP: Final = "select format('drop table replank_outbox.%I', $1::text)"


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition. ``lower`` is inclusive, ``upper`` exclusive, None unbounded; ``bytes`` is with index and TOAST."""

    name: str
    lower: datetime | None
    upper: datetime | None
    bytes: int
    detaching: bool


async def partitions(conn: Connection) -> list[Partition]:
    """All partitions of the event table, oldest first."""
    return [Partition(**dict(row)) for row in await conn.fetch(_LIST)]


async def create_first(conn: Connection) -> None:
    """Create the partitions of a new outbox. Call it inside the transaction that creates the event table."""
    ((start, step, ahead),) = await conn.fetch(_BOUNDS)
    # Nothing is ever written here unless a clock steps back: it exists so that even then no writer fails.
    await _create(conn, FIRST, None, start)
    await _create_bounded(conn, start, start + step * (ahead + 1), step)
    await _create(conn, TAIL, start + step * (ahead + 1), None)


async def extend(conn: Connection) -> int:
    """Make sure that bounded partitions reach as far ahead as configured; returns how many were created.

    Needs a connection outside of any transaction, with a short ``lock_timeout``; when a lock is not to be had it raises
    `asyncpg.LockNotAvailableError` and can simply be called again later. Repairs what an interrupted run left behind.
    """
    await _repair(conn)
    ((start, step, ahead),) = await conn.fetch(_BOUNDS)
    wanted = start + step * (ahead + 1)
    bounded = [partition.upper for partition in await partitions(conn) if partition.upper is not None]
    bounded_until = max(bounded)
    if not await conn.fetchval(_HAS_TAIL):
        await _create(conn, TAIL, bounded_until, None)
    if bounded_until >= wanted:
        return 0
    if bounded_until <= start + step or await _is_in_use(conn):
        return await _split_tail(conn, bounded_until) + await extend(conn)
    # Nobody will write to it: its first instant is more than an interval away.
    await _execute(conn, _DETACH_CONCURRENTLY, TAIL)
    await _execute(conn, _DROP, TAIL)
    created = await _create_bounded(conn, bounded_until, wanted, step)
    await _create(conn, TAIL, wanted, None)
    return created


async def drop(conn: Connection, name: str) -> None:
    """Detach and drop a partition whose rows nobody needs any more. Outside of a transaction, as `extend`."""
    # A run that dies between the two steps leaves a table of which the next run must know that it may go.
    await _execute(conn, _MARK_PASSED, name)
    await _execute(conn, _DETACH_CONCURRENTLY, name)
    await _execute(conn, _DROP, name)


async def wait_for_writers(conn: Connection, name: str) -> None:
    """Return when everything written to a partition is committed. Inside a transaction; holds off writers to it."""
    await _execute(conn, _WAIT_FOR_WRITERS, name)


async def _is_in_use(conn: Connection) -> bool:
    async with conn.transaction():
        await wait_for_writers(conn, TAIL)
        in_use: bool = await conn.fetchval(_TAIL_HAS_ROWS)
        return in_use


async def _repair(conn: Connection) -> None:
    for partition in await partitions(conn):
        if partition.detaching:
            await _execute(conn, _FINALIZE, partition.name)
    for name, passed in await conn.fetch(_ORPHANS):
        if passed or not await conn.fetchval(await conn.fetchval(_HAS_ROWS, name)):
            await _execute(conn, _DROP, name)
        else:
            _log.error("outbox table %s holds events but is no partition: attach it by hand", name)


async def _split_tail(conn: Connection, lower: datetime) -> int:
    """Give the last partition, rows and all, an end, and put a new one behind it."""
    upper: datetime = await conn.fetchval(_END_OF_TAIL)
    # The proof that its rows are in bounds is made beforehand, blocking nobody, so that attaching scans nothing.
    await conn.execute(_UNBOUND)
    await _execute(conn, _BOUND, lower, upper)
    await conn.execute(_VALIDATE)
    name = await conn.fetchval(_NAME, lower)
    async with conn.transaction():
        await conn.execute(_DETACH)
        await _execute(conn, _RENAME_TAIL, name)
        await _execute(conn, _ATTACH, name, lower, upper)
        await _execute(conn, _DROP_BOUND, name)
        await _create(conn, TAIL, upper, None)
    _log.warning(
        "outbox maintenance was late: events had reached the last partition, which is now bounded",
        extra={"partition": name, "upper": upper.isoformat()},
    )
    return 1


async def _create_bounded(conn: Connection, lower: datetime, until: datetime, step: timedelta) -> int:
    created = 0
    while lower < until:
        await _create(conn, await conn.fetchval(_NAME, lower), lower, lower + step)
        lower += step
        created += 1
    return created


async def _create(conn: Connection, name: str, lower: datetime | None, upper: datetime | None) -> None:
    """Create a table by itself and attach it: `create table … partition of` takes ACCESS EXCLUSIVE on the parent."""
    async with conn.transaction():
        await _execute(conn, _CREATE, name)
        await _execute(conn, _ATTACH, name, lower, upper)


async def _execute(conn: Connection, statement: str, *arguments: object) -> None:
    await conn.execute(await conn.fetchval(statement, *arguments))
