"""A consumer tells which contracts it uses, from what it applied and nothing else."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from replank import outbox
from replank.contracts.declarations import EventContractDeclared, EventContractUsed
from replank.inbox import Batch, Dead, Delivery, Done, Outcome, dead_letters
from replank.inbox.usage import Usage
from replank.outbox.relay import Relay
from replank.testing import eventually
from replank.testing.services import appended, events_of
from tests.common.inbox.conftest import MakeInbox, Sender, running
from tests.common.inbox.contracts import Other, Paid
from tests.common.inbox.effects import has, letters, write

# Long enough that what is told is told because the consumer stops.
NEVER = timedelta(hours=1)
OFTEN = timedelta(milliseconds=20)


async def told(db: asyncpg.Pool) -> list[EventContractUsed]:
    async with db.acquire() as conn:
        return [event for _, event in await appended(conn) if isinstance(event, EventContractUsed)]


async def totals(db: asyncpg.Pool) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for used in await told(db):
        counted[used.contract] += used.events
    return dict(counted)


async def test_what_was_applied_is_told_when_the_consumer_stops(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(consumer="archiver", usage_interval=NEVER)
    topic = inbox.topic(send.topic)
    topic.on(Paid)(write)

    @topic.on(Other)
    async def refuse(_: Delivery[Other]) -> Outcome:
        return Dead("not today")

    before = datetime.now(UTC)
    async with running(inbox):
        event_id = await send.event(Paid(number=1), key="k")
        await send.event(Paid(number=1), key="k", event_id=event_id)
        await send.event(Other(number=1), key="other")
        await send.paid(2, 3, key="k")
        await eventually(lambda: has(db, 1, 2, 3), "all is applied")
        await eventually(lambda: letters(db), "the other is a dead letter")
        assert await told(db) == []
    (used,) = await told(db)
    assert (used.contract, used.consumer, used.events) == (Paid.event_type, "archiver", 3)
    assert before <= used.first_at <= used.last_at <= datetime.now(UTC)


async def test_it_is_told_regularly_and_every_event_once(
    db: asyncpg.Pool, postgres_dsn: str, kafka: str, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(usage_interval=OFTEN)
    inbox.topic(send.topic).on(Paid)(write)
    async with running(inbox):
        for number in range(1, 4):
            await send.paid(number, key="k")

            async def is_told(events: int = number) -> bool:
                return await totals(db) == {Paid.event_type: events}

            await eventually(is_told, f"{number} are told")
    assert await totals(db) == {Paid.event_type: 3}
    async with Relay(postgres_dsn, kafka):
        read = await events_of(kafka, EventContractUsed, lambda event: event.consumer == inbox.consumer, count=3)
    assert read == await told(db)


async def test_batches_and_redriven_dead_letters_count_too(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(usage_interval=NEVER)
    mended = False

    @inbox.topic(send.topic, batch=True).on(Paid)
    async def keep(batch: Batch[Paid]) -> Outcome:
        for delivery in batch:
            if delivery.event.number == 2 and not mended:
                return Dead("not yet")
            await write(delivery)
        return Done()

    async with running(inbox):
        await send.paid(1, key="a", partition=0)
        await send.paid(2, key="b", partition=0)
        await send.paid(3, key="c", partition=0)
        await eventually(lambda: has(db, 1, 3), "all but one are applied")
        mended = True
        async with db.acquire() as conn:
            await dead_letters.redrive(conn, consumer=inbox.consumer)
        await eventually(lambda: has(db, 1, 3, 2), "the dead letter is applied")
    assert await totals(db) == {Paid.event_type: 3}


async def test_nothing_is_told_where_there_is_no_traffic_or_nobody_asked(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    silent = make_inbox()
    silent.topic(send.topic).on(Paid)(write)
    async with running(silent):
        await send.paid(1)
        await eventually(lambda: has(db, 1), "it is applied")
    assert await told(db) == []
    usage = Usage("archiver")
    async with db.acquire() as conn:
        await usage.tell(conn)
        usage.count(Paid.event_type)
        await usage.tell(conn)
        await usage.tell(conn)
    assert await totals(db) == {Paid.event_type: 1}


async def test_using_what_is_told_about_contracts_is_not_told(db: asyncpg.Pool) -> None:
    usage = Usage("schema")
    for contract in (EventContractUsed, EventContractDeclared, Paid):
        usage.count(contract.event_type)
    async with db.acquire() as conn:
        await usage.tell(conn)
    assert await totals(db) == {Paid.event_type: 1}


async def test_what_could_not_be_told_is_told_later_with_what_came_since(db: asyncpg.Pool) -> None:
    usage = Usage("archiver")
    usage.count(Paid.event_type, 2)
    async with db.acquire() as conn:
        await conn.execute("drop schema replank_outbox cascade")
        with pytest.raises(outbox.OutboxNotInstalled):
            await usage.tell(conn)
        between = datetime.now(UTC)
        usage.count(Paid.event_type, 3)
        usage.count(Other.event_type)
        await outbox.install(conn)
        await usage.tell(conn)
    other, paid = sorted(await told(db), key=lambda used: used.contract)
    assert (paid.events, other.events) == (5, 1)
    assert paid.first_at < between <= paid.last_at
