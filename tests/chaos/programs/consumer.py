"""The consumer: each move has one effect and one follow-up event; each follow-up, taken in batches, one effect."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import Final

import asyncpg
from faststream.kafka import KafkaBroker

from replank import outbox
from replank.inbox import Batch, Delivery, Done, Inbox, InboxSettings, Outcome
from tests.chaos.programs.contracts import ECHOES, MOVES, Echoed, Moved
from tests.chaos.programs.lifetime import until_told

# Half a minute until Kafka gives the partitions of a dead consumer to its successor would only make the tests longer.
SETTINGS: Final = InboxSettings(session_timeout=timedelta(seconds=3))

_EFFECT: Final = "insert into effect (key, sequence, event_id) values ($1, $2, $3)"
_ECHOES: Final = """
    insert into echo (key, sequence, event_id)
    select key, sequence, event_id
      from unnest($1::text[], $2::bigint[], $3::uuid[]) with ordinality as given (key, sequence, event_id, place)
     order by place
"""


def subscribe(inbox: Inbox) -> None:
    """Register the handlers."""

    @inbox.topic(MOVES).on(Moved)
    async def move(delivery: Delivery[Moved]) -> Outcome:
        moved = delivery.event
        await delivery.conn.execute(_EFFECT, moved.key, moved.sequence, delivery.event_id)
        await outbox.append(delivery.conn, Echoed(key=moved.key, sequence=moved.sequence), key=moved.key)
        return Done()

    @inbox.topic(ECHOES, batch=True).on(Echoed)
    async def echo(batch: Batch[Echoed]) -> Outcome:
        await batch.conn.execute(
            _ECHOES,
            [delivery.event.key for delivery in batch],
            [delivery.event.sequence for delivery in batch],
            [delivery.event_id for delivery in batch],
        )
        return Done()


async def main() -> None:
    """Consume until told to end."""
    async with until_told() as stop:
        # Opens no connection yet: Postgres may be away at the moment. A lost answer is not waited for without end.
        pool = await asyncpg.create_pool(os.environ["CHAOS_DSN"], min_size=0, max_size=12, command_timeout=5)
        inbox = Inbox(
            KafkaBroker(os.environ["CHAOS_KAFKA"], consumer_only=True, logger=None),
            pool,
            consumer="chaos",
            settings=SETTINGS,
        )
        subscribe(inbox)
        async with inbox:
            await stop.wait()
        await asyncio.wait_for(pool.close(), timeout=5)


if __name__ == "__main__":
    asyncio.run(main())
