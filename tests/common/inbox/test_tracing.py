"""A consumer's spans belong to the trace of what they consume."""

from __future__ import annotations

import asyncpg
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from replank import outbox
from replank.inbox import Batch, Dead, Delivery, Done, Outcome, dead_letters
from replank.testing import eventually
from replank.testing.spans import Spans, attributes, parent_of
from tests.common.inbox.conftest import MakeInbox, Sender, running
from tests.common.inbox.contracts import Archived, Paid
from tests.common.inbox.effects import has, letters, write

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


def traceparent(*, trace_id: int = TRACE, sampled: bool = True) -> dict[str, bytes]:
    """The header of an event that was sent in a trace."""
    return {"traceparent": f"00-{trace_id:032x}-{PARENT:016x}-{'01' if sampled else '00'}".encode()}


async def test_the_span_of_an_event_is_a_child_of_its_producer_and_parent_of_what_the_handler_does(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, spans: Spans
) -> None:
    inbox = make_inbox(consumer="archiver")

    @inbox.topic(send.topic).on(Paid)
    async def keep(delivery: Delivery[Paid]) -> Outcome:
        with trace.get_tracer("test").start_as_current_span("work"):
            await outbox.append(delivery.conn, Archived(number=1), key="a")
        return await write(delivery)

    async with running(inbox):
        event_id = await send.event(Paid(number=1), key="k", headers=traceparent())
        await eventually(lambda: spans.named(f"process {send.topic}"), "the span ended")
    span = spans.one(f"process {send.topic}")
    assert (span.context.trace_id, parent_of(span), span.kind) == (TRACE, PARENT, SpanKind.CONSUMER)
    assert span.status.status_code is not StatusCode.ERROR
    assert attributes(span) == {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": send.topic,
        "messaging.consumer.group.name": f"archiver.{send.topic}",
        "messaging.message.id": str(event_id),
        "messaging.destination.partition.id": attributes(span)["messaging.destination.partition.id"],
        "messaging.kafka.offset": 0,
        "cloudevents.event_type": Paid.event_type,
        "replank.inbox.attempt": 1,
        "replank.inbox.outcome": "done",
    }
    work = spans.one("work")
    assert (work.context.trace_id, parent_of(work)) == (TRACE, span.context.span_id)
    appended = await db.fetchval("select traceparent from replank_outbox.event")
    assert appended == f"00-{TRACE:032x}-{work.context.span_id:016x}-01"


async def test_a_malformed_trace_context_is_as_good_as_none(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, spans: Spans
) -> None:
    inbox = make_inbox(consumer="archiver")

    @inbox.topic(send.topic).on(Paid)
    async def keep(delivery: Delivery[Paid]) -> Outcome:
        return await write(delivery)

    malformed = [f"00-{TRACE:032x}-01", f"00-{TRACE:032x}-{PARENT:016x}-0", f"00-{'0' * 32}-{PARENT:016x}-00", "\xff"]
    async with running(inbox):
        for number, text in enumerate(malformed):
            await send.event(Paid(number=number), key="k", headers={"traceparent": text.encode("latin-1")})
        await eventually(lambda: len(spans.named(f"process {send.topic}")) == len(malformed), "each has a span")
    found = spans.named(f"process {send.topic}")
    assert {parent_of(span) for span in found} == {None}
    assert len({span.context.trace_id for span in found} - {TRACE}) == len(malformed)


async def test_an_unsampled_event_makes_no_span_and_what_it_causes_is_unsampled_too(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, spans: Spans
) -> None:
    inbox = make_inbox()

    @inbox.topic(send.topic).on(Paid)
    async def keep(delivery: Delivery[Paid]) -> Outcome:
        await outbox.append(delivery.conn, Archived(number=1), key="a")
        return await write(delivery)

    async with running(inbox):
        await send.event(Paid(number=1), headers=traceparent(sampled=False))
        await eventually(lambda: has(db, 1), "it is applied")
    assert spans.named(f"process {send.topic}") == []
    appended = await db.fetchval("select traceparent from replank_outbox.event")
    assert appended == f"00-{TRACE:032x}-{PARENT:016x}-00"


async def test_a_dead_letter_is_an_error_with_its_reason_and_without_the_text_of_the_error(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, spans: Spans
) -> None:
    inbox = make_inbox(attempts=2)

    @inbox.topic(send.topic).on(Paid)
    async def fail(delivery: Delivery[Paid]) -> Outcome:
        raise ValueError(delivery.event.text)

    async with running(inbox):
        await send.event(Paid(number=1, text="4111 1111 1111 1111"), headers=traceparent())
        await eventually(lambda: letters(db), "it is a dead letter")
    first, second = spans.named(f"process {send.topic}")
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "retry")
    assert (second.status.status_code, second.status.description) == (StatusCode.ERROR, "handler_error")
    assert attributes(second)["replank.inbox.attempt"] == 2
    assert not any("4111" in span.to_json() for span in spans.all())


async def test_a_batch_is_one_span_linked_to_the_others_that_are_sampled(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, spans: Spans
) -> None:
    for number in range(4):
        headers = traceparent(trace_id=TRACE + number, sampled=number != 2)
        await send.event(Paid(number=number), partition=0, headers=headers)
    inbox = make_inbox()

    @inbox.topic(send.topic, batch=True).on(Paid)
    async def many(batch: Batch[Paid]) -> Outcome:
        assert len(batch) == 4
        return Done()

    async with running(inbox):
        await eventually(lambda: spans.named(f"process {send.topic}"), "the span ended")
    span = spans.one(f"process {send.topic}")
    assert span.context.trace_id == TRACE
    assert [link.context.trace_id for link in span.links] == [TRACE + 1, TRACE + 3]
    assert attributes(span)["messaging.batch.message_count"] == 4


async def test_a_redrive_is_a_new_trace_linked_to_the_old_one(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, spans: Spans
) -> None:
    inbox = make_inbox(consumer="archiver")

    @inbox.topic(send.topic).on(Paid)
    async def treat(delivery: Delivery[Paid]) -> Outcome:
        if delivery.attempt == 1:
            return Dead("sick")
        with trace.get_tracer("test").start_as_current_span("work"):
            return await write(delivery)

    async with running(inbox):
        await send.event(Paid(number=1), key="k", headers=traceparent())
        await eventually(lambda: letters(db), "it is a dead letter")
        async with db.acquire() as conn:
            await dead_letters.redrive(conn, consumer="archiver")
        await eventually(lambda: has(db, 1), "it is applied")
        await eventually(lambda: len(spans.named(f"process {send.topic}")) == 2, "the second span ended")
    _, again = spans.named(f"process {send.topic}")
    assert again.parent is None
    assert again.context.trace_id != TRACE
    assert [link.context.trace_id for link in again.links] == [TRACE]
    assert parent_of(spans.one("work")) == again.context.span_id


async def test_a_broken_traceparent_breaks_nothing(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    inbox = make_inbox()
    inbox.topic(send.topic).on(Paid)(write)
    async with running(inbox):
        for number, broken in enumerate((b"", b"\xff\xff", b"00-zz-zz-01", b"x" * 1000)):
            await send.event(Paid(number=number), key="k", headers={"traceparent": broken, "tracestate": b"\xff"})
        await eventually(lambda: has(db, 0, 1, 2, 3), "all are applied")
