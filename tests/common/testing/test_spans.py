"""Spans that end during the test are seen, whoever ends them, and no others."""

from __future__ import annotations

import pytest
from opentelemetry import trace

from replank.telemetry.setup import TelemetrySettings, setup
from replank.testing.spans import Spans, attributes, captured_spans, parent_of

tracer = trace.get_tracer("a module's own tracer, made at import")


def test_spans_are_seen_with_parent_and_attributes(spans: Spans) -> None:
    with tracer.start_as_current_span("outer") as outer, tracer.start_as_current_span("inner", attributes={"n": 1}):
        pass
    assert spans.names() == ["inner", "outer"]
    assert parent_of(spans.one("inner")) == outer.get_span_context().span_id
    assert parent_of(spans.one("outer")) is None
    assert attributes(spans.one("inner")) == {"n": 1}
    with pytest.raises(AssertionError, match="0 spans are named 'missing'"):
        spans.one("missing")
    spans.clear()
    assert spans.all() == ()


def test_spans_are_seen_though_the_process_samples_nothing(spans: Spans) -> None:
    telemetry = setup(TelemetrySettings(service_name="unsampled", sample_ratio=0.0))
    try:
        tracer.start_span("one").end()
    finally:
        telemetry.shutdown()
    assert spans.names() == ["one"]


def test_each_test_sees_its_own_spans_only() -> None:
    with captured_spans() as first:
        tracer.start_span("one").end()
    with captured_spans() as second:
        tracer.start_span("two").end()
    assert (first.names(), second.names()) == (["one"], ["two"])
