from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from replank import flags, outbox
from replank.contracts.flags import FlagChanged
from replank.flags import Flag
from replank.testing.plugin import TopicFactory

Publish = Callable[..., Awaitable[None]]


def a_flag(name: str, value: object = True, *, version: int = 1, **changes: object) -> Flag:
    """A flag as the authority would tell of it, any of its fields overridden."""
    fields: dict[str, object] = {
        "name": name,
        "value": value,
        "enabled": True,
        "rollout": 100.0,
        "version": version,
        "deleted": False,
        "updated_by": "user:ada",
        "reason": "",
        "updated_at": datetime.now(UTC),
    }
    return Flag(**(fields | changes))  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def database(pool: asyncpg.Pool) -> asyncpg.Pool:
    """A service's own database, with flag tables and an outbox."""
    async with pool.acquire() as conn:
        await outbox.install(conn)
        await flags.install(conn)
    return pool


@pytest_asyncio.fixture
async def flag_topic(topic_factory: TopicFactory) -> str:
    return await topic_factory(partitions=1, config={"cleanup.policy": "compact"})


@pytest_asyncio.fixture
async def publish(kafka: str, flag_topic: str) -> AsyncIterator[Publish]:
    """Put records on the test's topic: flags as the relay sends them, or any bytes."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()

    async def send(*records: Flag | bytes | None, type: str = FlagChanged.event_type) -> None:
        for record in records:
            value = record.changed().to_value() if isinstance(record, Flag) else record
            key = record.name if isinstance(record, Flag) else "other"
            await producer.send_and_wait(flag_topic, value, key=key.encode(), headers=[("ce_type", type.encode())])

    yield send
    await producer.stop()


@pytest.fixture(autouse=True)
def _openfeature_as_new() -> object:
    """OpenFeature keeps providers and handlers of the whole process."""
    from openfeature import api  # noqa: PLC0415

    yield
    api.shutdown()
