"""Reading the event table by snapshot windows.

A window is what is visible in one snapshot and was not in the one before (the idea of PgQ). Transactions that commit
late are in the window in which they become visible, whatever their ids: nothing is skipped, and a long transaction
delays nothing but itself. Candidates are found by the index on (xid, id): transactions that began after the previous
snapshot, and those that were in progress in it.

Within a window rows are read in id order. For one key, id order is commit order, because `append` holds the key's lock
while it draws the id; and a window holds, with an event, every earlier event of its key that was not in a window
before. Which rows a window holds is fixed by its two snapshots, so it can be read again from any id on.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import asyncpg

from replank.connection import POSTGRES_ERRORS, Connection
from replank.outbox.lease import Cursor, Snapshot
from replank.outbox.settings import RelaySettings

Portal: TypeAlias = "asyncpg.cursor.Cursor[Any]"

_MAX_ID: Final = 2**63 - 1

# The plan must be the same whatever the statistics say, also on a table that was never analyzed.
SESSION: Final = {
    "application_name": "replank-outbox-relay",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "work_mem": "64MB",
    # A cursor that survives a crash of the server while the transactions before it do not would skip events.
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": "0",
    "statement_timeout": "0",
}

# A value over 8 KiB is fetched by itself, so that the memory of a page is bounded by rows and by bytes.
_COLUMNS: Final = """
    e.id, e.event_id::text as event_id, e.created_at, e.topic, e.key, e.type, e.source, e.subject,
    case when octet_length(e.value) <= 8192 then e.value end as value,
    case when octet_length(e.value) > 8192 then e.xid end as deferred,
    e.traceparent, e.tracestate, e.baggage, e.headers::text as headers
"""
# The one row that carries the snapshot, as text in the place of the headers, and that no event can be: it has no id.
_SNAPSHOT_ROW: Final = """
    select null::bigint, null::text, null::timestamptz, null::text, null::text, null::text, null::text, null::text,
           null::bytea, null::xid8, null::text, null::text, null::text, pg_current_snapshot()::text
"""
# Whatever is visible now and was not in $1, unordered and at most $2 rows of it, and one row with the snapshot.
# MVCC itself says what is visible: the statement's snapshot is the one that it returns.
_POLL: Final = """
    {snapshot_row}
     union all
    (select * from (
        select {columns} from replank_outbox.event e
         where e.xid >= pg_snapshot_xmax($1::pg_snapshot)
           and e.id > $3 and ($5 = 1 or e.bucket % $5 = $4)
         union all
        select {columns} from replank_outbox.event e
         where e.xid = any (array(select x from pg_snapshot_xip($1::pg_snapshot) as x
                                   where pg_visible_in_snapshot(x, pg_current_snapshot())))
           and e.id > $3 and ($5 = 1 or e.bucket % $5 = $4)) as visible
      limit $2)
"""
POLL: Final = _POLL.format(snapshot_row=_SNAPSHOT_ROW, columns=_COLUMNS)
# The rows of the window from $1 to $2 with ids in ($3, $4].
_WINDOW: Final = """
    from (
        select {columns} from replank_outbox.event e
         where e.xid >= pg_snapshot_xmax($1::pg_snapshot) and e.xid < pg_snapshot_xmax($2::pg_snapshot)
           and pg_visible_in_snapshot(e.xid, $2::pg_snapshot)
           and e.id > $3 and e.id <= $4 and ($6 = 1 or e.bucket % $6 = $5)
         union all
        select {columns} from replank_outbox.event e
         where e.xid = any (array(select x from pg_snapshot_xip($1::pg_snapshot) as x
                                   where pg_visible_in_snapshot(x, $2::pg_snapshot)))
           and e.id > $3 and e.id <= $4 and ($6 = 1 or e.bucket % $6 = $5)) as e
"""
PAGES: Final = "select e.*" + _WINDOW.format(columns=_COLUMNS) + "order by e.id"
MEASURE: Final = "select min(e.id), max(e.id)" + _WINDOW.format(columns="e.id")
# After a restore transaction ids mean nothing. This happens once, and is allowed to scan.
_REPLAY: Final = """
    from replank_outbox.event e where e.id > $1 and e.id <= $2 and ($4 = 1 or e.bucket % $4 = $3)
"""
REPLAY_PAGES: Final = f"select {_COLUMNS}" + _REPLAY + "order by e.id"
REPLAY_MEASURE: Final = "select min(e.id), max(e.id)" + _REPLAY
_ALLOW_SCAN: Final = "set local enable_seqscan = on"

VALUES: Final = """
    select e.id, e.value
      from unnest($1::xid8[], $2::bigint[]) as wanted(xid, id)
      join replank_outbox.event e on e.xid = wanted.xid and e.id = wanted.id
