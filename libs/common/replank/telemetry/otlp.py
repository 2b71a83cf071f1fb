"""Spans in the wire format of OTLP: protobuf, written by hand because it is on the path of every sampled event.

Field numbers are those of opentelemetry-proto's ``trace.proto`` and ``common.proto``; 1.x never changes them. Encoding
a span this way takes a fifth of the time that building protobuf messages in Python takes, and an encoded span is a
tenth of the size of the object it came from, so that a queue of them is bounded in bytes. Needs nothing but Python.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

Value = str | bool | int | float | bytes | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]

_MASK_64: Final = (1 << 64) - 1
_SMALL: Final = tuple(
    bytes((number,)) if number < 128 else bytes((number & 127 | 128, number >> 7)) for number in range(16384)
)
_FIXED64: Final = struct.Struct("<Q")
_DOUBLE: Final = struct.Struct("<d")
_TIMES: Final = struct.Struct("<BQBQ")  # start and end of a span, each after its tag


def _varint(number: int) -> bytes:
    if number < 16384:
        return _SMALL[number]
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def field(tag: bytes, content: bytes) -> bytes:
    """A length-delimited field; ``tag`` is its number and wire type, encoded."""
    return tag + _varint(len(content)) + content


def _any_value(value: object) -> bytes:  # noqa: PLR0911 - one case a line
    # bool before int, whose subclass it is.
    if isinstance(value, str):
        # Lone surrogates are not UTF-8, and a collector refuses the whole batch for one of them.
        return field(b"\x0a", value.encode("utf-8", "replace"))
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + _varint(value & _MASK_64)
    if isinstance(value, float):
        return b"\x21" + _DOUBLE.pack(value)
    if isinstance(value, bytes):
        return field(b"\x3a", value)
    if isinstance(value, Sequence):
        return field(b"\x2a", b"".join(field(b"\x0a", _any_value(item)) for item in value))
    return field(b"\x0a", str(value).encode("utf-8", "replace"))


@lru_cache(maxsize=1024)
def _key(key: str) -> bytes:
    return field(b"\x0a", key.encode("utf-8", "replace"))


def attributes(tag: bytes, values: Mapping[str, object]) -> bytes:
    """Each attribute as a ``KeyValue`` in a repeated field."""
    return b"".join([field(tag, _key(key) + field(b"\x12", _any_value(value))) for key, value in values.items()])


@lru_cache(maxsize=1024)
def _name(name: str, kind: int) -> bytes:
    return field(b"\x2a", name.encode("utf-8", "replace")) + bytes((0x30, kind + 1))


def span_attributes(values: Mapping[str, object]) -> bytes:
    """The attributes of a span, ready to be handed to `span` any number of times."""
    return attributes(b"\x4a", values)


def span(
    *,
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes,
    name: str,
    kind: int,
    start: int,
    end: int,
    encoded_attributes: bytes,
    rest: bytes = b"",
) -> bytes:
    """One span as an element of ``ScopeSpans.spans``.

    Ids are 16 and 8 bytes, ``parent_id`` is empty for a root; ``kind`` is the value of OpenTelemetry's ``SpanKind``;
    times are nanoseconds since the epoch; ``rest`` is made of `event`, `link`, `status`, `flags` and the like.
    """
    return field(
        b"\x12",
        b"".join(
            (
                b"\x0a\x10",
                trace_id,
                b"\x12\x08",
                span_id,
                b"\x22\x08" + parent_id if parent_id else b"",
                _name(name, kind),
                _TIMES.pack(0x39, start, 0x41, end),
                encoded_attributes,
                rest,
            )
        ),
    )


def event(time: int, name: str, values: Mapping[str, object]) -> bytes:
    """Something that happened within a span."""
    return field(
        b"\x5a",
        b"\x09" + _FIXED64.pack(time) + field(b"\x12", name.encode("utf-8", "replace")) + attributes(b"\x1a", values),
    )


def link(trace_id: bytes, span_id: bytes, values: Mapping[str, object], *, remote: bool) -> bytes:
    """A pointer to a span of this or another trace."""
    return field(
        b"\x6a", b"\x0a\x10" + trace_id + b"\x12\x08" + span_id + attributes(b"\x22", values) + flags(remote, b"\x35")
    )


def status(code: int, message: str) -> bytes:
    """The status of a span: 1 is ok, 2 an error; 0, unset, is not written."""
    if not code:
        return b""
    text = field(b"\x12", message.encode("utf-8", "replace")) if message else b""
    return field(b"\x7a", text + bytes((0x18, code)))


def flags(remote: bool, tag: bytes = b"\x85\x01") -> bytes:
    """Whether the parent, or the span that is linked to, is of another process: bit 9, known by bit 8."""
    return tag + (b"\x00\x03\x00\x00" if remote else b"\x00\x01\x00\x00")


def dropped(attributes: int, events: int, links: int) -> bytes:
    """How many of each a span had over the SDK's limits."""
    counts = ((b"\x50", attributes), (b"\x60", events), (b"\x70", links))
    return b"".join(tag + _varint(count) for tag, count in counts if count)


def trace_state(text: str) -> bytes:
    """The W3C ``tracestate`` of a span."""
    return field(b"\x1a", text.encode()) if text else b""


def resource(values: Mapping[str, object]) -> bytes:
    """The process that the spans are of, as field 1 of ``ResourceSpans``."""
    return field(b"\x0a", attributes(b"\x0a", values))


@lru_cache(maxsize=1024)
def _scope(name: str, version: str) -> bytes:
    text = field(b"\x0a", name.encode())
    return field(b"\x0a", text + field(b"\x12", version.encode()) if version else text)


def request(encoded_resource: bytes, scopes: Mapping[tuple[str, str], Iterable[bytes]]) -> bytes:
    """An ``ExportTraceServiceRequest`` of the spans of one process, by the name and version of their scope."""
    groups = [field(b"\x12", b"".join((_scope(name, version), *spans))) for (name, version), spans in scopes.items()]
    return field(b"\x0a", b"".join((encoded_resource, *groups)))


def rejected_spans(answer: bytes) -> int:
    """How many spans a collector says it refused: ``partial_success.rejected_spans`` of its answer, else 0.

    Anything unexpected in the answer counts as no refusal: the spans were accepted by their status code.
    """
    if answer[:1] != b"\x0a" or len(answer) < 4 or answer[2] != 0x08:
        return 0
    rejected = shift = 0
    for byte in answer[3:13]:
        rejected |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    return rejected
