"""Who works on which shard: leases with fencing tokens, and the cursor that only the holder can move.

A lease is a row in ``replank_outbox.shard``. Taking one over increments its token; every statement of a holder names
the token and requires that the lease still runs, by the clock of the database. A holder also keeps its own, monotonic,
idea of when the lease ends, measured from before the request that extended it, and stops before that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias
from uuid import UUID

from replank.connection import Connection
from replank.errors import ReplankError

# (xmin, xmax, transactions in progress): how asyncpg reads and writes pg_snapshot.
Snapshot: TypeAlias = tuple[int, int, tuple[int, ...]]

_BEAT: Final = """
    with me as (
        insert into replank_outbox.relay (owner, seen_until)
        values ($1, clock_timestamp() + make_interval(secs => $2))
            on conflict (owner) do update set seen_until = excluded.seen_until
    ), gone as (
        delete from replank_outbox.relay where owner <> $1 and seen_until < clock_timestamp() - interval '1 minute'
    ), renewed as (
        update replank_outbox.shard s set lease_until = clock_timestamp() + make_interval(secs => $2)
          from unnest($3::integer[], $4::bigint[]) as held(shard, token)
         where s.shard = held.shard and s.token = held.token and s.owner = $1 and s.lease_until > clock_timestamp()
        returning s.shard
    )
    select 1 + (select count(*) from replank_outbox.relay
                 where owner <> $1 and seen_until > clock_timestamp()) as relays,
           (select count(*) from replank_outbox.shard) as shards,
           array(select shard from renewed) as renewed
"""
_CLAIM: Final = """
    update replank_outbox.shard s
       set owner = $1, token = s.token + 1, lease_until = clock_timestamp() + make_interval(secs => $2),
           updated_at = clock_timestamp()
     where s.shard = (select free.shard from replank_outbox.shard free where free.lease_until <= clock_timestamp()
                       order by free.shard limit 1 for update skip locked)
    returning s.shard, s.token
"""
_RELEASE: Final = """
    update replank_outbox.shard set owner = null, lease_until = '-infinity'
     where shard = $1 and owner = $2 and token = $3
"""
_LEAVE: Final = "delete from replank_outbox.relay where owner = $1"
_READ_CURSOR: Final = """
    select window_number, previous, current, last_id, floor_id, replay_to, cluster
      from replank_outbox.shard
     where shard = $1 and owner = $2 and token = $3 and lease_until > clock_timestamp()
"""
_MOVE: Final = """
    update replank_outbox.shard
       set window_number = $5, previous = $6, current = $7, last_id = $8, floor_id = $9, replay_to = $10,
           stuck_event_id = null, stuck_reason = null, stuck_since = null,
           lease_until = clock_timestamp() + make_interval(secs => $4), updated_at = clock_timestamp()
     where shard = $1 and owner = $2 and token = $3 and lease_until > clock_timestamp()
    returning true
"""
_RESTORED: Final = """
    update replank_outbox.shard
       set cluster = $4, window_number = window_number + 1, previous = $5, current = null, last_id = 0, floor_id = $6,
           replay_to = $6
     where shard = $1 and owner = $2 and token = $3 and lease_until > clock_timestamp()
    returning true
"""
_STUCK: Final = """
    update replank_outbox.shard
       set stuck_event_id = $4, stuck_reason = $5,
           stuck_since = case when stuck_event_id = $4 then stuck_since else clock_timestamp() end
     where shard = $1 and owner = $2 and token = $3 and lease_until > clock_timestamp()
    returning true
