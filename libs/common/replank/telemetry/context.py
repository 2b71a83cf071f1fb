"""W3C trace context in Kafka headers and in stored columns.

What travels is fixed by the wire format (``traceparent``, ``tracestate``, ``baggage``), whatever propagators a process
is configured with. Needs the OpenTelemetry API alone, and never raises on what others wrote: a malformed header is as
good as none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import Link, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Headers = Sequence[tuple[str, bytes]]

_TRACE: Final = TraceContextTextMapPropagator()
_BAGGAGE: Final = W3CBaggagePropagator()
_TRACEPARENT: Final = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
NAMES: Final = ("traceparent", "tracestate", "baggage")


class Carried(NamedTuple):
    """A trace context in text, as it is stored beside an event; a part that is absent is nothing."""

    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None

    @property
    def sampled(self) -> bool:
        """Whether somebody records this trace, so that a span of it is worth making."""
        return is_sampled(self.traceparent)

    def context(self) -> Context:
        """The context in which a span becomes a child of the one that was captured."""
        carrier = {name: value for name, value in zip(NAMES, self, strict=True) if value}
        # An empty context to start from: the reader's own current span is not the parent of what it reads.
        return _BAGGAGE.extract(carrier, _TRACE.extract(carrier, Context()))

    def headers(self) -> list[tuple[str, bytes]]:
        """The Kafka headers of what is present."""
        return [(name, value.encode()) for name, value in zip(NAMES, self, strict=True) if value]


def capture(context: Context | None = None) -> Carried:
    """The context given, or the current one, to be stored or sent."""
    carrier: dict[str, str] = {}
    _TRACE.inject(carrier, context)
    _BAGGAGE.inject(carrier, context)
    return Carried(*(carrier.get(name) for name in NAMES))


def carried_in(headers: Iterable[tuple[str, bytes]]) -> Carried:
    """What Kafka headers carry. Of a header that is there twice the last one counts."""
    found = {name: value.decode("utf-8", "replace") for name, value in headers if name in NAMES and value}
    return Carried(*(found.get(name) for name in NAMES))


def from_headers(headers: Iterable[tuple[str, bytes]]) -> Context:
    """The context of a received record: a span started in it is a child of the producer's."""
    return carried_in(headers).context()


def to_headers(context: Context | None = None) -> list[tuple[str, bytes]]:
    """The headers that hand the context given, or the current one, to whoever receives the record."""
    return capture(context).headers()


def link_to(carried: Carried | Iterable[tuple[str, bytes]]) -> Link | None:
    """A link to the span that a record's headers, or stored columns, name; nothing when they name none."""
    context = (carried if isinstance(carried, Carried) else carried_in(carried)).context()
    span_context = get_current_span(context).get_span_context()
    return Link(span_context) if span_context.is_valid else None


def is_sampled(traceparent: str | None) -> bool:
    """Whether this is a ``traceparent`` (of version 00) whose flags say so; cheap enough to ask for every event."""
    if not traceparent or traceparent[-1] not in "13579bdf":
        return False
    return _TRACEPARENT.fullmatch(traceparent) is not None
