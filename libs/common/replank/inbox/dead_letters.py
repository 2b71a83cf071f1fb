"""Events that a consumer could not apply: put away with their reason, looked at, and handled again or discarded.

A dead letter is a row in ``replank_inbox.dead_letter`` and, in the same transaction, a copy for the topic
``<topic>.dlq`` in the outbox. `redrive` only marks rows: the running consumer picks them up from the database, because
it has the handler, the rights and the connections.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from replank.connection import Connection
from replank.errors import ReplankError
from replank.inbox import store
from replank.inbox.envelope import Envelope
from replank.inbox.outcome import Reason
from replank.inbox.store import Death, Found

# A copy must fit into a Kafka record together with the headers that it gains; the row always has the whole value.
_MOST_COPIED_BYTES: Final = 900_000
_RELAY_WRITES: Final = ("content-type", "traceparent", "tracestate", "baggage")
_NO_TYPE: Final = "replank.inbox.not_a_cloudevent.v1"


class NoSuchDeadLetter(ReplankError):
    """There is no dead letter of that number."""


async def bury(
    conn: Connection, consumer: str, event: Envelope, death: Death, *, ordered: bool, copy: bool
) -> int | None:
    """Make an event a dead letter in the open transaction; its number, or nothing if it was settled before.

    Parks the event's key if the subscriber is ordered. ``copy`` also appends a copy for ``<topic>.dlq``.
    """
    # Redelivered, it must be known as settled. What is beyond retention has no place among the applied, and the unique
    # dead letter is what makes its redelivery harmless.
    if death.reason is not Reason.BEYOND_INBOX_RETENTION:
        fresh, _ = await store.claim(conn, consumer, event)
        if not fresh:
            return None
    if ordered and event.key is not None:
        await store.lock_key(conn, consumer, event.topic, event.key)
        await store.park(conn, consumer, event.topic, event.key)
    seq = await store.bury(conn, consumer, event, death, ordered=ordered)
    if seq is not None and copy:
        await _append_copy(conn, consumer, event, death)
    return seq


async def _append_copy(conn: Connection, consumer: str, event: Envelope, death: Death) -> None:
    headers = {
        name: raw.decode(errors="backslashreplace")
        for name, raw in event.headers
        if name and not name.startswith("ce_") and name not in _RELAY_WRITES
    }
    headers |= {
        "replank-dlq-reason": death.reason,
        "replank-dlq-consumer": consumer,
        "replank-dlq-original-topic": event.topic,
        "replank-dlq-original-partition": str(event.partition),
        "replank-dlq-original-offset": str(event.offset),
    }
    for name in ("ce_id", "ce_time"):
        if (original := event.text(name)) is not None:
            headers[f"replank-dlq-original-{name.removeprefix('ce_')}"] = original
    value = event.value or b""
    key = event.key or None
    if len(value) + len(key or b"") + len(json.dumps(headers)) > _MOST_COPIED_BYTES:
        headers = {name: text for name, text in headers.items() if name.startswith("replank-dlq-")}
        headers["replank-dlq-value-omitted"] = str(len(value))
        value = b""
    await store.append_copy(
        conn,
        topic=f"{event.topic}.dlq",
        key=None if key is None else key.decode(errors="backslashreplace"),
        type=event.type or _NO_TYPE,
        value=value,
        event=event,
        headers=headers,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters: those to which everything that is given applies. Nothing given means all of the consumer."""

    seqs: Sequence[int] | None = None
    event_ids: Sequence[UUID] | None = None
    topic: str | None = None
    key: str | None = None
    type: str | None = None
    reason: str | None = None
    since: datetime | None = None
    """Made a dead letter at or after this moment …"""
    until: datetime | None = None
    """… and before this one."""


EVERYTHING: Final = Selection()


