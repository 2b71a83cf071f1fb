"""One trace from the append to the record, for sampled events; nothing at all for the others."""

from __future__ import annotations

import asyncpg
from opentelemetry import trace
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.trace import SpanKind

from replank import outbox
from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings
from replank.testing.spans import Spans, attributes, parent_of
from tests.common.outbox.contracts import Paid
from tests.common.outbox.events import header, published, put

FAST = RelaySettings(lease=1.5, checkpoint=0.05)
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


async def test_append_captures_the_callers_span(db: asyncpg.Pool, spans: Spans) -> None:
    tracer = trace.get_tracer("test")
    with tracer.start_as_current_span("request") as span:
        async with db.acquire() as conn, conn.transaction():
            await outbox.append(conn, Paid(number=1), key="a")
            await outbox.append_many(conn, [outbox.Message(Paid(number=2), "a")])
    context = span.get_span_context()
    expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    rows = await db.fetch("select traceparent from replank_outbox.event")
    assert [row["traceparent"] for row in rows] == [expected, expected]


async def test_a_sampled_event_has_a_wait_and_a_publish_span_and_carries_the_latter(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str, spans: Spans
) -> None:
    async with db.acquire() as conn:
        event_id = await put(conn, topic, "order-1", traceparent=SAMPLED)
    async with Relay(postgres_dsn, kafka, FAST):
        (record,) = await published(kafka, topic, 1)
    wait, publish = spans.one("outbox wait"), spans.one(f"publish {topic}")
    assert parent_of(wait) == 0xB7AD6B7169203331
    assert wait.context is not None
    assert publish.context is not None
    assert wait.context.trace_id == publish.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert parent_of(publish) == wait.context.span_id
    assert header(record, "traceparent") == f"00-0af7651916cd43dd8448eb211c80319c-{publish.context.span_id:016x}-01"
    assert (wait.kind, publish.kind) == (SpanKind.INTERNAL, SpanKind.PRODUCER)
    assert attributes(wait) == {"replank.outbox.shard": 0, "messaging.message.id": event_id}
    assert attributes(publish) == {
        "messaging.system": "kafka",
        "messaging.destination.name": topic,
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.message.id": event_id,
        "messaging.kafka.message.key": "order-1",
        "server.address": kafka.split(":", maxsplit=1)[0],
    }
    created = await db.fetchval("select (extract(epoch from created_at) * 1000000)::bigint from replank_outbox.event")
    assert wait.start_time == created * 1000
    assert wait.end_time == publish.start_time
    assert publish.start_time is not None
    assert publish.end_time is not None
    assert publish.end_time > publish.start_time


async def test_an_unsampled_event_is_forwarded_as_it_is_and_polling_makes_no_spans(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, topic: str, spans: Spans
) -> None:
    async with db.acquire() as conn:
        await put(conn, topic, "a", traceparent=UNSAMPLED)
        await put(conn, topic, "b")
    spans.clear()
    instrumentor = AsyncPGInstrumentor()  # type: ignore[no-untyped-call]
    instrumentor.instrument()
    try:
        # Started within a span, as a service does: it must not become the parent of everything.
        with trace.get_tracer("test").start_as_current_span("startup"):
            relay = Relay(postgres_dsn, kafka, FAST)
            async with relay:
                records = await published(kafka, topic, 2)
    finally:
        instrumentor.uninstrument()
    assert {record.key: header(record, "traceparent") for record in records} == {b"a": UNSAMPLED, b"b": None}
    assert spans.names() == ["startup"]
