"""A consumer in a process of its own, to be killed: it takes some milliseconds for each event."""

from __future__ import annotations

import asyncio
import os
import signal

import asyncpg
from faststream.kafka import KafkaBroker

from replank.inbox import Delivery, Done, Inbox, Outcome
from tests.common.inbox.conftest import FAST
from tests.common.inbox.contracts import Paid


async def main() -> None:
    """Consume until told to end."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncpg.create_pool(os.environ["TEST_DSN"], min_size=1, max_size=10) as pool:
        broker = KafkaBroker(os.environ["TEST_KAFKA"], consumer_only=True, logger=None)
        inbox = Inbox(broker, pool, consumer=os.environ["TEST_CONSUMER"], settings=FAST)

        @inbox.topic(os.environ["TEST_TOPIC"]).on(Paid)
        async def keep(delivery: Delivery[Paid]) -> Outcome:
            await delivery.conn.execute(
                "insert into effect (number, key) values ($1, $2)", delivery.event.number, delivery.key
            )
            await delivery.conn.execute("select pg_sleep(0.005)")
            return Done()

        async with inbox:
            await inbox.started()
            print("consuming")
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
