"""What a handler is given: an event, the connection whose transaction holds its effect, and where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar
from uuid import UUID

from replank.connection import Connection
from replank.events import Event
from replank.inbox.envelope import Envelope

E_co = TypeVar("E_co", bound=Event, covariant=True)


@dataclass(frozen=True, slots=True)
class Delivery(Generic[E_co]):
    """One event, to be handled within the transaction of ``conn``.

    The inbox row of the event is in that transaction already. Whatever the handler writes through ``conn``, and what it
    appends to the outbox through it, commits together with that row, or not at all.
    """

    event: E_co
    conn: Connection
    envelope: Envelope
    attempt: int
    """1 for the first time; each retry counts on."""

    @property
    def event_id(self) -> UUID:
        """The id by which the inbox knows the event: ``ce_id`` where that is a UUIDv7."""
        return self.envelope.event_id

    @property
    def key(self) -> str | None:
        """The record's key as text. Bytes that are not UTF-8 are shown as escapes."""
        key = self.envelope.key
        return None if key is None else key.decode(errors="backslashreplace")

    @property
    def topic(self) -> str:
        """The topic it was read from."""
        return self.envelope.topic

    @property
    def partition(self) -> int:
        """The partition it was read from."""
        return self.envelope.partition

    @property
    def offset(self) -> int:
        """Its place in that partition."""
        return self.envelope.offset

    @property
    def source(self) -> str | None:
        """``ce_source``: who emitted it."""
        return self.envelope.text("ce_source")

    @property
    def subject(self) -> str | None:
        """``ce_subject``: what it is about."""
        return self.envelope.text("ce_subject")

    @property
    def time(self) -> datetime:
        """``ce_time``: when it happened. Without a readable one, the time of the record."""
        raw = self.envelope.text("ce_time")
        if raw is None:
            return self.envelope.recorded_at
        try:
            return datetime.fromisoformat(raw)
        except ValueError:
            return self.envelope.recorded_at

    @property
    def headers(self) -> Mapping[str, bytes]:
        """All headers of the record; of a repeated one, the last."""
        return self.envelope.attributes


@dataclass(frozen=True, slots=True)
class Batch(Generic[E_co]):
    """Several events of one partition, in order, to be handled within one transaction: all of them, or none."""

    deliveries: Sequence[Delivery[E_co]]
    conn: Connection
    attempt: int

    @property
    def events(self) -> list[E_co]:
        """The events alone."""
        return [delivery.event for delivery in self.deliveries]

    def __iter__(self) -> Iterator[Delivery[E_co]]:
        return iter(self.deliveries)

    def __len__(self) -> int:
        return len(self.deliveries)
