"""A trace is read as Jaeger has it, walked by parent and child, and drawn."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from replank.errors import DependencyUnavailable
from replank.telemetry.jaeger import Jaeger, TraceNotFound, parse, waterfall
from replank.testing.faults import unused_address


def span(  # noqa: PLR0917 - a row of a table
    name: str, number: int, parent: int | None, start: int, duration: int, process: str, **tags: Any
) -> Any:
    reference = [{"refType": "CHILD_OF", "traceID": "t", "spanID": str(parent)}] if parent is not None else []
    return {
        "traceID": "t",
        "spanID": str(number),
        "operationName": name,
        "references": reference,
        "startTime": 1_000_000 + start,
        "duration": duration,
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
        "logs": [],
        "processID": process,
    }


FLOW = {
    "traceID": "t",
    "processes": {"p1": {"serviceName": "shop"}, "p2": {"serviceName": "archiver"}},
    "spans": [
        span("process orders", 4, 3, 700, 300, "p2", error=True),
        span("POST /orders", 1, None, 0, 500, "p1"),
        span("outbox wait", 2, 1, 100, 400, "p1"),
        span("publish orders", 3, 2, 500, 100, "p1"),
        span("INSERT", 5, 1, 50, 30, "p1"),
    ],
}


def test_spans_are_ordered_by_start_and_know_parent_and_children() -> None:
    trace = parse(FLOW)
    assert [found.name for found in trace.spans] == [
        "POST /orders",
        "INSERT",
        "outbox wait",
        "publish orders",
        "process orders",
    ]
    (root,) = trace.roots
    assert [child.name for child in root.children] == ["INSERT", "outbox wait"]
    (process,) = trace.find("process orders", service="archiver")
    assert [found.name for found in process.ancestors()] == ["publish orders", "outbox wait", "POST /orders"]
    assert process.failed
    assert trace.services == {"shop", "archiver"}


def test_a_path_may_skip_generations_and_name_the_service() -> None:
    trace = parse(FLOW)
    assert len(trace.assert_path("POST /orders", "archiver: process orders")) == 2
    with pytest.raises(AssertionError, match=r"no path process orders -> INSERT(.|\n)*outbox wait"):
        trace.assert_path("process orders", "INSERT")
    with pytest.raises(AssertionError, match="no path"):
        trace.assert_path("shop: process orders")


def test_a_waterfall_shows_the_tree_the_times_and_the_failure() -> None:
    lines = waterfall(parse(FLOW), width=80).splitlines()
    assert lines[0] == "trace t: 5 spans, 1.0 ms, services: archiver, shop"
    assert [line.split("|")[0].rstrip() for line in lines[1:]] == [
        "shop: POST /orders",
        "├ INSERT",
        "└ outbox wait",
        "  └ publish orders",
        "    └ archiver: process orders !",
    ]
    assert lines[-1].rstrip().endswith("300 us")
    assert all(len(line) <= 80 for line in lines[1:])


async def test_a_trace_that_does_not_come_is_named(jaeger: Jaeger) -> None:
    trace_id = secrets.token_hex(16)
    assert await jaeger.find(trace_id) is None
    with pytest.raises(TraceNotFound, match=trace_id):
        await jaeger.trace(trace_id, within=0.2)


async def test_a_jaeger_that_is_not_there_is_named() -> None:
    async with unused_address() as address, Jaeger(f"http://{address}") as jaeger:
        with pytest.raises(DependencyUnavailable, match=address):
            await jaeger.services()
