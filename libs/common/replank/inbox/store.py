"""All SQL of the inbox, but for its tables (``sql/``) and its installation (`replank.inbox.install`)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from replank.connection import Connection
from replank.errors import ReplankError
from replank.inbox.envelope import Envelope, envelope
from replank.inbox.outcome import Reason

Headers = Sequence[tuple[str, bytes]]


class BeyondRetention(ReplankError):
    """The event is older than what the inbox remembers."""


# --- apply once ---

_CLAIM = """
with claimed as (
    insert into replank_inbox.applied (consumer, event_id) values ($1, $2) on conflict do nothing returning event_id
)
select exists (select from claimed),
       exists (select from replank_inbox.parked_key where consumer = $1 and topic = $3 and key = $4)
"""

# Sorted, so that a consumer that lost its partitions without knowing it yet cannot deadlock with the one that got them.
_CLAIM_MANY = """
with claimed as (
    insert into replank_inbox.applied (consumer, event_id)
    select $1, id from unnest($2::uuid[]) id order by id
    on conflict do nothing returning event_id
)
select array(select event_id from claimed),
       array(select key from replank_inbox.parked_key where consumer = $1 and topic = $3 and key = any($4::bytea[]))
"""


async def claim(conn: Connection, consumer: str, event: Envelope) -> tuple[bool, bool]:
    """Write the inbox row of an event: (whether it was not there yet, whether the event's key is parked).

    Waits while another transaction is deciding about the same event. Raises `BeyondRetention`.
    """
    try:
        row = await conn.fetchrow(_CLAIM, consumer, event.event_id, event.topic, event.key)
    except asyncpg.CheckViolationError as error:
        raise _beyond(event) from error
    assert row is not None  # noqa: S101 - a select without from
    return row[0], row[1]


async def claim_many(
    conn: Connection, consumer: str, topic: str, events: Sequence[Envelope]
) -> tuple[set[UUID], set[bytes]]:
    """Write the inbox rows of many events: (the ids that were not there yet, the keys among theirs that are parked)."""
    ids = [event.event_id for event in events]
    keys = {event.key for event in events if event.key is not None}
    try:
        row = await conn.fetchrow(_CLAIM_MANY, consumer, ids, topic, keys)
    except asyncpg.CheckViolationError as error:
        raise _beyond(events[0]) from error
    assert row is not None  # noqa: S101 - a select without from
    return set(row[0]), set(row[1])


def _beyond(event: Envelope) -> BeyondRetention:
    # The only check on `applied` is that one of its partitions takes the row.
    return BeyondRetention(
        f"event {event.event_id} ({event.topic}/{event.partition} at {event.offset}) is older than the inbox remembers",
        fix="find out whether its effect is there, then redrive or discard the dead letter",
    )


# --- parked keys ---

_LOCK_KEY = "select pg_advisory_xact_lock(hashtextextended($1 || ' ' || $2 || ' ' || encode($3, 'hex'), 7012))"
_IS_PARKED = "select exists (select from replank_inbox.parked_key where consumer = $1 and topic = $2 and key = $3)"
_PARK = "insert into replank_inbox.parked_key (consumer, topic, key) values ($1, $2, $3) on conflict do nothing"
_UNPARK = """
delete from replank_inbox.parked_key
where consumer = $1 and topic = $2 and key = $3 and not exists (
    select from replank_inbox.dead_letter
    where consumer = $1 and topic = $2 and key = $3 and ordered and state in ('dead', 'redriving')
)
"""
_COUNT_PARKED = "select count(*) from replank_inbox.parked_key where consumer = $1 and topic = $2"


async def lock_key(conn: Connection, consumer: str, topic: str, key: bytes) -> None:
    """Wait for the right to decide about the parking of a key; it is kept until the transaction ends.

    Parking, following a parked key and un-parking all take it first and look afterwards, in a statement of their own,
    so that each sees what the others committed.
    """
    await conn.execute(_LOCK_KEY, consumer, topic, key)


async def is_parked(conn: Connection, consumer: str, topic: str, key: bytes) -> bool:
    """Whether events of that key follow an earlier one into the dead letters. The caller holds the key's lock."""
    return bool(await conn.fetchval(_IS_PARKED, consumer, topic, key))


async def park(conn: Connection, consumer: str, topic: str, key: bytes) -> None:
    """Park a key. The caller holds its lock."""
    await conn.execute(_PARK, consumer, topic, key)


async def unpark(conn: Connection, consumer: str, topic: str, key: bytes) -> bool:
    """Un-park a key unless dead letters of it are left; whether it did. The caller holds its lock."""
    return bool(await conn.execute(_UNPARK, consumer, topic, key) != "DELETE 0")


async def parked_keys(conn: Connection, consumer: str, topic: str) -> int:
    """How many keys are parked."""
    return int(await conn.fetchval(_COUNT_PARKED, consumer, topic))


# --- dead letters ---

_BURY = """
insert into replank_inbox.dead_letter (
    consumer, event_id, topic, "partition", "offset", recorded_at, key, ordered, type, source, headers, value,
    reason, detail, stack, traceparent, attempts
) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12, $13, $14, $15, $16, $17)
on conflict (consumer, event_id) do nothing
returning seq
"""


@dataclass(frozen=True, slots=True)
class Death:
    """Why an event is to become a dead letter."""

    reason: Reason
    detail: str
    stack: str | None = None
    attempts: int = 0


async def bury(conn: Connection, consumer: str, event: Envelope, death: Death, *, ordered: bool) -> int | None:
    """Insert a dead letter: its number, or nothing if that event is one already."""
    seq = await conn.fetchval(
        _BURY,
        consumer,
        event.event_id,
        event.topic,
        event.partition,
        event.offset,
        event.recorded_at,
        event.key,
        ordered and event.key is not None,
        _storable(event.type) or None,
        _storable(event.text("ce_source")),
        encode_headers(event.headers),
        event.value,
        death.reason,
        _storable(death.detail),
        _storable(death.stack),
        _storable(event.text("traceparent")),
        death.attempts,
    )
    return None if seq is None else int(seq)


def _storable(text: str | None) -> str | None:
    # Postgres has no text with a NUL in it.
    return None if text is None else text.replace("\0", "\\0")


def encode_headers(headers: Headers) -> str:
    """Headers as JSON: ``[[name, text], …]``, with ``{"base64": …}`` for bytes that are no text."""
    return json.dumps([[_storable(name), _encode(value)] for name, value in headers])


def _encode(value: bytes | None) -> str | dict[str, str] | None:
    if value is None:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if "\0" not in text else {"base64": base64.b64encode(value).decode()}


def decode_headers(encoded: str) -> tuple[tuple[str, bytes], ...]:
    """The inverse of `encode_headers`."""
    return tuple((name, _decode(value)) for name, value in json.loads(encoded))


def _decode(value: str | dict[str, str] | None) -> bytes:
    if value is None:
        return b""
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


_APPEND_COPY = """
select replank_outbox.append(
    topic => $1, key => $2, type => $3, value => $4, event_id => $5, source => $6, subject => $7,
    traceparent => $8, tracestate => $9, headers => $10::jsonb
)
"""


async def append_copy(
    conn: Connection,
    *,
    topic: str,
    key: str | None,
    type: str,
    value: bytes,
    event: Envelope,
    headers: dict[str, str],
) -> None:
    """Append the copy of a dead letter to the outbox of the same database."""
    await conn.execute(
        _APPEND_COPY,
        topic,
        _storable(key),
        _storable(type),
        value,
        event.event_id,
        _storable(event.text("ce_source")),
        _storable(event.text("ce_subject")),
        event.text("traceparent"),
        event.text("tracestate"),
        json.dumps({_storable(name): _storable(text) for name, text in headers.items()}),
    )


# --- looking at dead letters, and deciding about them ---

# A selection: $1 consumer, $2 seqs, $3 event ids, $4 topic, $5 key, $6 type, $7 reason, $8 since, $9 until; null: any.
_FIND = """
select seq, consumer, event_id, topic, "partition", "offset", recorded_at, key, ordered, type, source,
       headers::text as headers, reason, detail, traceparent, attempts, state, redrive_at, resolved_at, created_at,
       case when $13 then value end as value, octet_length(value) as size, case when $13 then stack end as stack
from replank_inbox.dead_letter
where ($1::text is null or consumer = $1) and ($2::bigint[] is null or seq = any($2))
  and ($3::uuid[] is null or event_id = any($3)) and ($4::text is null or topic = $4)
  and ($5::bytea is null or key = $5) and ($6::text is null or type = $6) and ($7::text is null or reason = $7)
  and ($8::timestamptz is null or created_at >= $8) and ($9::timestamptz is null or created_at < $9)
  and ($10::text[] is null or state = any($10)) and seq > $11
order by seq limit $12
"""
# What is selected is locked; whether something that is not selected stands before it is told apart afterwards.
_SELECT_FOR_DECISION = """
with selected as materialized (
    select seq, consumer, event_id, topic, "partition", "offset", recorded_at, key, ordered, type, source,
           headers::text as headers, reason, detail, traceparent, attempts, state, redrive_at, resolved_at, created_at,
           null::bytea as value, octet_length(value) as size, null::text as stack
    from replank_inbox.dead_letter
    where ($1::text is null or consumer = $1) and ($2::bigint[] is null or seq = any($2))
      and ($3::uuid[] is null or event_id = any($3)) and ($4::text is null or topic = $4)
      and ($5::bytea is null or key = $5) and ($6::text is null or type = $6) and ($7::text is null or reason = $7)
      and ($8::timestamptz is null or created_at >= $8) and ($9::timestamptz is null or created_at < $9)
      and state = 'dead'
    order by seq for update
)
select s.*, s.ordered and exists (
    select from replank_inbox.dead_letter earlier
    where earlier.consumer = s.consumer and earlier.topic = s.topic and earlier.key = s.key and earlier.ordered
      and earlier.state = 'dead' and earlier.seq < s.seq and earlier.seq not in (select seq from selected)
) as blocked
from selected s order by s.seq
"""
_COUNT_UNPARKED = """
select count(*) from replank_inbox.parked_key p
where p.consumer = $1
  and exists (
      select from replank_inbox.dead_letter d
      where d.consumer = p.consumer and d.topic = p.topic and d.key = p.key and d.ordered and d.seq = any($2::bigint[])
  )
  and not exists (
      select from replank_inbox.dead_letter d
      where d.consumer = p.consumer and d.topic = p.topic and d.key = p.key and d.ordered
        and d.state = 'dead' and d.seq <> all($2::bigint[])
  )
"""
_MARK_REDRIVING = """
update replank_inbox.dead_letter set state = 'redriving', redrive_at = clock_timestamp() where seq = any($1::bigint[])
"""
_MARK_DISCARDED = """
update replank_inbox.dead_letter set state = 'discarded', resolved_at = now() where seq = any($1::bigint[])
"""
_AUDIT = """
insert into replank_inbox.dead_letter_audit (action, consumer, reason, seqs) values ($1, $2, $3, $4)
"""
_RUNNING = """
select instance, host, pid, handlers::text as handlers, heartbeat_at,
       heartbeat_at > now() - interval '30 seconds' as alive
from replank_inbox.consumer where consumer = $1 order by heartbeat_at desc
"""


class Selecting(Protocol):
    """What chooses dead letters; see `replank.inbox.dead_letters.Selection`."""

    @property
    def seqs(self) -> Sequence[int] | None: ...
    @property
    def event_ids(self) -> Sequence[UUID] | None: ...
    @property
    def topic(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def type(self) -> str | None: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def since(self) -> datetime | None: ...
    @property
    def until(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A dead letter as it is shown. ``value`` and ``stack`` are there only when one was asked for by its number."""

    seq: int
    consumer: str
    event_id: UUID
    topic: str
    partition: int
    offset: int
    recorded_at: datetime
    raw_key: bytes | None
    ordered: bool
    type: str | None
    source: str | None
    headers: tuple[tuple[str, bytes], ...]
    reason: str
    detail: str
    traceparent: str | None
    attempts: int
    state: str
    redrive_at: datetime | None
    resolved_at: datetime | None
    created_at: datetime
    value: bytes | None
    size: int | None
    stack: str | None

    @property
    def key(self) -> str | None:
        """The key as text. Bytes that are not UTF-8 are shown as escapes."""
        return None if self.raw_key is None else self.raw_key.decode(errors="backslashreplace")


def _found(row: asyncpg.Record) -> Found:
    values = list(row.values())[: len(fields(Found))]
    values[11] = decode_headers(values[11])
    return Found(*values)


def _arguments(consumer: str | None, selection: Selecting) -> list[Any]:
    return [
        consumer,
        selection.seqs,
        selection.event_ids,
        selection.topic,
        None if selection.key is None else selection.key.encode(),
        selection.type,
        selection.reason,
        selection.since,
        selection.until,
    ]


async def find(
    conn: Connection,
    consumer: str | None,
    selection: Selecting,
    *,
    states: Sequence[str] | None = None,
    after: int = 0,
    limit: int = 1,
    whole: bool = False,
) -> list[Found]:
    """Dead letters by number; ``whole`` includes values and stacks."""
    rows = await conn.fetch(_FIND, *_arguments(consumer, selection), states, after, limit, whole)
    return [_found(row) for row in rows]


async def select_for_decision(conn: Connection, consumer: str, selection: Selecting) -> list[tuple[Found, bool]]:
    """Lock dead letters by number; for each, whether an earlier one of its key is dead and not among them."""
    rows = await conn.fetch(_SELECT_FOR_DECISION, *_arguments(consumer, selection))
    return [(_found(row), row["blocked"]) for row in rows]


async def count_unparked(conn: Connection, consumer: str, seqs: Sequence[int]) -> int:
    """How many keys would have no dead letter left if these were applied."""
    return int(await conn.fetchval(_COUNT_UNPARKED, consumer, seqs))


async def mark_redriving(conn: Connection, seqs: Sequence[int]) -> None:
    """Hand dead letters to the running consumer."""
    await conn.execute(_MARK_REDRIVING, seqs)


async def mark_discarded(conn: Connection, seqs: Sequence[int]) -> None:
    """Give dead letters up."""
    await conn.execute(_MARK_DISCARDED, seqs)


async def audit(conn: Connection, action: str, consumer: str, reason: str, seqs: Sequence[int]) -> None:
    """Keep who decided what about which dead letters, and why."""
    await conn.execute(_AUDIT, action, consumer, reason, seqs)


async def running(conn: Connection, consumer: str) -> list[asyncpg.Record]:
    """The processes that run a consumer, or ran it within the last day."""
    return list(await conn.fetch(_RUNNING, consumer))


# --- redrive, by the running consumer ---

# The oldest of each key first: a later event of an ordered key waits until those before it are resolved.
_NEXT_REDRIVE = """
select seq, topic, "partition", "offset", recorded_at, key, ordered, headers::text as headers, value, attempts
from replank_inbox.dead_letter letter
where consumer = $1 and state = 'redriving' and redrive_at <= clock_timestamp() and topic = any($2::text[])
  and not (ordered and exists (
      select from replank_inbox.dead_letter earlier
      where earlier.consumer = letter.consumer and earlier.topic = letter.topic and earlier.key = letter.key
        and earlier.ordered and earlier.state in ('dead', 'redriving') and earlier.seq < letter.seq
  ))
order by seq limit 1 for update of letter skip locked
"""
_REDRIVEN = "update replank_inbox.dead_letter set state = 'redriven', resolved_at = now(), attempts = $2 where seq = $1"
_REDRIVE_LATER = """
update replank_inbox.dead_letter
set redrive_at = clock_timestamp() + $2::interval, attempts = $3, detail = $4 where seq = $1
"""
_REDRIVE_DIED = """
update replank_inbox.dead_letter
set state = 'dead', redrive_at = null, attempts = $2, reason = $3, detail = $4, stack = $5 where seq = $1
"""
# Those behind it cannot be redriven either, until somebody has decided about it.
_REDRIVE_STOPPED = """
update replank_inbox.dead_letter set state = 'dead', redrive_at = null
where consumer = $1 and topic = $2 and key = $3 and ordered and state = 'redriving'
"""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter that is to be handled again, locked for this transaction."""

    seq: int
    event: Envelope
    ordered: bool
    attempts: int


async def next_redrive(conn: Connection, consumer: str, topics: Iterable[str]) -> DeadLetter | None:
    """Lock and answer the next dead letter to handle again, if there is one that nobody else has locked."""
    row = await conn.fetchrow(_NEXT_REDRIVE, consumer, list(topics))
    if row is None:
        return None
    event = envelope(
        topic=row["topic"],
        partition=row["partition"],
        offset=row["offset"],
        timestamp=round(row["recorded_at"].timestamp() * 1000),
        key=row["key"],
        value=row["value"],
        headers=decode_headers(row["headers"]),
    )
    return DeadLetter(row["seq"], event, row["ordered"], row["attempts"])


async def redriven(conn: Connection, seq: int, attempts: int) -> None:
    """The effect of a dead letter is complete."""
    await conn.execute(_REDRIVEN, seq, attempts)


async def redrive_later(conn: Connection, seq: int, after: timedelta, attempts: int, detail: str) -> None:
    """The redrive of a dead letter failed for now."""
    await conn.execute(_REDRIVE_LATER, seq, after, attempts, _storable(detail))


async def redrive_died(conn: Connection, consumer: str, letter: DeadLetter, death: Death) -> None:
    """The redrive of a dead letter failed for good: it is dead again, and so are those of its key behind it."""
    await conn.execute(
        _REDRIVE_DIED, letter.seq, death.attempts, death.reason, _storable(death.detail), _storable(death.stack)
    )
    if letter.ordered:
        await conn.execute(_REDRIVE_STOPPED, consumer, letter.event.topic, letter.event.key)


# --- consumers that are alive ---

_HEARTBEAT = """
insert into replank_inbox.consumer (consumer, instance, host, pid, handlers) values ($1, $2, $3, $4, $5::jsonb)
on conflict (consumer, instance) do update set heartbeat_at = now(), handlers = excluded.handlers
"""
_SIGN_OFF = """
delete from replank_inbox.consumer
where (consumer = $1 and instance = $2) or heartbeat_at < now() - interval '1 day'
"""


async def heartbeat(
    conn: Connection, consumer: str, instance: UUID, *, host: str, pid: int, handlers: dict[str, Any]
) -> None:
    """Register this process as a running consumer of these topics and types."""
    await conn.execute(_HEARTBEAT, consumer, instance, host, pid, json.dumps(handlers))


async def sign_off(conn: Connection, consumer: str, instance: UUID) -> None:
    """Remove this process from the running consumers, and those that died long ago."""
    await conn.execute(_SIGN_OFF, consumer, instance)


# --- partitions ---

_MAINTAIN = "select change, partition_name from replank_inbox.maintain($1, $2)"
_REMEMBERS_SINCE = "select min(begins) from replank_inbox.applied_partition having bool_and(begins is not null)"


async def maintain(conn: Connection, retention: timedelta | None, days_ahead: int) -> list[tuple[str, str]]:
    """Make partitions ahead, drop those beyond retention: [(``created`` or ``dropped``, name)]."""
    return [(row[0], row[1]) for row in await conn.fetch(_MAINTAIN, retention, days_ahead)]


async def remembers_since(conn: Connection) -> datetime | None:
    """From when on the inbox remembers what was applied; nothing if it has forgotten nothing yet."""
    moment: datetime | None = await conn.fetchval(_REMEMBERS_SINCE)
    return moment