"""
_VALUE_SIZES: Final = """
    select e.id, octet_length(e.value)
      from unnest($1::xid8[], $2::bigint[]) as wanted(xid, id)
      join replank_outbox.event e on e.xid = wanted.xid and e.id = wanted.id
"""

_CLUSTER: Final = "select replank_outbox.cluster()"
_SNAPSHOT: Final = "select pg_current_snapshot()"
# Waits for appends under way, lets none begin: afterwards every new event has a higher id than all that are there.
_HOLD_APPENDS: Final = "lock table replank_outbox.event in share row exclusive mode"
_HIGHEST_ID: Final = "select coalesce(max(id), 0) from replank_outbox.event"
_RAISE_SEQUENCE: Final = """
    select setval('replank_outbox.event_id', greatest($1, (select last_value from replank_outbox.event_id)))
"""
_AHEAD: Final = """
    select pg_snapshot_xmax($1::pg_snapshot) > pg_snapshot_xmax(pg_current_snapshot())
"""
# How many times as long as for a page the relay waits for what is worked out over a whole backlog.
_BACKLOG_PATIENCE: Final = 20

_LOCK_TIMEOUT: Final = "set local lock_timeout = '5s'"
_QUARANTINED: Final = "select id from replank_outbox.quarantine"


# One event as it is read, in the order of _COLUMNS. A record unpacks as a tuple; anything dearer would show.
Row: TypeAlias = asyncpg.Record
ID: Final = 0
EVENT_ID: Final = 1
CREATED_AT: Final = 2
TOPIC: Final = 3
KEY: Final = 4
VALUE: Final = 8
DEFERRED: Final = 9
HEADERS: Final = 13


class Page(NamedTuple):
    """Events in id order, with the values that were too large to be read with their rows, by id."""

    rows: Sequence[Row]
    values: Mapping[int, bytes]

    @property
    def last_id(self) -> int:
        last: int = self.rows[-1][ID]
        return last


@dataclass(frozen=True, slots=True)
class Restore:
    """What a database that came out of a dump begins with: its snapshot, and the highest id of the dump."""

    previous: Snapshot
    floor_id: int


@asynccontextmanager
async def connection(dsn: str, *, statement_timeout: float | None = None, **session: str) -> AsyncIterator[Connection]:
    """A connection for the relay, with its fixed plans. ``statement_timeout``: after so many seconds it gives up.

    Without one, a server that vanished in silence is noticed only by TCP.
    """
    conn = await asyncpg.connect(dsn, server_settings=SESSION | session, command_timeout=statement_timeout, timeout=10)
    try:
        yield conn
    except BaseException:
        # The server may be gone, or in the middle of a query that nobody waits for any more: no time for a good-bye.
        conn.terminate()
        raise
    try:
        await conn.close(timeout=1.0)
    except POSTGRES_ERRORS:
        conn.terminate()


async def read_times_as_integers(conn: Connection) -> None:
    """Let timestamptz be microseconds since 2000-01-01 UTC on this connection: a tenth of the cost of datetimes."""
    await conn.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=lambda us: (us,), decoder=lambda us: us[0], format="tuple"
    )


async def cluster_identity(conn: Connection) -> str:
    """Whose transaction ids these are: the cluster's system identifier and the database's oid."""
    identity: str = await conn.fetchval(_CLUSTER)
    return identity


async def is_ahead(conn: Connection, cursor: Cursor) -> bool:
    """Whether the cursor has seen transactions that this cluster has not reached: then it is not this cluster's."""
    ahead: bool = await conn.fetchval(_AHEAD, cursor.current or cursor.previous)
    return ahead


async def begin_restore(conn: Connection) -> Restore:
    """Draw the line between what came with a dump and what is appended here. Inside a transaction."""
    await conn.execute(_LOCK_TIMEOUT)
    await conn.execute(_HOLD_APPENDS)
    floor_id: int = await conn.fetchval(_HIGHEST_ID)
    await conn.fetchval(_RAISE_SEQUENCE, max(floor_id, 1))
    return Restore(await conn.fetchval(_SNAPSHOT), floor_id)


