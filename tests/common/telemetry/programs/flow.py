"""A process as a service would be: one setup, a request, SQL, an outgoing call, a hot loop's spans, logs."""

from __future__ import annotations

import asyncio
import logging
import os
import time

import asyncpg
import httpx
import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from starlette.types import Receive, Scope, Send

from replank.telemetry import semconv
from replank.telemetry.context import capture, from_headers
from replank.telemetry.setup import TelemetrySettings, setup
from replank.telemetry.template import SpanTemplate


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """What a web framework does: a span for a request, and none for a probe."""
    if scope["path"] == "/healthz":
        await handle(scope, receive, send)
        return
    sent = from_headers((name.decode(), value) for name, value in scope["headers"])
    with trace.get_tracer("flow").start_as_current_span("POST /orders/{order_id}", context=sent, kind=SpanKind.SERVER):
        await handle(scope, receive, send)


async def handle(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/healthz":
        logging.getLogger("flow").info("in good health")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    structlog.contextvars.bind_contextvars(event_id="e-1", event_type="shop.order.paid.v1")
    async with asyncpg.create_pool(os.environ["DSN"], min_size=1, max_size=1) as pool:
        async with pool.acquire() as conn, conn.transaction():
            await conn.execute("select $1::text", "hunter2")
        await pool.fetchval("select 1")
    logging.getLogger("flow").info("handled %s", "it", extra={"password": "hunter2", "attempt": 2})
    structlog.get_logger("flow").info("from structlog", dsn="postgresql://ann:hunter2@db/shop")
    logging.getLogger("uvicorn.error").info("from a library")
    async with httpx.AsyncClient() as client:
        await client.get(os.environ["OTHER"], params={"token": "hunter2"})
    wait = SpanTemplate("replank.outbox", semconv.OUTBOX_WAIT, SpanKind.INTERNAL).start(
        capture().traceparent or "none", time.time_ns()
    )
    publish = SpanTemplate(
        "replank.outbox", semconv.publish("orders"), SpanKind.PRODUCER, {semconv.SYSTEM: semconv.KAFKA}
    ).start(wait.traceparent, time.time_ns(), {semconv.MESSAGE_ID: "e-1"})
    wait.end(time.time_ns())
    publish.end(time.time_ns(), {semconv.KAFKA_OFFSET: 7})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def main() -> None:
    telemetry = setup(
        TelemetrySettings(service_name="flow-test", otlp_endpoint=os.environ.get("OTLP"), sample_ratio=1.0)
    )
    try:
        # SQL outside any flow: it must not begin a trace.
        conn = await asyncpg.connect(os.environ["DSN"])
        await conn.execute("select 'outside'")
        await conn.close()
        transport = httpx.ASGITransport(app)
        headers = {"traceparent": os.environ["TRACEPARENT"]} if "TRACEPARENT" in os.environ else {}
        async with httpx.AsyncClient(transport=transport, base_url="http://flow") as client:
            await client.post("/orders/17?token=hunter2", headers=headers)
            await client.get("/healthz")
    finally:
        await asyncio.to_thread(telemetry.shutdown)
    assert not trace.get_current_span().is_recording()
    print("done", flush=True)


asyncio.run(main())
