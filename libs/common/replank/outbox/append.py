"""Append events to the outbox, in the caller's own transaction.

The event is one row written beside the caller's rows: it exists if and only if the transaction commits, and the relay
publishes it afterwards. Events of one key are published in the order in which their transactions committed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

import replank.outbox as package
from replank.connection import Connection
from replank.errors import ReplankError
from replank.events import Event, UnknownContract
from replank.telemetry.context import capture

RESERVED_HEADERS: Final = frozenset({"content-type", "traceparent", "tracestate", "baggage"})

Key: TypeAlias = str | UUID | int | None

# Headers go as text: a caller's connection may have a codec of its own for jsonb.
_APPEND: Final = "select replank_outbox.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text::jsonb)"
_APPEND_MANY: Final = "select replank_outbox.append_many($1, $2, $3, $4, $5, $6, $7, $8::text[]::jsonb[], $9, $10, $11)"


class NotInTransaction(ReplankError):
    """`append` was called on a connection that has no open transaction."""


class ValueTooLarge(ReplankError):
    """An event is larger than what Kafka accepts."""


class InvalidMessage(ReplankError):
    """A key or a header that cannot be published."""


class OutboxNotInstalled(ReplankError):
    """The database of this connection has no outbox, or one older than this library."""


@dataclass(frozen=True, slots=True)
class Message:
    """One event of an `append_many`, with what `append` takes beside it."""

    event: Event
    key: Key
    subject: str | None = None
    headers: Mapping[str, str] | None = None
    source: str | None = None


async def append(
    conn: Connection,
    event: Event,
    *,
    key: Key,
    subject: str | None = None,
    headers: Mapping[str, str] | None = None,
    source: str | None = None,
) -> UUID:
    """Append one event in the transaction that is open on ``conn``; returns its id (a UUIDv7, ``ce_id`` on the wire).

    ``key`` orders: events with the same topic and key are published in commit order, which means that two
    transactions which append to one key run one after the other. ``key=None`` gives up the order and waits for nobody.
    ``source`` is CloudEvents' source; by default ``outbox.default_source``, else ``REPLANK_SOURCE``, else the
    database's name. The current trace context goes with the event.

    Raises `NotInTransaction`, `UnknownContract`, `ValueTooLarge`, `InvalidMessage`, `OutboxNotInstalled`. Waits for
    as long as another transaction that appended to the same key stays open.
    """
    _require_transaction(conn)
    message = Message(event, key, subject, headers, source)
    topic, text_key, event_type, value, encoded_headers = _prepare(message)
    traceparent, tracestate, baggage = capture()
    event_id = uuid7()
    try:
        await conn.execute(
            _APPEND,
            topic,
            text_key,
            event_type,
            value,
            event_id,
            source or _default_source(),
            subject,
            traceparent,
            tracestate,
            baggage,
            encoded_headers,
        )
    except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedFunctionError) as error:
        raise _not_installed() from error
    return event_id


async def append_many(conn: Connection, messages: Iterable[Message]) -> list[UUID]:
    """Append events in one statement, in the given order; returns their ids. See `append` for meaning and errors.

    Keys are locked in one fixed order, so that concurrent calls do not deadlock. A call with more than 256 distinct
    keys locks their topics instead: until it commits, nobody else appends a keyed event to them.
    """
    _require_transaction(conn)
    batch: Sequence[Message] = list(messages)
    if not batch:
        return []
    prepared = [_prepare(message) for message in batch]
    topics, keys, types, values, headers = (list(column) for column in zip(*prepared, strict=True))
    traceparent, tracestate, baggage = capture()
    event_ids = [uuid7() for _ in batch]
    source = _default_source()
    try:
        await conn.execute(
            _APPEND_MANY,
            topics,
            keys,
            types,
            values,
            event_ids,
            [message.source or source for message in batch],
            [message.subject for message in batch],
            headers,
            traceparent,
            tracestate,
            baggage,
        )
    except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedFunctionError) as error:
        raise _not_installed() from error
    return event_ids


def _require_transaction(conn: Connection) -> None:
    if not conn.is_in_transaction():
        raise NotInTransaction(
            "an event can only be appended inside a transaction",
            fix="write `async with conn.transaction():` around the rows and their event",
        )


def _prepare(message: Message) -> tuple[str, str | None, str, bytes, str | None]:
    event = message.event
    contract = type(event)
    try:
        topic, event_type = contract.event_topic, contract.event_type
    except AttributeError:
        raise UnknownContract(
            f"{contract.__module__}.{contract.__qualname__} is no event contract",
            fix="declare it as class X(Event, type=…, topic=…)",
        ) from None
    key = None if message.key is None else str(message.key)
    if key == "":
        raise InvalidMessage(
            f"the key of a {event_type} event is empty", fix="pass key=None for an event without order"
        )
    value = event.to_value()
    encoded_headers = None if not message.headers else _encode_headers(message.headers, event_type)
    size = len(value) + len((key or "").encode()) + len((message.subject or "").encode())
    size += len((encoded_headers or "").encode())
    if size > package.max_bytes:
        raise ValueTooLarge(
            f"a {event_type} event has {size} bytes, the limit is {package.max_bytes}",
            fix="store the payload elsewhere and publish a reference to it",
        )
    return topic, key, event_type, value, encoded_headers


def _encode_headers(headers: Mapping[Any, Any], event_type: str) -> str:
    for name, value in headers.items():
        if not (isinstance(name, str) and name and isinstance(value, str)):
            raise InvalidMessage(f"header {name!r} of a {event_type} event is not a string with a name")
        if name.startswith("ce_") or name in RESERVED_HEADERS:
            raise InvalidMessage(
                f"header {name!r} of a {event_type} event is written by the relay", fix="use another name"
            )
    return json.dumps(dict(headers), ensure_ascii=False, separators=(",", ":"))


def _default_source() -> str | None:
    return package.default_source or os.environ.get("REPLANK_SOURCE") or None


def _not_installed() -> OutboxNotInstalled:
    return OutboxNotInstalled(
        "this database has no outbox, or an older one, or this role may not append to it",
        fix="run `replank outbox install --dsn …` (or outbox.install) and outbox.grant_append for the role",
    )