class WindowReader:
    """Reads one shard's events, on a connection of its own, whose timeout is that of ``settings``.

    Everything raises `TimeoutError` when Postgres does not answer in time; the connection is of no use afterwards.
    """

    def __init__(self, conn: Connection, shard: int, shards: int, settings: RelaySettings) -> None:
        self._conn = conn
        self._shard = shard
        self._shards = shards
        self._settings = settings
        self._patience = settings.read_timeout * _BACKLOG_PATIENCE
        self.statements = 0

    async def poll(self, cursor: Cursor, limit: int) -> tuple[Snapshot, list[Row] | None]:
        """What has become visible since ``cursor.previous``, in id order, with the snapshot that says so.

        None in place of the rows means that there are more than ``limit``: read them with `pages`. One statement, and
        an index probe per partition when there is nothing.
        """
        self.statements += 1
        rows = await self._conn.fetch(POLL, cursor.previous, limit + 1, cursor.floor_id, self._shard, self._shards)
        rows.sort(key=_id)
        snapshot = _parse_snapshot(rows[0][HEADERS])
        return snapshot, rows[1:] if len(rows) <= limit + 1 else None

    async def pages(self, cursor: Cursor, page_rows: Callable[[], int]) -> AsyncGenerator[Page]:
        """What is left of the window in progress, or of the replay, page by page in id order.

        Close the iterator when you stop early; that closes the connection, too. Rows come from server-side cursors that
        sort once, each over a stretch of ids that bounds what the server sorts, in read transactions that are bounded
        in time.
        """
        lowest, highest = await self._measure(cursor)
        if lowest is None or highest is None:
            return
        stretch = max(self._settings.chunk_rows, (highest - lowest) // 64)
        after = lowest - 1
        while after < highest:
            until = min(after + stretch, highest)
            deadline = time.monotonic() + self._settings.read_transaction
            async with self._read_transaction():
                portal = await self._open(cursor, after, until)
                after = until
                timeout: float | None = self._patience  # the first page comes after the sorting
                while rows := await portal.fetch(page_rows(), timeout=timeout):
                    timeout = None
                    self.statements += 1
                    async for page in self.complete(rows):
                        yield page
                    if time.monotonic() > deadline:
                        after = rows[-1][ID]
                        break

    async def complete(self, rows: Sequence[Row]) -> AsyncGenerator[Page]:
        """Rows as one page; or as several with their large values, so that no more than a page of them is in memory."""
        large = [row for row in rows if row[DEFERRED] is not None]
        if not large:
            yield Page(rows, {})
            return
        self.statements += 1
        sizes = dict(await self._conn.fetch(_VALUE_SIZES, *_identify(large)))
        start, size = 0, 0
        for end, row in enumerate(rows):
            size += sizes.get(row[ID], 0)
            if size > self._settings.page_bytes and end > start:
                yield await self._with_values(rows[start:end])
                start, size = end, sizes.get(row[ID], 0)
        yield await self._with_values(rows[start:])

    async def quarantined(self) -> frozenset[int]:
        """The ids of the events that an operator took out of the way."""
        return frozenset(row[0] for row in await self._conn.fetch(_QUARANTINED))

    @asynccontextmanager
    async def _read_transaction(self) -> AsyncIterator[None]:
        """A transaction that takes the connection along when it fails, instead of rolling back.

        A server that vanished does not answer a rollback either, and whoever loses a lease must not wait for it.
        """
        transaction = self._conn.transaction()
        await transaction.start()
        try:
            yield
        except BaseException:
            self._conn.terminate()
            raise
        await transaction.commit()

    async def _with_values(self, rows: Sequence[Row]) -> Page:
        large = [row for row in rows if row[DEFERRED] is not None]
        if not large:
            return Page(rows, {})
        self.statements += 1
        return Page(rows, dict(await self._conn.fetch(VALUES, *_identify(large))))

    async def _measure(self, cursor: Cursor) -> tuple[int | None, int | None]:
        self.statements += 1
        if cursor.replay_to is not None:
            ((lowest, highest),) = await self._conn.fetch(
                REPLAY_MEASURE, cursor.last_id, cursor.replay_to, self._shard, self._shards, timeout=self._patience
            )
        else:
            after = max(cursor.last_id, cursor.floor_id)
            ((lowest, highest),) = await self._conn.fetch(
                MEASURE,
                cursor.previous,
                cursor.current,
                after,
                _MAX_ID,
                self._shard,
                self._shards,
                timeout=self._patience,
            )
        return lowest, highest

    async def _open(self, cursor: Cursor, after: int, until: int) -> Portal:
        self.statements += 1
        if cursor.replay_to is not None:
            await self._conn.execute(_ALLOW_SCAN)
            return await self._conn.cursor(REPLAY_PAGES, after, until, self._shard, self._shards)
        return await self._conn.cursor(PAGES, cursor.previous, cursor.current, after, until, self._shard, self._shards)


def _id(row: Row) -> int:
    return row[ID] or 0


def _identify(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    return [row[DEFERRED] for row in rows], [row[ID] for row in rows]


def _parse_snapshot(text: str) -> Snapshot:
    xmin, xmax, in_progress = text.split(":")
    return int(xmin), int(xmax), tuple(int(xid) for xid in in_progress.split(",")) if in_progress else ()