@dataclass(frozen=True, slots=True)
class Consumer:
    """A process that runs, or ran lately, a consumer."""

    instance: UUID
    host: str
    pid: int
    alive: bool
    heartbeat_at: datetime
    handlers: dict[str, dict[str, str]]
    """Topic to event type to the name of the handler."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a redrive does, or with ``dry_run`` would do."""

    consumer: str
    events: list[Found]
    """What is handled again, in the order in which it died."""
    blocked: list[Found]
    """Selected, but behind a dead letter of the same key that is not: select that too, or discard it."""
    handlers: dict[int, str] = field(default_factory=dict)
    """By number, the handler that a running process has for it. What is missing here waits, or dies again."""
    running: list[Consumer] = field(default_factory=list)
    keys_unparked: int = 0
    """How many parked keys have nothing left to wait for once all of it is applied."""
    dry_run: bool = True

    @property
    def alive(self) -> bool:
        """Whether some process is there to do it. Without one, the events wait until one is started."""
        return any(consumer.alive for consumer in self.running)


async def search(
    conn: Connection,
    *,
    consumer: str | None = None,
    selection: Selection = EVERYTHING,
    states: Sequence[str] = ("dead", "redriving"),
    after: int = 0,
    limit: int = 100,
) -> list[Found]:
    """Dead letters in the order in which they died, from the one after number ``after``; without values and stacks."""
    return await store.find(conn, consumer, selection, states=states, after=after, limit=limit)


async def show(conn: Connection, seq: int) -> Found:
    """One dead letter with everything that is known of it. Raises `NoSuchDeadLetter`."""
    found = await store.find(conn, None, Selection(seqs=[seq]), whole=True)
    if not found:
        raise NoSuchDeadLetter(f"there is no dead letter {seq}", fix="list them to see their numbers")
    return found[0]


async def redrive(
    conn: Connection, *, consumer: str, selection: Selection = EVERYTHING, dry_run: bool = False, reason: str = ""
) -> Plan:
    """Have dead letters handled again by the running consumer, with the same event ids, each key in its order.

    The key of a dead letter is un-parked in the transaction in which its last one is applied. ``dry_run`` changes
    nothing and answers what would happen. ``reason`` is kept in the audit.
    """
    async with conn.transaction():
        selected = await store.select_for_decision(conn, consumer, selection)
        events = [found for found, blocked in selected if not blocked]
        held_back = [found for found, blocked in selected if blocked]
        running = [
            Consumer(
                row["instance"], row["host"], row["pid"], row["alive"], row["heartbeat_at"], json.loads(row["handlers"])
            )
            for row in await store.running(conn, consumer)
        ]
        handlers: dict[int, str] = {}
        for found in events:
            for process in running:
                name = process.handlers.get(found.topic, {}).get(found.type or "")
                if process.alive and name:
                    handlers[found.seq] = name
        seqs = [found.seq for found in events]
        plan = Plan(
            consumer, events, held_back, handlers, running, await store.count_unparked(conn, consumer, seqs), dry_run
        )
        if not dry_run and seqs:
            await store.mark_redriving(conn, seqs)
            await store.audit(conn, "redrive", consumer, reason, seqs)
    return plan


async def discard(conn: Connection, *, consumer: str, selection: Selection, reason: str) -> list[Found]:
    """Give up dead letters for good; answers them. Their rows stay, and who did it and why is kept in the audit.

    A key is un-parked if nothing of it is left. What is being redriven in this moment is not touched.
    """
    if not reason.strip():
        raise ReplankError("dead letters are discarded without a reason", fix="say why: it is kept in the audit")
    async with conn.transaction():
        discarded = [found for found, _ in await store.select_for_decision(conn, consumer, selection)]
        if discarded:
            seqs = [found.seq for found in discarded]
            await store.mark_discarded(conn, seqs)
            await store.audit(conn, "discard", consumer, reason, seqs)
        # In a fixed order, so that two of these cannot wait for each other.
        for topic, key in sorted({(found.topic, found.raw_key) for found in discarded if found.raw_key is not None}):
            await store.lock_key(conn, consumer, topic, key)
            await store.unpark(conn, consumer, topic, key)
    return discarded
