"""faststream-outbox: a FastStream broker on a Postgres table, its rows relayed to Kafka by a stacked publisher.

Configured as `docs/reference/benchmarks.md` says: the fastest of those tried, which is one queue and many workers. With
more than one worker it does not promise the order of a key; one queue with one worker for each slice of the keys would,
at about two thirds of the speed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
from faststream.kafka import KafkaBroker, KafkaResponse
from faststream_outbox import OutboxBroker, make_outbox_table
from faststream_outbox.autovacuum import outbox_autovacuum_ddl
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import create_async_engine
from uuid_utils.compat import uuid7

from bench.outbox.subjects import Append, Target
from bench.outbox.workload import EVENT_TYPE, SOURCE, OrderPlaced, Row
from bench.procs import Command, module

_WORKERS: Final = 32
_FETCH: Final = 1_000
_FLUSH: Final = 100


def subject(name: str) -> FaststreamOutbox:
    return FaststreamOutbox(name)


class FaststreamOutbox:
    """Claims rows by an update, publishes them one by one, and deletes them."""

    ordered = False
    traces = False
    event_tables = ("public", "outbox")

    def __init__(self, name: str) -> None:
        self.name = name

    async def prepare(self, target: Target) -> None:
        metadata = MetaData()
        make_outbox_table(metadata)
        engine = create_async_engine(_url(target.dsn))
        try:
            async with engine.begin() as connection:
                await connection.run_sync(metadata.create_all)
                await connection.execute(text(outbox_autovacuum_ddl()))
        finally:
            await engine.dispose()

    def append(self, target: Target) -> Append:
        async def append(connection: asyncpg.Connection, rows: Sequence[Row]) -> None:
            await connection.execute(
                _INSERT,
                target.topic,
                [OrderPlaced.of(row).to_value() for row in rows],
                [_headers(row) for row in rows],
            )

        return append

    def relay(self, target: Target) -> Command:
        return module(__name__, "--dsn", target.dsn, "--kafka", target.kafka, "--topic", target.topic)


def _headers(row: Row) -> str:
    return json.dumps(
        {
            "ce_id": str(uuid7()),
            "ce_type": EVENT_TYPE,
            "ce_source": SOURCE,
            "traceparent": row.traceparent,
            "key": row.key,
            "content-type": "application/octet-stream",
        }
    )


def _url(dsn: str) -> str:
    return dsn.replace("postgresql://", "postgresql+asyncpg://", 1)


async def _relay(target: Target) -> None:
    # The subscriber holds a connection to fetch with and one for each of its workers.
    engine = create_async_engine(_url(target.dsn), pool_size=1 + _WORKERS)
    outbox = OutboxBroker(engine, outbox_table=make_outbox_table(MetaData()), apply_types=False, logger=None)
    kafka = KafkaBroker(target.kafka, acks="all", enable_idempotence=True, logger=None)
    publisher = kafka.publisher(target.topic)

    async def relay(message: Any) -> KafkaResponse:
        headers = dict(message.headers)
        key = headers.pop("key").encode()
        return KafkaResponse(message.body, key=key, headers=headers)

    async def undecoded(message: Any) -> Any:
        return message

    subscriber = outbox.subscriber(
        target.topic,
        max_workers=_WORKERS,
        fetch_batch_size=_FETCH,
        terminal_flush_batch_size=_FLUSH,
        # Notifications wake it; these are for what it does without one.
        min_fetch_interval=0.01,
        max_fetch_interval=1.0,
        decoder=undecoded,
    )
    publisher(subscriber(relay))

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await kafka.connect()
    await outbox.start()
    print("ready")
    await stop.wait()
    await outbox.stop()
    await kafka.stop()
    await engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--topic", required=True)
    arguments = parser.parse_args()
    asyncio.run(_relay(Target(dsn=arguments.dsn, kafka=arguments.kafka, topic=arguments.topic)))


# As the library's own batch insert does: one notification, sent when the transaction commits.
_INSERT = """
with events as (
    insert into outbox (queue, payload, headers)
    select $1, payload, headers from unnest($2::bytea[], $3::jsonb[]) as row (payload, headers)
)
select pg_notify('outbox_outbox', $1)
"""


if __name__ == "__main__":
    main()
