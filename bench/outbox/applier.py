"""A service with an inbox, as a process of its own: writes one row for every event, in the event's transaction."""

from __future__ import annotations

import argparse
import asyncio
import signal

import asyncpg
from faststream.kafka import KafkaBroker

from bench.outbox.workload import OrderPlaced, event_class
from replank import outbox
from replank.inbox import Batch, Delivery, Done, Inbox, InboxSettings, Outcome, install


async def prepare(connection: asyncpg.Connection) -> None:
    """What the service needs in its database: its own table, the inbox, and the outbox that dead letters go through."""
    await connection.execute("create table effect (number bigint not null)")
    await outbox.install(connection)
    await install(connection)


async def _apply(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = InboxSettings()
    async with asyncpg.create_pool(arguments.dsn, min_size=1, max_size=settings.concurrency + 2) as pool:
        broker = KafkaBroker(arguments.kafka, consumer_only=True, logger=None)
        inbox = Inbox(broker, pool, consumer="bench", settings=settings)
        event = event_class(arguments.topic)
        if arguments.batch:

            @inbox.topic(arguments.topic, batch=True).on(event)
            async def apply_many(batch: Batch[OrderPlaced]) -> Outcome:
                numbers = [event.number for event in batch.events]
                await batch.conn.execute("insert into effect select unnest($1::bigint[])", numbers)
                return Done()

        else:

            @inbox.topic(arguments.topic).on(event)
            async def apply_one(delivery: Delivery[OrderPlaced]) -> Outcome:
                await delivery.conn.execute("insert into effect values ($1)", delivery.event.number)
                return Done()

        async with inbox:
            await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--batch", action="store_true")
    asyncio.run(_apply(parser.parse_args()))


if __name__ == "__main__":
    main()
