"""The spans of a consumer: one for each attempt, a child of what the producer sent.

Needs the OpenTelemetry API alone. An event whose trace is not sampled gets no span at all, but its context is still the
current one while it is handled, so that what the handler appends or calls belongs to the same trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from replank.inbox.envelope import Envelope
from replank.telemetry.context import Carried, link_to

_tracer: Final = trace.get_tracer("replank.inbox")
_MOST_LINKS: Final = 128  # the SDK's default limit; more would be dropped in silence


def _carried(event: Envelope) -> Carried:
    return Carried(event.text("traceparent"), event.text("tracestate"), event.text("baggage"))


def _attributes(consumer_group: str, event: Envelope) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": event.topic,
        "messaging.consumer.group.name": consumer_group,
        "messaging.message.id": str(event.event_id),
        "messaging.destination.partition.id": str(event.partition),
        "messaging.kafka.offset": event.offset,
    }
    if event.type:
        attributes["cloudevents.event_type"] = event.type
    return attributes


@contextmanager
def _current(context: Context) -> Iterator[None]:
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


@contextmanager
def quiet() -> Iterator[None]:
    """No spans for what the inbox asks its database all the time: they would be one trace each, of nothing."""
    with _current(otel_context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True)):
        yield


@contextmanager
def processing(consumer_group: str, events: Sequence[Envelope], attempt: int) -> Iterator[Span]:
    """The span of one attempt at one event, or at a batch.

    A batch is part of the trace of its first sampled event and linked to those of the others.
    """
    first = events[0]
    sampled = [(event, carried) for event in events if (carried := _carried(event)).sampled]
    parent, carried = sampled[0] if sampled else (first, _carried(first))
    context = carried.context()
    if not sampled and trace.get_current_span(context).get_span_context().is_valid:
        with _current(context):
            yield INVALID_SPAN
        return
    attributes = _attributes(consumer_group, parent)
    attributes["replank.inbox.attempt"] = attempt
    links = []
    if len(events) > 1:
        attributes["messaging.batch.message_count"] = len(events)
        links = [link for _, carried in sampled[1:_MOST_LINKS] if (link := link_to(carried))]
    with _tracer.start_as_current_span(
        f"process {first.topic}",
        context=context,
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


@contextmanager
def redriving(consumer_group: str, event: Envelope, attempt: int) -> Iterator[Span]:
    """The span of a redrive: a new trace, linked to the one in which the event died."""
    link = link_to(_carried(event))
    with (
        _current(Context()),
        _tracer.start_as_current_span(
            f"process {event.topic}",
            kind=SpanKind.CONSUMER,
            attributes={
                **_attributes(consumer_group, event),
                "replank.inbox.attempt": attempt,
                "replank.inbox.redrive": True,
            },
            links=[link] if link else [],
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
    ):
        yield span


def mark(span: Span, outcome: str, *, failed: bool) -> None:
    """Say on the span how the attempt ended. The text is a fixed word, never an error's message: that may hold data."""
    span.set_attribute("replank.inbox.outcome", outcome)
    if failed:
        span.set_status(Status(StatusCode.ERROR, outcome))
