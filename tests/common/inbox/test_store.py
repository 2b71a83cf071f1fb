"""What the inbox remembers: installed, checked, kept in partitions, forgotten on time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from replank import inbox as package
from replank.inbox import Batch, Delivery, Done, InboxMismatch, Outcome, dead_letters, store
from replank.inbox.envelope import Envelope, envelope, identity, v7_shaped
from replank.testing import eventually
from tests.common.inbox.conftest import MakeInbox, Sender, running
from tests.common.inbox.contracts import Paid
from tests.common.inbox.effects import has, letters, write

DAY = timedelta(days=1)


def record(event_id: UUID, key: bytes | None = None) -> Envelope:
    """The envelope of an event of this id."""
    headers = (("ce_id", str(event_id).encode()), ("ce_type", b"a.v1"), ("ce_source", b"s"))
    return envelope(topic="t", partition=0, offset=0, timestamp=0, key=key, value=b"{}", headers=headers)


def at(moment: datetime) -> UUID:
    """A UUIDv7 of a moment."""
    return v7_shaped(int(moment.timestamp() * 1000), str(moment).encode())


async def partitions(pool: asyncpg.Pool) -> list[tuple[str, datetime | None]]:
    """Name and beginning of each partition."""
    return [
        tuple(row)
        for row in await pool.fetch(
            "select name, begins from replank_inbox.applied_partition order by begins nulls first"
        )
    ]


async def test_installing_is_idempotent_even_at_the_same_time(pool: asyncpg.Pool) -> None:
    async def install() -> int:
        async with pool.acquire() as conn:
            return await package.install(conn)

    assert set(await asyncio.gather(*(install() for _ in range(5)))) == {1}
    async with pool.acquire() as conn:
        assert [finding.code for finding in await package.verify(conn)] == ["no_outbox"]
        assert await package.verify(conn, dead_letter_topic=False) == []


async def test_verify_tells_what_is_wrong(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        assert await package.verify(conn) == []
        await conn.execute("create role replank_inbox_nobody")
        try:
            await conn.execute("grant usage on schema replank_inbox to replank_inbox_nobody")
            await conn.execute("grant select on all tables in schema replank_inbox to replank_inbox_nobody")
            await conn.execute("set role replank_inbox_nobody")
            assert [finding.code for finding in await package.verify(conn, dead_letter_topic=False)] == ["privileges"]
        finally:
            await conn.execute("reset role")
            await conn.execute("drop owned by replank_inbox_nobody; drop role replank_inbox_nobody")
        await conn.execute("insert into replank_inbox.version (version) values (99)")
        assert [finding.code for finding in await package.verify(conn)] == ["version"]
        with pytest.raises(InboxMismatch, match="version 99"):
            await package.install(conn)
        await conn.execute("drop schema replank_inbox cascade")
        (finding,) = await package.verify(conn)
        assert "no inbox" in finding.message


async def test_a_new_inbox_takes_events_of_any_age_and_any_future(db: asyncpg.Pool) -> None:
    now = datetime.now(UTC)
    async with db.acquire() as conn:
        for moment in (datetime(1999, 1, 1, tzinfo=UTC), now - 400 * DAY, now, now + 400 * DAY):
            assert await store.claim(conn, "c", record(at(moment))) == (True, False)
            assert await store.claim(conn, "c", record(at(moment))) == (False, False)


async def test_the_days_to_come_have_partitions_and_the_last_one_has_no_end(db: asyncpg.Pool) -> None:
    found = await partitions(db)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert found[0] == ("applied_first", None)
    assert [begins for _, begins in found[1:]] == [today + day * DAY for day in (1, 2, 3)]
    async with db.acquire() as conn:
        assert await store.maintain(conn, DAY, 3) == []
        created = await store.maintain(conn, DAY, 5)
    assert [change for change, _ in created] == ["created", "created"]
    assert len(await partitions(db)) == 6


async def test_maintenance_that_comes_late_keeps_every_row(db: asyncpg.Pool) -> None:
    """The open-ended partition holds rows: of days that should have had their own, and of a clock that runs ahead."""
    now = datetime.now(UTC)
    ids = [at(now + offset) for offset in (timedelta(0), 3.5 * DAY, 4.5 * DAY, 9 * DAY, 400 * DAY)]
    async with db.acquire() as conn:
        for event_id in ids:
            await store.claim(conn, "c", record(event_id))
        assert await store.maintain(conn, None, 10)
        for event_id in ids:
            assert await store.claim(conn, "c", record(event_id)) == (False, False)
    assert await db.fetchval("select count(*) from replank_inbox.applied") == len(ids)


async def test_what_is_beyond_retention_is_dropped_as_a_whole_and_known_to_be_forgotten(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        await conn.execute("drop table replank_inbox.applied_first")
        for days in (5, 4, 3, 2, 1, 0):
            day = datetime.now(UTC).date() - timedelta(days=days)
            await conn.execute(
                f"create table replank_inbox.applied_{day:%Y%m%d} partition of replank_inbox.applied for values "
                f"from (replank_inbox.uuid_at('{day} 00:00+00')) to (replank_inbox.uuid_at('{day + DAY} 00:00+00'))"
            )
        assert await store.maintain(conn, None, 3) == []
        dropped = await store.maintain(conn, 2 * DAY, 3)
        assert [change for change, _ in dropped] == ["dropped"] * 3
        oldest = await store.remembers_since(conn)
        assert oldest is not None
        assert 2 * DAY <= datetime.now(UTC) - oldest <= 3 * DAY
        with pytest.raises(store.BeyondRetention):
            await store.claim(conn, "c", record(at(oldest - timedelta(milliseconds=1))))
        assert await store.claim(conn, "c", record(at(oldest))) == (True, False)


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_an_event_beyond_retention_is_neither_applied_nor_dropped(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, batch: bool
) -> None:
    await db.execute("drop table replank_inbox.applied_first")
    today = datetime.now(UTC).date()
    await db.execute(
        f"create table replank_inbox.applied_{today:%Y%m%d} partition of replank_inbox.applied for values "
        f"from (replank_inbox.uuid_at('{today} 00:00+00')) to (replank_inbox.uuid_at('{today + DAY} 00:00+00'))"
    )
    inbox = make_inbox(consumer="archiver")

    async def keep(given: Delivery[Paid] | Batch[Paid]) -> Outcome:
        for delivery in given if isinstance(given, Batch) else [given]:
            await write(delivery)
        return Done()

    if batch:
        inbox.topic(send.topic, batch=True).on(Paid)(keep)
    else:
        inbox.topic(send.topic).on(Paid)(keep)

    old = at(datetime.now(UTC) - 2 * DAY)
    await send.event(Paid(number=1), key="a", event_id=old, partition=0)
    await send.event(Paid(number=1), key="a", event_id=old, partition=0)
    await send.paid(2, key="b", partition=0)
    async with running(inbox):
        await eventually(lambda: has(db, 2), "the new one is applied")
        await eventually(lambda: letters(db), "the old one is a dead letter")
        async with db.acquire() as conn:
            await dead_letters.redrive(conn, consumer="archiver", reason="checked: it is not there")
        await eventually(lambda: has(db, 2, 1), "somebody decided, and it is applied")
    assert await letters(db) == [("beyond_inbox_retention", "redriven")]


async def test_maintenance_does_not_wait_for_ever_for_a_lock(db: asyncpg.Pool) -> None:
    async with db.acquire() as holder, db.acquire() as conn, holder.transaction():
        await store.claim(holder, "c", record(uuid7()))
        with pytest.raises(asyncpg.LockNotAvailableError):
            await store.maintain(conn, None, 30)
    async with db.acquire() as conn:
        assert await store.maintain(conn, None, 30)


async def test_a_claim_reads_one_partition_by_its_index(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        await conn.execute("set enable_seqscan = off")
        plan = await conn.fetch(
            "explain select from replank_inbox.applied where consumer = 'c' and event_id = $1", uuid7()
        )
    text = "\n".join(line for (line,) in plan)
    assert text.count("Index Only Scan") == 1
    assert "Append" not in text


async def test_the_redriver_asks_an_index(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        await conn.execute("set enable_seqscan = off")
        plan = await conn.fetch("explain " + store._NEXT_REDRIVE, "c", ["t"])
    assert "dead_letter_redriving" in "\n".join(line for (line,) in plan)


async def test_two_transactions_decide_about_one_event_one_after_the_other(db: asyncpg.Pool) -> None:
    event = record(uuid7())
    async with db.acquire() as first, db.acquire() as second:
        transaction = first.transaction()
        await transaction.start()
        assert await store.claim(first, "c", event) == (True, False)
        waiting = asyncio.create_task(store.claim(second, "c", event))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        await transaction.rollback()
        assert await waiting == (True, False)


def test_a_uuid7_is_its_own_identity_and_other_ids_become_one() -> None:
    event_id = uuid7()
    assert identity(str(event_id).encode(), b"s", None, 0) == event_id
    time = b"2026-11-20T10:00:00+00:00"
    made = identity(b"order-1", b"s", time, 5)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert made.int >> 80 == 1_795_168_800_000
    assert made == identity(b"order-1", b"s", b"2026-11-20T11:00:00+01:00", 6)
    assert made == identity(b"order-1", b"s", b"2026-11-20T10:00:00", 6)
    others = [
        identity(b"order-2", b"s", time, 5),
        identity(b"order-1", b"t", time, 5),
        identity(b"order-1", b"s", b"no time", 5),
        identity(b"order-1", b"s", None, 6),
        identity(b"\xff\x00", b"s", None, 6),
    ]
    assert len({made, *others}) == 6


def test_headers_survive_storage() -> None:
    headers = (("a", b"text"), ("a", b"again"), ("b", b"\xff\xfe"), ("c", b"nul\0"), ("d", b""), ("é", "ü".encode()))
    assert store.decode_headers(store.encode_headers(headers)) == headers
