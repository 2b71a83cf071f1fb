"""How fast the inbox applies events once: with a batch handler, and with one for a single event."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import asyncpg
from aiokafka import AIOKafkaProducer
from uuid_utils.compat import uuid7

from bench import kafka
from bench.outbox import applier
from bench.outbox.measure import Environment
from bench.outbox.workload import CONNECTIONS, EVENT_TYPE, ROWS, SOURCE, OrderPlaced, Transactions
from bench.procs import Child, module, running
from bench.runs import Void

_WATCH_S = 0.05
_TIMEOUT_S = 90.0


async def apply(environment: Environment, *, batch: bool) -> float:
    """Events a second, between the first and the last look at which committed effects had grown."""
    events = environment.inbox_batch if batch else environment.inbox_single
    async with environment.server.database() as dsn, kafka.topic(environment.kafka) as topic:
        observer = await asyncpg.connect(dsn)
        try:
            await applier.prepare(observer)
            await _publish(environment.kafka, topic, events)
            command = module(
                "bench.outbox.applier",
                *("--dsn", dsn, "--kafka", environment.kafka, "--topic", topic, *(("--batch",) if batch else ())),
            )
            async with running(command) as consumer:
                rate = await _watch(observer, consumer, events)
            rows: int = await observer.fetchval("select count(*) from effect")
            different: int = await observer.fetchval("select count(distinct number) from effect")
            if rows != events or different != events:
                raise Void(f"{events} events had {rows} effects, of {different} different events")
            return rate
        finally:
            await observer.close()


async def _watch(observer: asyncpg.Connection, consumer: Child, events: int) -> float:
    """Follow the effects until there is one for every event."""
    deadline = time.monotonic() + _TIMEOUT_S
    first_applied, first_at = 0, 0.0
    while True:
        await consumer.check()
        applied: int = await observer.fetchval("select count(*) from effect")
        now = time.monotonic()
        if applied and not first_applied:
            first_applied, first_at = applied, now
        if applied >= events:
            break
        if now > deadline:
            raise Void(f"only {applied} of {events} events were applied after {_TIMEOUT_S:g} s")
        await asyncio.sleep(_WATCH_S)
    if first_applied >= events:
        raise Void(f"{events} events were applied within one look: too few to measure a rate")
    return (events - first_applied) / (now - first_at)


async def _publish(bootstrap: str, topic: str, events: int) -> None:
    """Fill the topic with CloudEvents, as the relay writes them."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5, max_batch_size=1 << 18)
    await producer.start()
    try:
        for connection in range(CONNECTIONS):
            sent = []
            for _, rows in Transactions(connection=connection, sampled=0.0).between(0, events // ROWS):
                for row in rows:
                    headers = {
                        "ce_specversion": "1.0",
                        "ce_id": str(uuid7()),
                        "ce_type": EVENT_TYPE,
                        "ce_source": SOURCE,
                        "ce_time": datetime.now(UTC).isoformat(),
                        "content-type": "application/json",
                        "traceparent": row.traceparent,
                    }
                    record = await producer.send(
                        topic,
                        OrderPlaced.of(row).to_value(),
                        key=row.key.encode(),
                        headers=[(name, value.encode()) for name, value in headers.items()],
                    )
                    sent.append(record)
            await asyncio.gather(*sent)
    finally:
        await producer.stop()
