"""Spans for hot loops: what is the same for thousands of them is prepared once.

A span of the OpenTelemetry SDK costs about 45 us from start to export, which a relay of 15,000 events a second with
two spans each cannot pay. A span made from a `SpanTemplate` costs a tenth of that: it is encoded as it ends and goes
straight to the pipeline of `replank.telemetry.setup`. It is no context for other spans but through its
``traceparent``.

In a process with another tracer provider, or with none, the very same calls make ordinary spans through the
OpenTelemetry API, so the caller need not know. Needs the OpenTelemetry API alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from replank.telemetry import otlp
from replank.telemetry.context import Carried, is_sampled

Scope = tuple[str, str]


class Sink(Protocol):
    """Takes encoded spans. It never blocks and never raises: what it cannot keep it drops and counts."""

    def add(self, scope: Scope, encoded: bytes) -> None: ...


class _Active:
    sink: Sink | None = None
    bypassed: int = 0


_ACTIVE: Final = _Active()


def use_sink(sink: Sink | None) -> None:
    """Where the spans of templates go from now on; nothing means: through the OpenTelemetry API."""
    _ACTIVE.sink = sink


@contextmanager
def ordinary_spans() -> Iterator[None]:
    """Make the spans of templates through the OpenTelemetry API meanwhile, so that every span processor sees them."""
    _ACTIVE.bypassed += 1
    try:
        yield
    finally:
        _ACTIVE.bypassed -= 1


class PendingSpan(Protocol):
    """A span that has begun."""

    @property
    def traceparent(self) -> str:
        """Its W3C context: what a child of it is given as its parent."""

    def end(self, end: int, attributes: Mapping[str, otlp.Value] | None = None, *, error: str = "") -> None:
        """End it at ``end`` (nanoseconds since the epoch), once. ``error`` is why it failed, if it did."""


class SpanTemplate:
    """Spans of one name, kind and set of fixed attributes, as many as you like::

    PUBLISH = SpanTemplate("replank.outbox", "publish orders", SpanKind.PRODUCER, {semconv.SYSTEM: semconv.KAFKA})
    span = PUBLISH.start(parent, time.time_ns(), {semconv.MESSAGE_ID: str(event_id)})
    ...  # hand span.traceparent to the consumer
    span.end(time.time_ns())
    """

    def __init__(
        self, scope: str, name: str, kind: SpanKind, attributes: Mapping[str, otlp.Value] | None = None
    ) -> None:
        self.scope: Scope = (scope, "")
        self.name = name
        self.kind = kind
        self.kind_value: int = kind.value
        self.attributes = dict(attributes or {})
        self.encoded_attributes = otlp.span_attributes(self.attributes)
        self._tracer = trace.get_tracer(scope)

    def start(self, parent: str, start: int, attributes: Mapping[str, otlp.Value] | None = None) -> PendingSpan:
        """Begin a span at ``start`` (nanoseconds since the epoch) below ``parent``, a ``traceparent``.

        Where the parent is not sampled, or malformed, nothing is recorded and the context is handed on as it is. A
        caller in a hurry asks `replank.telemetry.context.is_sampled` itself and makes no span at all.
        """
        if not is_sampled(parent):
            return _Unrecorded(parent)
        sink = _ACTIVE.sink
        if sink is not None and not _ACTIVE.bypassed:
            return _EncodedSpan(self, sink, parent, start, attributes)
        context = Carried(parent).context()
        merged = {**self.attributes, **attributes} if attributes else self.attributes
        span = self._tracer.start_span(self.name, context, self.kind, merged, start_time=start)
        return _ApiSpan(span)


class _EncodedSpan:
    __slots__ = ("_attributes", "_parent", "_sink", "_span_id", "_start", "_template")

    def __init__(
        self,
        template: SpanTemplate,
        sink: Sink,
        parent: str,
        start: int,
        attributes: Mapping[str, otlp.Value] | None,
    ) -> None:
        self._template = template
        self._sink = sink
        self._parent = parent
        self._start = start
        self._attributes = attributes
        # Zero is no valid id. The generator is OpenTelemetry's own choice: unique, not secret.
        self._span_id = f"{random.getrandbits(64) or 1:016x}"

    @property
    def traceparent(self) -> str:
        return f"{self._parent[:36]}{self._span_id}-01"

    def end(self, end: int, attributes: Mapping[str, otlp.Value] | None = None, *, error: str = "") -> None:
        template = self._template
        encoded = template.encoded_attributes
        if self._attributes:
            encoded += otlp.span_attributes(self._attributes)
        if attributes:
            encoded += otlp.span_attributes(attributes)
        parent = self._parent
        self._sink.add(
            template.scope,
            otlp.span(
                trace_id=bytes.fromhex(parent[3:35]),
                span_id=bytes.fromhex(self._span_id),
                parent_id=bytes.fromhex(parent[36:52]),
                name=template.name,
                kind=template.kind_value,
                start=self._start,
                end=end,
                encoded_attributes=encoded,
                rest=otlp.status(StatusCode.ERROR.value, error) if error else b"",
            ),
        )


class _Unrecorded:
    __slots__ = ("traceparent",)

    def __init__(self, parent: str) -> None:
        self.traceparent = parent

    def end(self, end: int, attributes: Mapping[str, otlp.Value] | None = None, *, error: str = "") -> None:
        """Nothing is recorded."""


class _ApiSpan:
    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, end: int, attributes: Mapping[str, otlp.Value] | None = None, *, error: str = "") -> None:
        if attributes:
            self._span.set_attributes(dict(attributes))
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(end)
