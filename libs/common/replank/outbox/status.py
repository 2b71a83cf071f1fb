"""What an outbox is doing: depth, lag, who holds which shard, and what is stuck."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from replank.connection import Connection
from replank.errors import ReplankError
from replank.outbox.partitions import Partition, partitions

COUNT_CAP: Final = 1_000_000

_SHARDS: Final = """
    select shard, window_number, owner, token, case when lease_until > '-infinity' then lease_until end as lease_until,
           updated_at, stuck_event_id, stuck_reason, stuck_since,
           previous, current, last_id, floor_id, replay_to, cluster <> replank_outbox.cluster() as restored, c.shards
      from replank_outbox.shard, replank_outbox.config c order by shard
"""
# What is visible now and was not published, at most $5 rows of it: by the same index range as the relay's own query.
_PENDING: Final = """
    select count(*), min(pending.created_at), clock_timestamp()
      from (select e.created_at from (
                select e.* from replank_outbox.event e where e.xid >= pg_snapshot_xmax($1::pg_snapshot)
                 union all
                select e.* from replank_outbox.event e
                 where e.xid = any (array(select pg_snapshot_xip($1::pg_snapshot)))) as e
             where e.id > $4 and e.bucket % $7 = $6
               and ($2::pg_snapshot is null or e.id > $3 or not pg_visible_in_snapshot(e.xid, $2::pg_snapshot))
               and ($8::text is null or e.topic = $8)
             limit $5) as pending
"""
# While a restored database is replayed, transaction ids mean nothing: what is left is found by id.
_TO_REPLAY: Final = """
    select count(*), min(pending.created_at), clock_timestamp()
      from (select e.created_at from replank_outbox.event e where e.id > $1 and e.bucket % $4 = $3
               and ($5::text is null or e.topic = $5) limit $2) as pending
"""
_QUARANTINE: Final = """
    insert into replank_outbox.quarantine
        (event_id, id, reason, created_at, topic, key, type, source, subject, value, traceparent, tracestate, baggage,
         headers)
    select e.event_id, e.id, $2, e.created_at, e.topic, e.key, e.type, e.source, e.subject, e.value, e.traceparent,
           e.tracestate, e.baggage, e.headers
      from replank_outbox.event e
     where e.event_id = $1 and exists (select from replank_outbox.shard s where s.stuck_event_id = $1)
        on conflict do nothing
    returning true
"""


class NotStuck(ReplankError):
    """An event that no shard is stuck at cannot be put into quarantine."""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard. ``depth`` counts committed events that are not yet known to be published (at most the cap)."""

    shard: int
    depth: int
    oldest_age: timedelta | None
    window_number: int
    owner: str | None
    token: int
    lease_until: datetime | None
    updated_at: datetime | None
    replaying: bool
    stuck_event_id: UUID | None
    stuck_reason: str | None
    stuck_since: datetime | None


@dataclass(frozen=True, slots=True)
class Status:
    """The outbox of one database. ``depth_capped``: counting stopped at the cap, there are at least so many."""

    depth: int
    depth_capped: bool
    oldest_age: timedelta | None
    shards: list[ShardStatus]
    partitions: list[Partition]
    quarantined: int


async def status(conn: Connection, *, count_cap: int = COUNT_CAP, topic: str | None = None) -> Status:
    """Depth and age of what waits, per shard and together. Costs an index range a shard, at most ``count_cap`` rows.

    With a ``topic``, only its events are counted.

    In exactly-once delivery the cursor in Postgres follows the one in Kafka: depth may include events that were
    published within the last moments.
    """
    shards = []
    capped = False
    for row in await conn.fetch(_SHARDS):
        replaying = row["replay_to"] is not None or row["restored"]
        if replaying:
            after = 0 if row["restored"] else row["last_id"]
            ((depth, oldest, now),) = await conn.fetch(_TO_REPLAY, after, count_cap, row["shard"], row["shards"], topic)
        else:
            unpublished = (row["previous"], row["current"], row["last_id"], row["floor_id"])
            ((depth, oldest, now),) = await conn.fetch(
                _PENDING, *unpublished, count_cap, row["shard"], row["shards"], topic
            )
        capped = capped or depth >= count_cap
        shards.append(
            ShardStatus(
                shard=row["shard"],
                depth=depth,
                oldest_age=None if oldest is None else now - oldest,
                window_number=row["window_number"],
                owner=row["owner"],
                token=row["token"],
                lease_until=row["lease_until"],
                updated_at=row["updated_at"],
                replaying=replaying,
                stuck_event_id=row["stuck_event_id"],
                stuck_reason=row["stuck_reason"],
                stuck_since=row["stuck_since"],
            )
        )
    return Status(
        depth=sum(shard.depth for shard in shards),
        depth_capped=capped,
        oldest_age=max((shard.oldest_age for shard in shards if shard.oldest_age is not None), default=None),
        shards=shards,
        partitions=await partitions(conn),
        quarantined=await conn.fetchval("select count(*) from replank_outbox.quarantine"),
    )


async def quarantine(conn: Connection, event_id: UUID, reason: str) -> None:
    """Take the event that a shard is stuck at out of its way: it is kept in ``replank_outbox.quarantine``, unpublished.

    Later events of its key are published without it, so this breaks the order of that one key on purpose: ``reason``
    is kept beside the event. Raises `NotStuck` for any other event. The relay goes on with its next attempt.
    """
    if not await conn.fetchval(_QUARANTINE, event_id, reason):
        raise NotStuck(
            f"no shard is stuck at event {event_id}, or it is in quarantine already",
            fix="see `replank outbox status` for the event that a shard is stuck at",
        )
