"""A template's span is the same span whichever way it is made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.trace import SpanKind

from replank.telemetry import otlp
from replank.telemetry.context import is_sampled
from replank.telemetry.encode import encode
from replank.telemetry.template import Scope, SpanTemplate, use_sink
from replank.testing.spans import Spans

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TEMPLATE = SpanTemplate("replank.test", "publish orders", SpanKind.PRODUCER, {"messaging.system": "kafka"})


class Kept:
    def __init__(self) -> None:
        self.spans: list[tuple[Scope, bytes]] = []

    def add(self, scope: Scope, encoded: bytes) -> None:
        self.spans.append((scope, encoded))


@pytest.fixture
def sink() -> Iterator[Kept]:
    kept = Kept()
    use_sink(kept)
    yield kept
    use_sink(None)


def make(error: str = "") -> str:
    span = TEMPLATE.start(PARENT, 1000, {"messaging.message.id": "e-1"})
    span.end(3000, {"messaging.kafka.offset": 7}, error=error)
    return span.traceparent


def read(scope: Scope, encoded: bytes) -> Span:
    request = ExportTraceServiceRequest.FromString(otlp.request(b"", {scope: [encoded]}))
    span: Span = request.resource_spans[0].scope_spans[0].spans[0]
    assert request.resource_spans[0].scope_spans[0].scope.name == "replank.test"
    return span


def check(span: Span, traceparent: str) -> None:
    assert is_sampled(traceparent)
    assert traceparent.startswith(PARENT[:36])
    assert span.trace_id.hex() == PARENT[3:35]
    assert span.parent_span_id.hex() == PARENT[36:52]
    assert span.span_id.hex() == traceparent[36:52] != PARENT[36:52]
    assert (span.name, span.kind) == ("publish orders", Span.SpanKind.SPAN_KIND_PRODUCER)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1000, 3000)
    assert [pair.key for pair in span.attributes] == [
        "messaging.system",
        "messaging.message.id",
        "messaging.kafka.offset",
    ]
    assert (span.status.code, span.status.message) == (2, "boom")


def test_where_there_is_a_pipeline_it_is_encoded_straight_away(sink: Kept) -> None:
    traceparent = make(error="boom")
    ((scope, encoded),) = sink.spans
    check(read(scope, encoded), traceparent)


def test_elsewhere_it_goes_through_the_api_to_whatever_provider_there_is(spans: Spans) -> None:
    traceparent = make(error="boom")
    check(read(*encode(spans.one("publish orders"))), traceparent)


def test_a_test_sees_it_though_there_is_a_pipeline(sink: Kept, spans: Spans) -> None:
    traceparent = make(error="boom")
    check(read(*encode(spans.one("publish orders"))), traceparent)
    assert sink.spans == []


@pytest.mark.parametrize(
    "parent", ["", "nonsense", PARENT[:-1] + "0", PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32)]
)
def test_below_a_parent_that_is_not_sampled_nothing_is_recorded(sink: Kept, parent: str) -> None:
    span = TEMPLATE.start(parent, 1)
    span.end(2)
    assert (span.traceparent, sink.spans) == (parent, [])


def test_ids_differ(sink: Kept) -> None:
    assert len({make() for _ in range(1000)}) == 1000
