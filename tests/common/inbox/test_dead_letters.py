"""What cannot be applied is put away whole, holds back what depends on it, and can be redriven or given up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from replank.errors import ReplankError
from replank.inbox import Batch, Dead, Delivery, DlqLimit, Done, Inbox, Outcome, Retry, dead_letters
from replank.inbox.dead_letters import NoSuchDeadLetter, Selection
from replank.testing import eventually
from tests.common.inbox.conftest import MakeInbox, Sender, running
from tests.common.inbox.contracts import Paid
from tests.common.inbox.effects import has, letters, numbers, row, rows, write


class Doctor:
    """A handler that rejects some numbers until it is healed."""

    def __init__(self, *sick: int) -> None:
        self.sick = set(sick)

    async def __call__(self, delivery: Delivery[Paid]) -> Outcome:
        await write(delivery)
        return Dead("sick") if delivery.event.number in self.sick else Done()


def subscribe(inbox: Inbox, topic: str, *sick: int, ordered: bool = True, limit: DlqLimit | None = None) -> Doctor:
    """Subscribe with a `Doctor`."""
    doctor = Doctor(*sick)

    @inbox.topic(topic, ordered=ordered, limit=limit).on(Paid)
    async def treat(delivery: Delivery[Paid]) -> Outcome:
        return await doctor(delivery)

    return doctor


async def test_a_dead_letter_is_a_row_and_a_copy_for_the_topic_in_one_transaction(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(consumer="archiver")
    subscribe(inbox, send.topic, 1)
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    async with running(inbox):
        event_id = await send.event(
            Paid(number=1), key="k", time="2026-11-20T10:00:00Z", headers={"traceparent": trace, "x-tenant": b"acme"}
        )
        await eventually(lambda: letters(db), "it is a dead letter")
    letter = await db.fetchrow("select *, xmin::text as tx from replank_inbox.dead_letter")
    assert letter is not None
    assert (letter["consumer"], letter["event_id"], letter["topic"], letter["offset"]) == (
        "archiver",
        event_id,
        send.topic,
        0,
    )
    assert (letter["key"], letter["type"], letter["source"]) == (b"k", Paid.event_type, "test")
    assert (letter["reason"], letter["detail"], letter["attempts"]) == ("rejected", "sick", 1)
    assert letter["value"] == Paid(number=1).to_value()
    assert letter["traceparent"] == trace.decode()
    copy = await db.fetchrow("select *, headers::text as told, xmin::text as tx from replank_outbox.event")
    assert copy is not None
    assert (copy["topic"], copy["key"], copy["event_id"]) == (f"{send.topic}.dlq", "k", event_id)
    assert (copy["type"], copy["source"], copy["value"]) == (Paid.event_type, "test", letter["value"])
    assert copy["traceparent"] == trace.decode()
    for told in (
        '"replank-dlq-reason": "rejected"',
        '"replank-dlq-consumer": "archiver"',
        f'"replank-dlq-original-topic": "{send.topic}"',
        '"replank-dlq-original-offset": "0"',
        '"replank-dlq-original-time": "2026-11-20T10:00:00Z"',
        '"x-tenant": "acme"',
    ):
        assert told in copy["told"]
    assert letter["tx"] == copy["tx"]
    assert await numbers(db) == []


async def test_without_a_dead_letter_topic_no_outbox_is_needed(
    pool: asyncpg.Pool, db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    await db.execute("drop schema replank_outbox cascade")
    inbox = make_inbox(dead_letter_topic=False)
    subscribe(inbox, send.topic, 1)
    async with running(inbox):
        await send.paid(1)
        await eventually(lambda: letters(db), "it is a dead letter")


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_later_events_of_a_dead_key_follow_it_and_other_keys_do_not(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, batch: bool
) -> None:
    await send.paid(1, 2, 3, key="sick", partition=0)
    await send.paid(10, 11, key="well", partition=0)
    await send.paid(4, key="sick", partition=0)
    await send.paid(12, key="well", partition=0)
    inbox = make_inbox()

    async def treat(given: Delivery[Paid] | Batch[Paid]) -> Outcome:
        for delivery in given if isinstance(given, Batch) else [given]:
            if delivery.event.number == 2:
                return Dead("sick")
            await write(delivery)
        return Done()

    if batch:
        inbox.topic(send.topic, batch=True).on(Paid)(treat)
    else:
        inbox.topic(send.topic).on(Paid)(treat)

    async with running(inbox):
        await eventually(lambda: _sorted(db, 1, 10, 11, 12), "the well ones are applied")
        await eventually(
            lambda: _letters_are(db, ("rejected", "dead"), *[("key_parked", "dead")] * 2), "the others followed"
        )
    values = await db.fetch("select value from replank_inbox.dead_letter order by seq")
    assert [Paid.from_value(row["value"]).number for row in values] == [2, 3, 4]
    assert await rows(db, "select topic, key from replank_inbox.parked_key") == [(send.topic, b"sick")]


async def test_an_unordered_subscriber_parks_nothing(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    inbox = make_inbox()
    subscribe(inbox, send.topic, 2, ordered=False)
    async with running(inbox):
        await send.paid(1, 2, 3, key="k")
        await eventually(lambda: has(db, 1, 3), "the later one is applied")
    assert await db.fetchval("select count(*) from replank_inbox.parked_key") == 0


async def test_a_dead_letter_that_is_redelivered_is_not_buried_twice(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox()
    subscribe(inbox, send.topic, 1)
    async with running(inbox):
        event_id = await send.event(Paid(number=1), partition=0)
        await send.event(Paid(number=1), event_id=event_id, partition=0)
        await send.paid(2, partition=0)
        await eventually(lambda: has(db, 2), "the one behind it is applied")
    assert len(await letters(db)) == 1
    assert await db.fetchval("select count(*) from replank_outbox.event") == 1


async def test_records_that_cannot_be_read_are_kept_raw(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    inbox = make_inbox()
    subscribe(inbox, send.topic, limit=DlqLimit(max_run=100))
    ce = {"ce_id": b"1", "ce_type": Paid.event_type.encode(), "ce_source": b"test"}
    odd = b"\xff\x00\xfe"
    async with running(inbox):
        await send.raw(b"no headers at all", key="a")
        await send.raw(b"{}", key="b", headers={"ce_id": b"1"})
        await send.raw(odd, key=odd, headers={"x-odd": odd, "x-empty": b""})
        await send.raw(b"{not json", key="c", headers=ce | {"ce_id": b"2"})
        await send.raw(b'{"number": "seven"}', key="d", headers=ce | {"ce_id": b"3"})
        await send.raw(None, key="e", headers=ce | {"ce_id": b"4"})
        await send.paid(5, key="f")
        await eventually(lambda: has(db, 5), "a good one is applied all the same")
        await eventually(lambda: _count_letters(db, 6), "the others are dead letters")
    by_key = {row["key"]: row for row in await db.fetch("select * from replank_inbox.dead_letter")}
    assert {key: row["reason"] for key, row in by_key.items()} == {
        b"a": "not_a_cloudevent",
        b"b": "not_a_cloudevent",
        odd: "not_a_cloudevent",
        b"c": "invalid_event",
        b"d": "invalid_event",
        b"e": "invalid_event",
    }
    assert by_key[b"a"]["value"] == b"no headers at all"
    assert by_key[b"b"]["detail"] == "the record has no ce_type header"
    assert by_key[odd]["value"] == odd
    async with db.acquire() as conn:
        (found,) = await dead_letters.search(conn, selection=Selection(seqs=[by_key[odd]["seq"]]))
    assert found.headers == (("x-odd", odd), ("x-empty", b""))
    assert "seven" not in by_key[b"d"]["detail"]


async def test_the_copy_of_an_oversized_record_goes_without_its_value(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox()
    subscribe(inbox, send.topic)
    big = b"x" * 1_000_000
    async with running(inbox):
        await send.raw(big, key="k")
        await eventually(lambda: letters(db), "it is a dead letter")
    assert await db.fetchval("select value = $1 from replank_inbox.dead_letter", big)
    size, headers = await row(db, "select octet_length(value), headers::text from replank_outbox.event")
    assert size == 0
    assert '"replank-dlq-value-omitted": "1000000"' in headers


async def test_a_subscription_stops_at_its_limit_and_loses_nothing(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = make_inbox(consumer=f"c-{send.topic}")
    topic = inbox.topic(send.topic, limit=DlqLimit(max_run=2))
    broken = asyncio.Event()
    broken.set()

    @topic.on(Paid)
    async def treat(delivery: Delivery[Paid]) -> Outcome:
        return Dead("bad deploy") if broken.is_set() else await write(delivery)

    async with running(inbox):
        await send.paid(*range(10), partition=0)
        await eventually(lambda: not inbox.healthy, "it stops")
        await eventually(lambda: _count_letters(db, 2), "those within the limit are dead letters")
        (finding,) = inbox.findings()
        assert "3 events in a row" in finding
        assert "resume()" in caplog.text
        await send.paid(10, partition=1)
        broken.clear()
        await topic.resume()
        await eventually(lambda: _count_effects(db, 9), "it goes on with the one that was too many")
        assert inbox.healthy
    assert await letters(db) == [("rejected", "dead")] * 2


async def test_a_restart_of_the_process_resumes_too(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    consumer = f"c-{send.topic}"
    broken = make_inbox(consumer=consumer)
    subscribe(broken, send.topic, *range(10), limit=DlqLimit(max_run=0))
    async with running(broken):
        await send.paid(*range(5), partition=0)
        await eventually(lambda: not broken.healthy, "it stops before the first")
    assert await letters(db) == []
    mended = make_inbox(consumer=consumer)
    subscribe(mended, send.topic)
    async with running(mended):
        await eventually(lambda: _sorted(db, *range(5)), "all are applied")


async def test_a_dry_run_says_what_a_redrive_would_do_and_changes_nothing(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(consumer="archiver")
    doctor = subscribe(inbox, send.topic, 1, 5)
    async with running(inbox):
        await send.paid(1, 2, key="a", partition=0)
        await send.paid(5, key="b", partition=0)
        await eventually(lambda: _count_letters(db, 3), "three dead letters")
        async with db.acquire() as conn:
            plan = await dead_letters.redrive(conn, consumer="archiver", selection=Selection(key="a"), dry_run=True)
            assert plan.dry_run
            assert plan.alive
            assert [found.reason for found in plan.events] == ["rejected", "key_parked"]
            assert set(plan.handlers) == {found.seq for found in plan.events}
            assert next(iter(plan.handlers.values())).endswith("treat")
            assert plan.keys_unparked == 1
            second = plan.events[1].seq
            partial = await dead_letters.redrive(
                conn, consumer="archiver", selection=Selection(seqs=[second]), dry_run=True
            )
            assert (partial.events, [found.seq for found in partial.blocked]) == ([], [second])
        doctor.sick.clear()
        assert [state for _, state in await letters(db)] == ["dead"] * 3
    async with db.acquire() as conn:
        plan = await dead_letters.redrive(conn, consumer="archiver", dry_run=True)
    assert not plan.alive
    assert await db.fetchval("select count(*) from replank_inbox.dead_letter_audit") == 0


async def test_a_redrive_applies_in_order_with_the_same_ids_and_unparks(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(consumer="archiver")
    doctor = subscribe(inbox, send.topic, 1)
    async with running(inbox):
        ids = await send.paid(1, 2, 3, key="a", partition=0)
        await eventually(lambda: _count_letters(db, 3), "three dead letters")
        doctor.sick.clear()
        async with db.acquire() as conn:
            await dead_letters.redrive(conn, consumer="archiver", reason="mended in 1.2.3")
        await eventually(lambda: has(db, 1, 2, 3), "all are applied, in order")
        await eventually(lambda: _states(db, "redriven", "redriven", "redriven"), "and written down")
        assert await db.fetchval("select count(*) from replank_inbox.parked_key") == 0
        ids += await send.paid(4, key="a", partition=0)
        await eventually(lambda: has(db, 1, 2, 3, 4), "the key flows again")
    assert [row["event_id"] for row in await db.fetch("select event_id from effect order by id")] == ids
    audit = await row(db, "select action, actor, reason, cardinality(seqs) from replank_inbox.dead_letter_audit")
    assert audit == ("redrive", "postgres", "mended in 1.2.3", 3)


async def test_a_redrive_that_fails_again_leaves_the_key_parked_and_those_behind_it_dead(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(consumer="archiver")
    subscribe(inbox, send.topic, 1)
    async with running(inbox):
        await send.paid(1, 2, key="a", partition=0)
        await eventually(lambda: _count_letters(db, 2), "two dead letters")
        async with db.acquire() as conn:
            await dead_letters.redrive(conn, consumer="archiver")
        await eventually(lambda: _attempts(db, 2), "it was tried")
    assert await letters(db) == [("rejected", "dead"), ("key_parked", "dead")]
    assert await numbers(db) == []
    assert await db.fetchval("select count(*) from replank_inbox.parked_key") == 1


async def test_a_redrive_waits_for_what_is_transient(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    inbox = make_inbox(consumer="archiver")

    @inbox.topic(send.topic).on(Paid)
    async def treat(delivery: Delivery[Paid]) -> Outcome:
        await write(delivery)
        match delivery.attempt:
            case 1:
                return Dead("sick")
            case 2:
                return Retry()
        return Done()

    async with running(inbox):
        await send.paid(1, key="a")
        await eventually(lambda: _count_letters(db, 1), "a dead letter")
        async with db.acquire() as conn:
            await dead_letters.redrive(conn, consumer="archiver")
        await eventually(lambda: has(db, 1), "applied at the third attempt")
    assert await db.fetchval("select attempt from effect") == 3


async def test_redrives_race_with_new_events_of_the_key_without_losing_its_order(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    """New events arrive all the while; some see the key parked, some do not, and none overtakes another."""
    inbox = make_inbox(consumer="archiver", redrive_interval=timedelta(milliseconds=5))
    doctor = subscribe(inbox, send.topic, 0)
    async with running(inbox):
        sending = asyncio.create_task(send.paid(*range(300), key="a", partition=0))
        await eventually(lambda: letters(db), "the first one dies")
        doctor.sick.clear()

        async def redriven_to_the_end() -> bool:
            async with db.acquire() as conn:
                await dead_letters.redrive(conn, consumer="archiver")
            return sending.done() and len(await numbers(db)) == 300

        await eventually(redriven_to_the_end, "all are applied", within=30, interval=0.005)
    assert await numbers(db) == list(range(300))
    assert await db.fetchval("select count(*) from replank_inbox.parked_key") == 0


async def test_discarding_needs_a_reason_is_audited_and_frees_the_key(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(consumer="archiver")
    subscribe(inbox, send.topic, 1)
    async with running(inbox):
        await send.paid(1, 2, key="a", partition=0)
        await eventually(lambda: _count_letters(db, 2), "two dead letters")
        async with db.acquire() as conn:
            with pytest.raises(ReplankError, match="without a reason"):
                await dead_letters.discard(conn, consumer="archiver", selection=Selection(), reason=" ")
            first, second = await dead_letters.search(conn, consumer="archiver")
            await dead_letters.discard(
                conn, consumer="archiver", selection=Selection(seqs=[first.seq]), reason="a test order"
            )
            assert await db.fetchval("select count(*) from replank_inbox.parked_key") == 1
            plan = await dead_letters.redrive(conn, consumer="archiver", selection=Selection(seqs=[second.seq]))
            assert plan.blocked == []
        await eventually(lambda: has(db, 2), "what was behind it is applied")
        await eventually(lambda: _parked(db, 0), "the key is free")
    assert await letters(db) == [("rejected", "discarded"), ("key_parked", "redriven")]
    assert await rows(db, "select action, reason from replank_inbox.dead_letter_audit order by id") == [
        ("discard", "a test order"),
        ("redrive", ""),
    ]


async def test_letters_are_found_by_what_they_are(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    inbox = make_inbox(consumer="archiver")
    subscribe(inbox, send.topic, 1, 2, 3)
    started = datetime.now(UTC) - timedelta(minutes=1)
    async with running(inbox):
        await send.paid(1, 9, key="a", partition=0)
        await send.paid(2, key="b", partition=0)
        (last,) = await send.paid(3, key="c", partition=0)
        await eventually(lambda: _count_letters(db, 4), "four dead letters")

    async with db.acquire() as conn:

        async def keys(**what: Any) -> list[str]:
            return [found.key or "" for found in await dead_letters.search(conn, selection=Selection(**what))]

        assert sorted(await keys()) == ["a", "a", "b", "c"]
        assert await keys(key="b") == ["b"]
        assert await keys(event_ids=[last]) == ["c"]
        assert await keys(reason="key_parked") == ["a"]
        assert await keys(topic="another") == []
        assert await keys(type=Paid.event_type, since=started, key="c") == ["c"]
        assert await keys(until=started) == []
        (one,) = await dead_letters.search(conn, consumer="archiver", limit=1)
        assert (one.value, one.stack) == (None, None)
        assert (await dead_letters.show(conn, one.seq)).value is not None
        assert len(await dead_letters.search(conn, consumer="archiver", after=one.seq)) == 3
        assert await dead_letters.search(conn, consumer="nobody") == []
        with pytest.raises(NoSuchDeadLetter):
            await dead_letters.show(conn, 10**9)


async def _sorted(db: asyncpg.Pool, *wanted: int) -> bool:
    return sorted(await numbers(db)) == list(wanted)


async def _count_effects(db: asyncpg.Pool, wanted: int) -> bool:
    return len(await numbers(db)) == wanted


async def _letters_are(db: asyncpg.Pool, *wanted: tuple[str, str]) -> bool:
    return await letters(db) == list(wanted)


async def _states(db: asyncpg.Pool, *wanted: str) -> bool:
    return [state for _, state in await letters(db)] == list(wanted)


async def _count_letters(db: asyncpg.Pool, wanted: int) -> bool:
    return len(await letters(db)) == wanted


async def _attempts(db: asyncpg.Pool, wanted: int) -> bool:
    query = "select attempts, state from replank_inbox.dead_letter order by seq limit 1"
    return await row(db, query) == (wanted, "dead")


async def _parked(db: asyncpg.Pool, wanted: int) -> bool:
    return await row(db, "select count(*) from replank_inbox.parked_key") == (wanted,)
