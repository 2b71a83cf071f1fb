"""A span of the OpenTelemetry SDK in the wire format of OTLP, without what must not leave the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext

from replank.telemetry import otlp, redaction
from replank.telemetry.template import Scope

# Text from outside in which secrets and row data turn up. The values of all other attributes are ours.
_TEXTS: Final = frozenset(
    {
        "db.statement",
        "db.query.text",
        "exception.message",
        "exception.stacktrace",
        "http.target",
        "http.url",
        "url.full",
        "url.query",
    }
)
# Values bound to a statement are payload, whoever switched their capture on.
_NEVER: Final = frozenset({"db.statement.parameters", "db.query.parameters"})

_NO_SCOPE: Final[Scope] = ("", "")


def encode(span: ReadableSpan) -> tuple[Scope, bytes]:
    """The scope of an ended span, and the span for `replank.telemetry.otlp.request`."""
    context, parent, scope = span.get_span_context(), span.parent, span.instrumentation_scope
    if context is None or span.start_time is None or span.end_time is None:
        raise ValueError(f"the span {span.name} has not begun or not ended")
    state = context.trace_state
    rest = [
        otlp.flags(parent is not None and parent.is_remote),
        otlp.trace_state(state.to_header()) if state else b"",
        otlp.status(span.status.status_code.value, redaction.redact_text(span.status.description or "")),
        otlp.dropped(span.dropped_attributes, span.dropped_events, span.dropped_links),
    ]
    rest += [otlp.event(event.timestamp, event.name, _clean(event.attributes)) for event in span.events]
    rest += [_link(link) for link in span.links]
    encoded = otlp.span(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        parent_id=_id(parent),
        name=span.name,
        kind=span.kind.value,
        start=span.start_time,
        end=span.end_time,
        encoded_attributes=otlp.span_attributes(_clean(span.attributes)),
        rest=b"".join(rest),
    )
    return (scope.name, scope.version or "") if scope else _NO_SCOPE, encoded


def _id(context: SpanContext | None) -> bytes:
    return context.span_id.to_bytes(8, "big") if context is not None else b""


def _link(link: Link) -> bytes:
    context = link.context
    return otlp.link(
        context.trace_id.to_bytes(16, "big"), _id(context), _clean(link.attributes), remote=context.is_remote
    )


def _clean(attributes: Mapping[str, object] | None) -> dict[str, object]:
    if not attributes:
        return {}
    return {
        key: redaction.redact_text(value) if key in _TEXTS and isinstance(value, str) else value
        for key, value in attributes.items()
        if key not in _NEVER
    }
