"""Keeping the event table small: partitions ahead of now, and old ones dropped once nobody needs them."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final

from replank.connection import Connection
from replank.outbox import partitions

_log = logging.getLogger(__name__)


_NOW: Final = "select clock_timestamp()"
# Whether every shard has published every row: it has not what began after its snapshot, or was in progress in it.
_PASSED: Final = """
    select format(
        'select not exists (select from replank_outbox.shard s where s.replay_to is not null'
        ' or exists (select from replank_outbox.%1$I e'
        ' where e.xid >= pg_snapshot_xmax(s.previous) and e.id > s.floor_id)'
        ' or exists (select from replank_outbox.%1$I e where e.xid = any (array(select pg_snapshot_xip(s.previous)))'
        ' and e.id > s.floor_id))', $1::text)
"""


async def maintain(conn: Connection, retention: timedelta) -> tuple[int, int]:
    """Create partitions ahead and drop old ones; returns how many of each.

    A partition is dropped when its end is older than ``retention`` and every shard has passed every row of it. Needs a
    connection of its own as the outbox's owner, with a short ``lock_timeout``: `asyncpg.LockNotAvailableError` means
    that somebody was in the way and the next run will do it.
    """
    created = await partitions.extend(conn)
    horizon = await conn.fetchval(_NOW) - retention
    dropped = 0
    for partition in await partitions.partitions(conn):
        # The first and the last have no bound: they are never dropped, and normally empty.
        if partition.lower is None or partition.upper is None or partition.upper > horizon:
            continue
        if not await _is_passed(conn, partition.name):
            _log.warning("outbox partition %s is past its retention but not published: it is kept", partition.name)
            continue
        await partitions.drop(conn, partition.name)
        dropped += 1
        _log.info("outbox partition dropped", extra={"partition": partition.name, "bytes": partition.bytes})
    return created, dropped


async def _is_passed(conn: Connection, name: str) -> bool:
    async with conn.transaction():
        # Rows that are not committed are invisible to the check that follows.
        await partitions.wait_for_writers(conn, name)
        passed: bool = await conn.fetchval(await conn.fetchval(_PASSED, name))
        return passed
