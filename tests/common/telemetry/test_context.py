"""A trace context survives headers and columns, and what is malformed is as good as none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from replank.telemetry.context import Carried, capture, carried_in, from_headers, is_sampled, link_to, to_headers

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_headers_carry_the_whole_context_to_the_reader() -> None:
    sent = SpanContext(5, 6, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("v", "1")]))
    context = baggage.set_baggage("tenant", "ä b", trace.set_span_in_context(NonRecordingSpan(sent)))
    headers = to_headers(context)
    assert [name for name, _ in headers] == ["traceparent", "tracestate", "baggage"]

    received = from_headers([("ce_id", b"x"), *headers])
    arrived = trace.get_current_span(received).get_span_context()
    assert (arrived.trace_id, arrived.span_id, arrived.trace_flags) == (5, 6, TraceFlags(1))
    assert arrived.is_remote
    assert arrived.trace_state.get("v") == "1"
    assert baggage.get_baggage("tenant", received) == "ä b"


def test_no_context_is_no_header() -> None:
    assert to_headers(trace.set_span_in_context(trace.INVALID_SPAN)) == []
    assert capture() == Carried(None, None, None)


def test_the_readers_own_span_is_not_the_parent_of_what_it_reads() -> None:
    with trace.use_span(NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))):
        assert not trace.get_current_span(from_headers([])).get_span_context().is_valid


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_what_others_wrote_never_raises(traceparent: bytes, tracestate: bytes, baggage_: bytes) -> None:
    headers = [("traceparent", traceparent), ("tracestate", tracestate), ("baggage", baggage_)]
    from_headers(headers)
    link_to(headers)
    is_sampled(carried_in(headers).traceparent)


@pytest.mark.parametrize(
    ("traceparent", "sampled"),
    [
        (PARENT, True),
        (PARENT[:-1] + "0", False),
        (PARENT[:-2] + "03", True),
        (PARENT[:-2] + "02", False),
        (PARENT + "-more", False),
        ("", False),
        (None, False),
    ],
)
def test_sampled_is_what_the_flags_say(traceparent: str | None, sampled: bool) -> None:
    assert is_sampled(traceparent) is sampled
    assert Carried(traceparent).sampled is sampled


def test_a_link_points_to_the_span_that_the_headers_name() -> None:
    link = link_to([("traceparent", PARENT.encode())])
    assert link is not None
    assert f"{link.context.span_id:016x}" == "b7ad6b7169203331"
    assert link_to([("traceparent", b"nonsense")]) is None
    assert link_to(Carried()) is None