"""


class LeaseLost(ReplankError):
    """This relay no longer holds the shard: somebody else does, or may at any moment."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a shard is published.

    Everything visible in ``previous`` has been; ``current``, if set, is the end of the window in progress, of which the
    rows up to ``last_id`` have been. ``number`` counts windows, so that a copy of the cursor elsewhere can be compared.
    While ``replay_to`` is set, rows in ``(last_id, replay_to]`` are published by id, whatever their transaction.
    """

    number: int
    previous: Snapshot
    current: Snapshot | None
    last_id: int
    floor_id: int
    replay_to: int | None

    def advanced(self, previous: Snapshot) -> Cursor:
        """Nothing became visible up to ``previous``."""
        return replace(self, previous=previous)

    def at(self, last_id: int) -> Cursor:
        """The same window, further on."""
        return replace(self, last_id=last_id)

    def window(self, current: Snapshot) -> Cursor:
        """A window from here to ``current``, nothing of it published."""
        return replace(self, number=self.number + 1, current=current, last_id=0)

    def closed(self) -> Cursor:
        """The window in progress is over."""
        return replace(self, previous=self.current or self.previous, current=None, last_id=0)

    def renumbered(self, number: int) -> Cursor:
        """The same position under another number, that no copy elsewhere has had."""
        return replace(self, number=number)

    def replayed(self) -> Cursor:
        """What was retained has been published again."""
        return replace(self, number=self.number + 1, replay_to=None, last_id=0)


@dataclass(slots=True)
class Lease:
    """One shard, held by ``owner`` until ``expires`` (monotonic seconds) unless it is renewed."""

    shard: int
    owner: str
    token: int
    seconds: float
    expires: float

    def require(self) -> None:
        """Raise `LeaseLost` when the time is over. To be asked before anything leaves this process."""
        if time.monotonic() >= self.expires:
            raise self.lost()

    def lost(self) -> LeaseLost:
        return LeaseLost(f"the lease on shard {self.shard} with token {self.token} is lost")

    async def read_cursor(self, conn: Connection) -> tuple[Cursor, str]:
        """The cursor as it is stored, and the cluster that its transaction ids belong to."""
        row = await conn.fetchrow(_READ_CURSOR, self.shard, self.owner, self.token)
        if row is None:
            raise self.lost()
        *fields, cluster = row
        return Cursor(*fields), cluster

    async def move(self, conn: Connection, cursor: Cursor) -> None:
        """Store the cursor and extend the lease, in one statement that does nothing when the lease is lost."""
        asked = time.monotonic()
        moved = await conn.fetchval(
            _MOVE,
            self.shard,
            self.owner,
            self.token,
            self.seconds,
            cursor.number,
            cursor.previous,
            cursor.current,
            cursor.last_id,
            cursor.floor_id,
            cursor.replay_to,
        )
        if moved is None:
            raise self.lost()
        self.expires = max(self.expires, asked + self.seconds)

    async def restored(self, conn: Connection, cluster: str, previous: Snapshot, floor_id: int) -> None:
        """Start over in another cluster: rows up to ``floor_id`` came with the dump and are to be published again."""
        arguments = (self.shard, self.owner, self.token, cluster, previous, floor_id)
        if await conn.fetchval(_RESTORED, *arguments) is None:
            raise self.lost()

    async def stuck(self, conn: Connection, event_id: UUID, reason: str) -> None:
        """Write down which event Kafka refuses, where status and quarantine find it."""
        if await conn.fetchval(_STUCK, self.shard, self.owner, self.token, event_id, reason) is None:
            raise self.lost()

    async def release(self, conn: Connection) -> None:
        """Give the shard back, for the next relay to take at once. Does nothing when it is lost."""
        self.expires = 0.0
        await conn.execute(_RELEASE, self.shard, self.owner, self.token)


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat saw."""

    share: int
    lost: Sequence[Lease]


async def beat(conn: Connection, owner: str, seconds: float, held: Sequence[Lease]) -> Beat:
    """Say that this relay lives and renew its leases; learn which are lost and how many are its fair share."""
    asked = time.monotonic()
    (row,) = await conn.fetch(_BEAT, owner, seconds, [lease.shard for lease in held], [lease.token for lease in held])
    renewed = frozenset(row["renewed"])
    for lease in held:
        if lease.shard in renewed:
            lease.expires = max(lease.expires, asked + seconds)
    lost = [lease for lease in held if lease.shard not in renewed]
    return Beat(share=-(-row["shards"] // row["relays"]), lost=lost)


async def claim(conn: Connection, owner: str, seconds: float) -> Lease | None:
    """Take one shard that nobody holds, if there is one."""
    asked = time.monotonic()
    row = await conn.fetchrow(_CLAIM, owner, seconds)
    return None if row is None else Lease(row["shard"], owner, row["token"], seconds, asked + seconds)


async def leave(conn: Connection, owner: str) -> None:
    """Say that this relay is gone, so that its share is free for others at once."""
    await conn.execute(_LEAVE, owner)
