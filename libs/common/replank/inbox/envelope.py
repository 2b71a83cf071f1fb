"""A Kafka record read as a CloudEvent: its identity, its type, and what is wrong with it if it is none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

_V7: Final = 0x7 << 76
_VARIANT: Final = 0b10 << 62
_RANDOM_BITS: Final = (0xFFF << 64) | ((1 << 62) - 1)
_LAST_MOMENT: Final = (1 << 48) - 1


@dataclass(slots=True, kw_only=True)
class Envelope:
    """One record and what its headers say.

    ``event_id`` is the CloudEvents id where that is a UUIDv7, else one that is derived from it (see `identity`).
    ``fault`` says why the record is no CloudEvent; its type is then empty.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    """The record's own time, in milliseconds since 1970."""
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    attributes: dict[str, bytes]
    event_id: UUID
    type: str
    fault: str = ""
    settled: bool = False
    """Whether nothing is left to do about this record, so that its offset may be committed."""

    @property
    def recorded_at(self) -> datetime:
        """The record's own time."""
        return datetime.fromtimestamp(self.timestamp / 1000, UTC)

    @property
    def size(self) -> int:
        """About how many bytes it holds in memory."""
        return len(self.value or b"") + 1024

    def text(self, header: str) -> str | None:
        """A header as text, or nothing."""
        raw = self.attributes.get(header)
        return None if raw is None else raw.decode(errors="replace")


def read(record: ConsumerRecord[Any, Any]) -> Envelope:
    """The envelope of a record as aiokafka delivers it. Never fails."""
    return envelope(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
    )


def envelope(
    *,
    topic: str,
    partition: int,
    offset: int,
    timestamp: int,
    key: bytes | None,
    value: bytes | None,
    headers: tuple[tuple[str, bytes], ...],
) -> Envelope:
    """The envelope of a record given by its parts. Never fails."""
    attributes = dict(headers)
    type_, raw_id = attributes.get("ce_type"), attributes.get("ce_id")
    event_id: UUID
    fault = ""
    if not type_ or not raw_id:
        missing = " and ".join(name for name, found in (("ce_id", raw_id), ("ce_type", type_)) if not found)
        fault = f"the record has no {missing} header"
        type_ = b""
        # The place in the log is the only identity that such a record has.
        event_id = v7_shaped(timestamp, f"{topic}\0{partition}\0{offset}".encode())
    else:
        event_id = identity(raw_id, attributes.get("ce_source", b""), attributes.get("ce_time"), timestamp)
    return Envelope(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp=timestamp,
        key=key,
        value=value,
        headers=headers,
        attributes=attributes,
        event_id=event_id,
        type=type_.decode(errors="replace"),
        fault=fault,
    )


def identity(raw_id: bytes, source: bytes, time: bytes | None, timestamp: int) -> UUID:
    """The id by which the inbox knows an event.

    A UUIDv7 is its own identity. Any other id is only unique together with its source (CloudEvents 1.0, section
    "id"), and says nothing of its time, which the inbox needs: it becomes a UUIDv7-shaped id made of ``ce_time`` and a
    hash of source and id. A sender that repeats such an event with another ``ce_time``, or without one in a new record,
    is taken to send another event.
    """
    try:
        event_id = UUID(raw_id.decode("ascii"))
    except ValueError:
        pass
    else:
        if event_id.version == 7:
            return event_id
    moment = _milliseconds(time)
    return v7_shaped(timestamp if moment is None else moment, source + b"\0" + raw_id)


def v7_shaped(milliseconds: int, seed: bytes) -> UUID:
    """A UUIDv7 whose time is ``milliseconds`` since 1970 and whose random part is a hash of ``seed``."""
    random = int.from_bytes(hashlib.blake2b(seed, digest_size=16).digest()) & _RANDOM_BITS
    moment = min(max(milliseconds, 0), _LAST_MOMENT)
    return UUID(int=moment << 80 | _V7 | _VARIANT | random)


def _milliseconds(time: bytes | None) -> int | None:
    if time is None:
        return None
    try:
        moment = datetime.fromisoformat(time.decode("ascii"))
    except ValueError:
        return None
    # CloudEvents times are RFC 3339, which has an offset; a time without one is read as UTC on every machine.
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
