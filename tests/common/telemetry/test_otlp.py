"""The hand-written encoding is what OpenTelemetry's own protobuf messages say it is."""

from __future__ import annotations

import pytest
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from replank.telemetry import otlp
from replank.telemetry.encode import encode

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
values = st.one_of(
    texts,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.lists(texts, max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
)
times = st.integers(1, 2**63)


class Ended(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@given(
    name=texts,
    kind=st.sampled_from(SpanKind),
    start=times,
    end=times,
    attributes=st.dictionaries(st.text("abc._", min_size=1, max_size=300), values, max_size=4),
)
def test_a_span_is_read_back_by_the_official_messages(
    name: str, kind: SpanKind, start: int, end: int, attributes: dict[str, otlp.Value]
) -> None:
    encoded = otlp.span(
        trace_id=b"t" * 16,
        span_id=b"s" * 8,
        parent_id=b"p" * 8,
        name=name,
        kind=kind.value,
        start=start,
        end=end,
        encoded_attributes=otlp.span_attributes(attributes),
    )
    request = ExportTraceServiceRequest.FromString(otlp.request(otlp.resource({"a": 1}), {("scope", "1"): [encoded]}))
    (resource_spans,) = request.resource_spans
    assert resource_spans.resource.attributes[0].value.int_value == 1
    (scope_spans,) = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("scope", "1")
    (span,) = scope_spans.spans
    assert (span.trace_id, span.span_id, span.parent_span_id) == (b"t" * 16, b"s" * 8, b"p" * 8)
    assert (span.name, span.start_time_unix_nano, span.end_time_unix_nano) == (name, start, end)
    assert span.kind == kind.value + 1
    read = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}
    expected = {key: value if not isinstance(value, list) else otlp_list(value) for key, value in attributes.items()}
    assert {
        key: value if not hasattr(value, "values") else list(value.values) for key, value in read.items()
    } == expected


def otlp_list(value: list[str] | list[int]) -> list[object]:
    return [AnyValue(string_value=item) if isinstance(item, str) else AnyValue(int_value=item) for item in value]


def test_a_span_of_the_sdk_is_encoded_as_opentelemetry_does_it() -> None:
    ended = Ended()
    provider = TracerProvider(
        resource=Resource({"service.name": "shop", "n": 3}),
        span_limits=SpanLimits(max_attributes=6, max_events=2, max_links=1),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(ended)
    tracer = provider.get_tracer("a scope", "2.0")
    state = TraceState([("vendor", "x1"), ("other", "2")])
    remote = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    context = trace.set_span_in_context(NonRecordingSpan(remote))
    with tracer.start_as_current_span(
        "outer",
        context,
        SpanKind.CONSUMER,
        {"s": "ü", "i": -1, "f": 0.5, "b": True, "l": ["a", "b"], "z": 0, "over": 1},
        links=[Link(remote, {"why": "dropped"}), Link(SpanContext(9, 10, is_remote=False), {"why": "kept"})],
    ) as span:
        for name in ("dropped", "one", "two"):
            span.add_event(name, {"n": 1}, timestamp=5)
        span.set_status(Status(StatusCode.ERROR, "broken"))
        with tracer.start_as_current_span("inner"):
            pass
    with tracer.start_as_current_span("fine") as root:
        root.set_status(Status(StatusCode.OK))
    assert len(ended.spans) == 3

    official = encode_spans(ended.spans)
    scopes: dict[tuple[str, str], list[bytes]] = {}
    for each in ended.spans:
        scope, encoded = encode(each)
        scopes.setdefault(scope, []).append(encoded)
    ours = ExportTraceServiceRequest.FromString(otlp.request(otlp.resource({"service.name": "shop", "n": 3}), scopes))
    for span in (span for scope in official.resource_spans[0].scope_spans for span in scope.spans):
        # An unset status is written by them and left out by us: both mean the same.
        if not span.status.code:
            span.ClearField("status")
    assert MessageToDict(ours) == MessageToDict(official)


def test_text_that_is_not_unicode_does_not_spoil_the_batch() -> None:
    encoded = otlp.span_attributes({"broken": "a\ud800b"})
    span = ProtoSpan.FromString(encoded)
    assert span.attributes[0].value.string_value == "a?b"


@pytest.mark.parametrize("rejected", [0, 1, 127, 128, 300_000])
def test_the_collectors_partial_refusal_is_understood(rejected: int) -> None:
    answer = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=rejected, error_message="no")
    )
    assert otlp.rejected_spans(answer.SerializeToString()) == rejected
    assert otlp.rejected_spans(b"") == 0
    assert otlp.rejected_spans(b"<html>") == 0
