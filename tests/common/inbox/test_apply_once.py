"""The effect of an event happens once, whatever is delivered how often, and in the order of its key."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable
from functools import partial
from uuid import UUID, uuid4

import asyncpg

from replank import outbox
from replank.inbox import Batch, Delivery, Done, Inbox, Outcome, Retry
from replank.testing import eventually
from replank.testing.processes import Process
from tests.common.inbox.conftest import Effects, MakeInbox, Sender, running
from tests.common.inbox.contracts import Archived, Other, Paid
from tests.common.inbox.effects import rows, write


async def test_an_event_is_applied_with_its_metadata(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    inbox = make_inbox(consumer="archiver")
    seen = []

    @inbox.topic(send.topic).on(Paid)
    async def keep(delivery: Delivery[Paid]) -> Outcome:
        seen.append(delivery)
        return await write(delivery)

    async with running(inbox):
        event_id = await send.event(Paid(number=7), key="k", headers={"ce_subject": b"invoice 7"})
        await eventually(effects, "the effect is there")
    (delivery,) = seen
    assert (delivery.event_id, delivery.key, delivery.source, delivery.attempt) == (event_id, "k", "test", 1)
    assert (delivery.topic, delivery.offset, delivery.subject) == (send.topic, 0, "invoice 7")
    assert delivery.headers["content-type"] == b"application/json"
    assert await db.fetchval("select array_agg(event_id) from replank_inbox.applied") == [event_id]


async def test_a_redelivered_event_is_dropped(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    inbox = make_inbox()
    inbox.topic(send.topic).on(Paid)(write)
    async with running(inbox):
        event_id = await send.event(Paid(number=1), key="k")
        for _ in range(5):
            await send.event(Paid(number=1), key="k", event_id=event_id)
        await send.paid(2, key="k")
        await eventually(lambda: _is(effects, [1, 2]), "both effects are there, and no third")


async def test_two_consumers_each_apply_the_event(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    first, second = make_inbox(), make_inbox()
    first.topic(send.topic).on(Paid)(write)
    second.topic(send.topic).on(Paid)(write)
    async with running(first), running(second):
        await send.paid(1)
        await eventually(lambda: _is(effects, [1, 1]), "one effect of each consumer")


async def test_what_the_handler_appends_commits_with_its_effect_or_not_at_all(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    inbox = make_inbox()

    @inbox.topic(send.topic).on(Paid)
    async def archive(delivery: Delivery[Paid]) -> Outcome:
        await write(delivery)
        await outbox.append(delivery.conn, Archived(number=delivery.event.number), key="a")
        return Done() if delivery.attempt == 2 else Retry()

    async with running(inbox):
        await send.paid(1)
        await eventually(effects, "the second attempt is committed")
    assert await rows(db, "select number, attempt from effect") == [(1, 2)]
    assert await db.fetchval("select count(*) from replank_outbox.event") == 1


async def test_types_without_a_handler_are_skipped_and_their_offsets_committed(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects, kafka: str
) -> None:
    inbox = make_inbox()
    inbox.topic(send.topic).on(Paid)(write)
    async with running(inbox):
        await send.event(Other(number=1), key="k")
        await send.paid(2, key="k")
        await send.event(Other(number=3), key="k")
        await eventually(lambda: _is(effects, [2]), "the handled one is applied")
        await eventually(lambda: _all_committed(inbox), "all three offsets are committed")
    assert await db.fetchval("select count(*) from replank_inbox.applied") == 1


async def _all_committed(inbox: Inbox) -> bool:
    (subscription,) = inbox._subscriptions.values()
    consumer = subscription._reader()
    ends = await consumer.end_offsets(consumer.assignment())
    return all([(await consumer.committed(tp) or 0) == end for tp, end in ends.items()])


async def test_events_of_one_key_are_applied_in_order_and_keys_side_by_side(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    inbox = make_inbox()
    together: set[str | None] = set()
    most = 0

    @inbox.topic(send.topic).on(Paid)
    async def slow(delivery: Delivery[Paid]) -> Outcome:
        nonlocal most
        together.add(delivery.key)
        most = max(most, len(together))
        await delivery.conn.execute("select pg_sleep($1)", random.random() / 100)
        together.discard(delivery.key)
        return await write(delivery)

    async with running(inbox):
        await asyncio.gather(*(send.paid(*range(20), key=f"k{key}") for key in range(10)))
        await eventually(lambda: _count(effects, 200), "all are applied")
    numbers = defaultdict(list)
    for key, number in await db.fetch("select key, number from effect order by id"):
        numbers[key].append(number)
    assert numbers == {f"k{key}": list(range(20)) for key in range(10)}
    assert most > 1


async def test_a_batch_is_one_transaction_without_the_duplicates_in_it(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    ids = [await send.event(Paid(number=number), partition=0) for number in range(50)]
    for number in (3, 3, 7):
        await send.event(Paid(number=number), event_id=ids[number], partition=0)
    inbox = make_inbox()
    sizes = []

    @inbox.topic(send.topic, batch=True).on(Paid)
    async def many(batch: Batch[Paid]) -> Outcome:
        sizes.append(len(batch))
        await batch.conn.execute(
            "insert into effect (number) select unnest($1::integer[])", [event.number for event in batch.events]
        )
        return Done()

    async with running(inbox):
        await eventually(lambda: _is(effects, list(range(50))), "each of them once, in order")
    assert max(sizes) > 1


async def test_a_batch_handler_takes_several_types_in_their_order(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    for number in range(0, 20, 2):
        await send.event(Paid(number=number), partition=0)
        await send.event(Other(number=number + 1), partition=0)
    inbox = make_inbox()
    calls = []

    @inbox.topic(send.topic, batch=True).on(Paid, Other)
    async def many(batch: Batch[Paid | Other]) -> Outcome:
        calls.append([event.number for event in batch.events])
        return Done()

    async with running(inbox):
        await eventually(lambda: sum(map(len, calls)) == 20, "all are handled")
    assert [number for call in calls for number in call] == list(range(20))
    assert len(calls) < 20


async def test_one_poisoned_event_does_not_cost_a_batch_its_others(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    await send.paid(*range(20), partition=0)
    inbox = make_inbox(attempts=2)

    @inbox.topic(send.topic, batch=True).on(Paid)
    async def many(batch: Batch[Paid]) -> Outcome:
        if any(event.number == 13 for event in batch.events):
            raise ValueError("no thirteen")
        await batch.conn.executemany("insert into effect (number) values ($1)", [(e.number,) for e in batch.events])
        return Done()

    async with running(inbox):
        await eventually(lambda: _is(effects, [n for n in range(20) if n != 13]), "all but one are applied, in order")
    assert await rows(db, "select reason, attempts from replank_inbox.dead_letter") == [("handler_error", 2)]


async def test_ids_that_are_no_uuid7_are_known_again_by_source_id_and_time(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    inbox = make_inbox()
    inbox.topic(send.topic).on(Paid)(write)
    foreign, time = str(uuid4()), "2026-11-20T10:00:00.123Z"
    async with running(inbox):
        for _ in range(2):
            await send.event(Paid(number=1), event_id="order-1", time=time, partition=0)
            await send.event(Paid(number=2), event_id=foreign, time=time, partition=0)
        await send.event(Paid(number=3), event_id="order-1", source="somebody else", time=time, partition=0)
        await send.paid(4, partition=0)
        await eventually(lambda: _sorted_is(effects, [1, 2, 3, 4]), "one effect for each source and id")
    ids = await db.fetchval("select array_agg(event_id) from replank_inbox.applied")
    assert {UUID(int=i.int).version for i in ids} == {7}


async def test_a_consumer_that_is_killed_again_and_again_applies_everything_once(
    db: asyncpg.Pool, postgres_dsn: str, send: Sender, kafka: str, effects: Effects
) -> None:
    numbers = list(range(600))
    sending = asyncio.create_task(_gather(*(send.paid(*numbers[part::10], key=f"k{part}") for part in range(10))))
    env = {"TEST_DSN": postgres_dsn, "TEST_KAFKA": kafka, "TEST_TOPIC": send.topic, "TEST_CONSUMER": f"c-{send.topic}"}
    for least in (60, 180, 360):
        async with Process("tests.common.inbox.slow_consumer", env=env) as process:
            await process.line_with("consuming", within=30)
            await eventually(partial(_at_least, effects, least), "it gets somewhere", within=30)
            process.kill()
    async with Process("tests.common.inbox.slow_consumer", env=env) as process:
        await process.line_with("consuming", within=30)
        await eventually(lambda: _at_least(effects, len(numbers)), "it gets to the end", within=60)
        process.terminate()
        assert await process.exit_code() == 0
    await sending
    assert sorted(await effects()) == numbers
    per_key = defaultdict(list)
    for key, number in await db.fetch("select key, number from effect order by id"):
        per_key[key].append(number)
    assert all(found == sorted(found) for found in per_key.values())


async def test_partitions_that_move_between_consumers_are_applied_once(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, effects: Effects
) -> None:
    async def consumer() -> Inbox:
        inbox = make_inbox(consumer=f"c-{send.topic}")
        inbox.topic(send.topic).on(Paid)(write)
        return inbox

    first = await consumer()
    async with running(first):
        sending = asyncio.create_task(_gather(*(send.paid(*range(k, 400, 8), key=f"k{k}") for k in range(8))))
        await eventually(lambda: _at_least(effects, 20), "the first one works")
        async with running(await consumer()):
            await eventually(lambda: _at_least(effects, 150), "both work")
            async with running(await consumer()):
                await eventually(lambda: _at_least(effects, 250), "three work")
        await sending
        await eventually(lambda: _at_least(effects, 400), "one is left and finishes", within=20)
    assert sorted(await effects()) == list(range(400))


async def _gather(*coroutines: Awaitable[object]) -> None:
    await asyncio.gather(*coroutines)


async def _is(effects: Effects, wanted: list[int]) -> bool:
    found = await effects()
    assert len(found) <= len(wanted), f"too many effects: {found}"
    return found == wanted


async def _sorted_is(effects: Effects, wanted: list[int]) -> bool:
    return sorted(await effects()) == wanted


async def _count(effects: Effects, wanted: int) -> bool:
    return len(await effects()) == wanted


async def _at_least(effects: Effects, wanted: int) -> bool:
    return len(await effects()) >= wanted
