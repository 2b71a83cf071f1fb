"""The pipeline delivers what it can, counts what it cannot, and is never in anybody's way."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.trace import SpanKind

from replank.telemetry import metrics, otlp
from replank.telemetry.jaeger import Jaeger
from replank.telemetry.pipeline import SpanPipeline
from replank.testing import eventually
from replank.testing.faults import unused_address
from replank.testing.plugin import FaultProxies

SCOPE = ("test", "1")


def span(name: str = "a span", trace_id: bytes | None = None, size: int = 0) -> bytes:
    now = time.time_ns()
    return otlp.span(
        trace_id=trace_id or secrets.token_bytes(16),
        span_id=secrets.token_bytes(8),
        parent_id=b"",
        name=name,
        kind=SpanKind.INTERNAL.value,
        start=now,
        end=now + 1000,
        encoded_attributes=otlp.span_attributes({"padding": "x" * size}) if size else b"",
    )


def exported() -> float:
    return float(metrics.SPANS_EXPORTED._series._value.get())


def dropped(reason: str) -> float:
    return float(metrics.SPANS_DROPPED.labels(reason)._value.get())


class Collector:
    """An OTLP/HTTP receiver that answers what it is told to, in turn; the last answer repeats."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers or [(200, b"")])
        self.names: list[str] = []
        self.requests = 0
        self.headers: list[dict[str, str]] = []


@contextmanager
def collector(*answers: tuple[int, bytes]) -> Iterator[tuple[Collector, str]]:
    state = Collector(*answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            state.requests += 1
            state.headers.append(dict(self.headers))
            if status == 200:
                request = ExportTraceServiceRequest.FromString(body)
                state.names += [s.name for r in request.resource_spans for c in r.scope_spans for s in c.spans]
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_spans_reach_a_real_collector(otlp_endpoint: str, jaeger: Jaeger) -> None:
    trace_id = secrets.token_bytes(16)
    pipeline = SpanPipeline(otlp_endpoint, {"service.name": "pipeline-test"})
    try:
        pipeline.add(SCOPE, span("delivered", trace_id))
        found = await jaeger.trace(trace_id.hex(), until=lambda trace: trace.find("delivered"))
    finally:
        await asyncio.to_thread(pipeline.close)
    assert found.services == {"pipeline-test"}


async def test_a_burst_is_delivered_whole() -> None:
    before = dropped("queue_full")
    with collector() as (received, url):
        pipeline = SpanPipeline(url, {})
        for _ in range(20_000):
            pipeline.add(SCOPE, span())
        assert await asyncio.to_thread(pipeline.flush, 20)
        pipeline.close()
    assert len(received.names) == 20_000
    assert received.requests < 100, "spans are sent in batches"
    assert dropped("queue_full") == before


async def test_a_dead_collector_costs_nothing_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    lost = dropped("shutdown")
    async with unused_address() as address:
        pipeline = SpanPipeline(f"http://user:hunter2@{address}", {}, batch_bytes=1000)
        began = time.perf_counter()
        for _ in range(1000):
            pipeline.add(SCOPE, b"x" * 100)
        assert time.perf_counter() - began < 0.5, "adding waited for the collector"
        await eventually(lambda: caplog.records, "a warning")
        began = time.perf_counter()
        await asyncio.to_thread(pipeline.close, 1.0)
        assert time.perf_counter() - began < 4.0, "the shutdown waited for the collector"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if "cannot be exported" in text]) == 1
    assert address in warnings[0]
    assert "hunter2" not in "".join(warnings)
    assert dropped("shutdown") - lost == 1000


async def test_a_collector_that_stalls_holds_up_neither_the_service_nor_its_end(fault_proxy: FaultProxies) -> None:
    with collector() as (_, url):
        proxy = await fault_proxy(urlsplit(url).netloc)
        proxy.stall()
        pipeline = SpanPipeline(f"http://{proxy.address}", {}, timeout=60.0)
        pipeline.add(SCOPE, span())
        await eventually(lambda: proxy.connections, "the pipeline waits for an answer")
        began = time.perf_counter()
        for _ in range(1000):
            pipeline.add(SCOPE, span())
        assert time.perf_counter() - began < 0.5
        assert not await asyncio.to_thread(pipeline.flush, 0.1)
        began = time.perf_counter()
        await asyncio.to_thread(pipeline.close, 0.5)
        assert time.perf_counter() - began < 5.0


async def test_what_waited_for_a_collector_is_delivered_when_it_is_back(fault_proxy: FaultProxies) -> None:
    with collector() as (received, url):
        proxy = await fault_proxy(urlsplit(url).netloc)
        await proxy.refuse()
        pipeline = SpanPipeline(f"http://{proxy.address}", {})
        pipeline.add(SCOPE, span("kept"))
        assert not await asyncio.to_thread(pipeline.flush, 0.3)
        await proxy.heal()
        assert await asyncio.to_thread(pipeline.flush, 10)
        await asyncio.to_thread(pipeline.close)
    assert received.names == ["kept"]


async def test_a_full_queue_drops_the_oldest_and_counts_them(fault_proxy: FaultProxies) -> None:
    before = dropped("queue_full")
    with collector() as (received, url):
        proxy = await fault_proxy(urlsplit(url).netloc)
        await proxy.refuse()
        pipeline = SpanPipeline(f"http://{proxy.address}", {}, queue_bytes=20_000, batch_bytes=2_000)
        for number in range(300):
            pipeline.add(SCOPE, span(str(number), size=200))
        await proxy.heal()
        assert await asyncio.to_thread(pipeline.flush, 10)
        await asyncio.to_thread(pipeline.close)
    gone = dropped("queue_full") - before
    assert gone > 0
    assert len(received.names) + gone == 300
    assert received.names[-1] == "299"


async def test_a_busy_collector_is_asked_again_and_a_refusal_is_counted() -> None:
    sent, refused = exported(), dropped("refused")
    with collector((503, b""), (429, b""), (200, b""), (400, b"bad")) as (received, url):
        pipeline = SpanPipeline(url, {}, headers={"x-tenant": "shop"})
        pipeline.add(SCOPE, span("again"))
        assert await asyncio.to_thread(pipeline.flush, 10)
        assert (received.names, received.requests) == (["again"], 3)
        pipeline.add(SCOPE, span("refused"))
        assert await asyncio.to_thread(pipeline.flush, 10)
        await asyncio.to_thread(pipeline.close)
    assert (exported() - sent, dropped("refused") - refused) == (1, 1)
    assert received.headers[0]["x-tenant"] == "shop"


async def test_a_partial_refusal_is_counted() -> None:
    sent, refused = exported(), dropped("refused")
    answer = ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=2))
    with collector((200, answer.SerializeToString())) as (_, url):
        pipeline = SpanPipeline(url, {})
        for _ in range(3):
            pipeline.add(SCOPE, span())
        assert await asyncio.to_thread(pipeline.flush, 10)
        pipeline.close()
    assert (exported() - sent, dropped("refused") - refused) == (1, 2)


async def test_the_shutdown_sends_what_waits_and_counts_what_comes_later() -> None:
    before = dropped("shutdown")
    with collector() as (received, url):
        pipeline = SpanPipeline(url, {}, delay=60.0)
        pipeline.add(SCOPE, span("last"))
        await asyncio.to_thread(pipeline.close)
        pipeline.add(SCOPE, span("too late"))
    assert received.names == ["last"]
    assert dropped("shutdown") - before == 1
