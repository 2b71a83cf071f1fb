"""A consumer's database, a sender of CloudEvents, and a way to run an inbox for as long as a test lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from faststream.kafka import KafkaBroker
from uuid_utils.compat import uuid7

from replank import inbox as inbox_package
from replank import outbox
from replank.events import Event
from replank.inbox import Inbox, InboxSettings
from replank.testing.servers import fresh_name
from tests.common.inbox.contracts import Paid

FAST = InboxSettings(
    backoff=timedelta(milliseconds=20),
    backoff_max=timedelta(milliseconds=200),
    redrive_interval=timedelta(milliseconds=50),
    commit_interval=timedelta(milliseconds=100),
    heartbeat=timedelta(milliseconds=300),
    stop_timeout=timedelta(seconds=5),
    session_timeout=timedelta(seconds=6),
)


@pytest_asyncio.fixture
async def db(pool: asyncpg.Pool) -> asyncpg.Pool:
    """A database with inbox, outbox and a table for effects."""
    async with pool.acquire() as conn:
        await inbox_package.install(conn)
        await outbox.install(conn)
        await conn.execute(
            "create table effect (id bigint generated always as identity, number integer not null, key text, "
            "event_id uuid, attempt integer)"
        )
    return pool


@dataclass
class Sender:
    """Sends CloudEvents, and what is none, to one topic."""

    producer: AIOKafkaProducer
    topic: str

    async def event(
        self,
        event: Event,
        *,
        key: str | None = None,
        event_id: UUID | str | None = None,
        partition: int | None = None,
        source: str = "test",
        time: str | None = None,
        headers: dict[str, bytes] | None = None,
    ) -> UUID | str:
        """Send one event; answers its id."""
        event_id = event_id or uuid7()
        attributes = {
            "ce_specversion": b"1.0",
            "ce_id": str(event_id).encode(),
            "ce_type": event.event_type.encode(),
            "ce_source": source.encode(),
            "ce_time": (time or datetime.now(UTC).isoformat()).encode(),
            "content-type": b"application/json",
            **(headers or {}),
        }
        await self.raw(event.to_value(), key=key, partition=partition, headers=attributes)
        return event_id

    async def raw(
        self,
        value: bytes | None,
        *,
        key: str | bytes | None = None,
        partition: int | None = None,
        headers: dict[str, bytes] | None = None,
    ) -> None:
        """Send any record."""
        await self.producer.send_and_wait(
            self.topic,
            value,
            key=key.encode() if isinstance(key, str) else key,
            partition=partition,
            headers=list((headers or {}).items()),
        )

    async def paid(self, *numbers: int, key: str | None = None, partition: int | None = None) -> list[UUID | str]:
        """Send `Paid` events of these numbers."""
        return [await self.event(Paid(number=number), key=key, partition=partition) for number in numbers]


@pytest_asyncio.fixture
async def send(kafka: str, topic: str) -> AsyncIterator[Sender]:
    """Sends to the test's topic."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=0)
    await producer.start()
    try:
        yield Sender(producer, topic)
    finally:
        await producer.stop()


class MakeInbox(Protocol):
    """``make_inbox(consumer="a", settings=FAST)``: an inbox on the test's database, not started."""

    def __call__(self, *, consumer: str | None = None, **settings: Any) -> Inbox: ...


@pytest.fixture
def make_inbox(db: asyncpg.Pool, kafka: str) -> MakeInbox:
    """Makes inboxes whose consumer has a name of its own unless it is given one."""

    def make(*, consumer: str | None = None, **settings: Any) -> Inbox:
        broker = KafkaBroker(kafka, consumer_only=True, logger=None)
        return Inbox(broker, db, consumer=consumer or fresh_name(), settings=FAST.model_copy(update=settings))

    return make


Effects = Callable[[], Awaitable[list[int]]]


@pytest.fixture
def effects(db: asyncpg.Pool) -> Effects:
    """``await effects()``: the numbers of all effects, in the order in which they were made."""

    async def read() -> list[int]:
        return [row["number"] for row in await db.fetch("select number from effect order by id")]

    return read


@asynccontextmanager
async def running(inbox: Inbox) -> AsyncIterator[Inbox]:
    """An inbox that has started for sure."""
    async with inbox:
        await inbox.started()
        yield inbox
