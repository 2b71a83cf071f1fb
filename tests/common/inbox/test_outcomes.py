"""What a handler answers or raises decides about its event, and about nothing else."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import asyncpg
import pytest

from replank.connection import is_lost
from replank.errors import DependencyUnavailable
from replank.inbox import Batch, Dead, Delivery, Done, Outcome, Retry, Transient
from replank.inbox.outcome import is_transient
from replank.testing import eventually
from tests.common.inbox.conftest import MakeInbox, Sender, running
from tests.common.inbox.contracts import Paid
from tests.common.inbox.effects import has, letters, numbers, row, write


async def test_retry_holds_its_key_back_and_lets_other_partitions_flow(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox()
    may_pass = asyncio.Event()

    @inbox.topic(send.topic).on(Paid)
    async def wait(delivery: Delivery[Paid]) -> Outcome:
        if delivery.event.number == 1 and not may_pass.is_set():
            return Retry(after=timedelta(milliseconds=20))
        return await write(delivery)

    async with running(inbox):
        await send.paid(1, 2, key="held", partition=0)
        await send.paid(*range(10, 40), key="free", partition=1)
        await eventually(lambda: has(db, *range(10, 40)), "the other partition flows")
        await eventually(lambda: any("waits" in finding for finding in inbox.findings()), "it says that it waits")
        assert inbox.healthy
        may_pass.set()
        await eventually(lambda: has(db, *range(10, 40), 1, 2), "the held ones follow, in order")
    assert await db.fetchval("select attempt from effect where number = 1") > 1
    assert await letters(db) == []


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.DeadlockDetectedError("deadlock"),
        asyncpg.LockNotAvailableError("locked"),
        ConnectionRefusedError("no"),
        TimeoutError(),
        DependencyUnavailable("s3", "the object store does not answer"),
        Transient("come back later"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_transient_errors_are_tried_beyond_the_attempts_of_others(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, error: Exception
) -> None:
    inbox = make_inbox(attempts=1)

    @inbox.topic(send.topic).on(Paid)
    async def fail(delivery: Delivery[Paid]) -> Outcome:
        await write(delivery)
        if delivery.attempt < 4:
            raise error
        return Done()

    async with running(inbox):
        await send.paid(1)
        await eventually(lambda: has(db, 1), "it succeeds in the end")
    assert await db.fetchval("select attempt from effect") == 4


async def test_transient_attempts_can_be_limited(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    inbox = make_inbox(transient_attempts=2)

    @inbox.topic(send.topic).on(Paid)
    async def fail(delivery: Delivery[Paid]) -> Outcome:
        raise Transient("never")

    async with running(inbox):
        await send.paid(1)
        await eventually(lambda: _letters_are(db, ("retries_exhausted", "dead")), "it gives up")


async def test_other_errors_are_tried_as_often_as_said_and_leave_no_effect(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(attempts=3)
    attempts = []

    @inbox.topic(send.topic).on(Paid)
    async def fail(delivery: Delivery[Paid]) -> Outcome:
        attempts.append(delivery.attempt)
        await write(delivery)
        raise ZeroDivisionError("a secret")

    async with running(inbox):
        await send.paid(1)
        await eventually(lambda: _letters_are(db, ("handler_error", "dead")), "it is a dead letter")
    assert attempts == [1, 2, 3]
    assert await numbers(db) == []
    detail, stack, attempted = await row(db, "select detail, stack, attempts from replank_inbox.dead_letter")
    assert detail == "ZeroDivisionError: a secret"
    assert "in fail" in stack
    assert attempted == 3


async def test_an_error_of_the_database_is_no_reason_to_lose_the_transaction_of_the_next_event(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(attempts=1)

    @inbox.topic(send.topic).on(Paid)
    async def fail(delivery: Delivery[Paid]) -> Outcome:
        if delivery.event.number == 1:
            await delivery.conn.execute("select 1 / 0")
        return await write(delivery)

    async with running(inbox):
        await send.paid(1, partition=0, key="a")
        await send.paid(2, partition=0, key="b")
        await eventually(lambda: has(db, 2), "the next one is applied")
        await eventually(lambda: _letters_are(db, ("handler_error", "dead")), "the failed one is a dead letter")


async def test_a_handler_that_returns_no_outcome_is_wrong_and_not_taken_for_done(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox()

    @inbox.topic(send.topic).on(Paid)
    async def forget(delivery: Delivery[Paid]) -> Outcome:
        await write(delivery)
        return None  # type: ignore[return-value]

    async with running(inbox):
        await send.paid(1)
        await eventually(lambda: _letters_are(db, ("handler_error", "dead")), "it is a dead letter")
    assert await numbers(db) == []
    assert "returned NoneType" in await db.fetchval("select detail from replank_inbox.dead_letter")


async def test_a_handler_beyond_its_timeout_is_cancelled_and_tried_again(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(handler_timeout=timedelta(milliseconds=100))

    @inbox.topic(send.topic).on(Paid)
    async def hang(delivery: Delivery[Paid]) -> Outcome:
        if delivery.attempt == 1:
            await asyncio.Event().wait()
        return await write(delivery)

    async with running(inbox):
        await send.paid(1)
        await eventually(lambda: has(db, 1), "the second attempt is applied")


async def test_a_batch_is_retried_whole(db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox) -> None:
    await send.paid(1, 2, 3, partition=0)
    inbox = make_inbox()

    @inbox.topic(send.topic, batch=True).on(Paid)
    async def many(batch: Batch[Paid]) -> Outcome:
        await batch.conn.executemany("insert into effect (number) values ($1)", [(e.number,) for e in batch.events])
        return Done() if batch.attempt == 2 else Retry()

    async with running(inbox):
        await eventually(lambda: has(db, 1, 2, 3), "each of them once")


async def test_errors_are_logged_without_their_text(
    db: asyncpg.Pool, send: Sender, make_inbox: MakeInbox, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = make_inbox()

    @inbox.topic(send.topic).on(Paid)
    async def fail(delivery: Delivery[Paid]) -> Outcome:
        if delivery.attempt == 1:
            raise ValueError(f"cannot read {delivery.event.text}")
        return Dead(f"also not {delivery.event.text}")

    with caplog.at_level(logging.INFO):
        async with running(inbox):
            await send.event(Paid(number=1, text="4111 1111 1111 1111"))
            await eventually(lambda: _letters_are(db, ("rejected", "dead")), "it is a dead letter")
    told = [str(record.__dict__) for record in caplog.records if record.name.startswith("replank")]
    assert any("ValueError" in line for line in told)
    assert not any("4111" in line for line in told)


async def test_a_lost_connection_is_transient_and_a_wrong_call_is_not(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        with pytest.raises(asyncpg.InterfaceError) as wrong:
            await conn.fetchval("select $1::integer")
        assert not is_transient(wrong.value, conn)
        await db.execute("select pg_terminate_backend($1)", conn.get_server_pid())
        with pytest.raises(
            (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
        ) as lost:
            await conn.execute("select 1")
        assert is_transient(lost.value, conn)
        # Sooner or later the pool takes back what broke, while it is still lent.
        await eventually(lambda: is_lost(conn), "the connection is lost")
        await db.release(conn)
        assert is_transient(lost.value, conn)
        assert is_transient(asyncpg.InterfaceError("connection has been released back to the pool"), conn)


async def _letters_are(db: asyncpg.Pool, *wanted: tuple[str, str]) -> bool:
    return await letters(db) == list(wanted)
