"""The way back after a long time: the key-value store becomes what the tables are, beside writers of the tables."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from replank.migrate import authority
from replank.migrate.applier import Applier, ApplierSettings
from replank.migrate.backfill import Backfill, BackfillSettings
from replank.migrate.reverse_backfill import ReverseBackfill
from replank.outbox.relay import Relay
from replank.testing.wait import eventually
from tests.common.migrate.moving import Move, connected, differences, migration, order, put, put_before_capture

RECORDS = 600


@pytest_asyncio.fixture
async def move(postgres_server: str, kafka: str) -> AsyncIterator[Move]:
    """Moved and cut over, with one record that cannot be converted."""
    async with migration(postgres_server, kafka) as made:
        records: list[tuple[str, Any]] = [(f"order:{n:04}", order(n)) for n in range(RECORDS)]
        await put_before_capture(made, [*records, ("order:bad", {"clientId": 5}), ("session:1", {"user": 1})])
        await Backfill(mapping=made.mapping, source=made.source, target=made.target).run()
        async with connected(made.source) as source, connected(made.target) as target:
            await authority.hold(source, made.name, "source")
            await authority.open(target, made.name, "target")
            await authority.close(source, made.name, "source")
        yield made


def backfill_of(move: Move, **settings: Any) -> ReverseBackfill:
    fixed = BackfillSettings(**settings)
    return ReverseBackfill(mapping=move.mapping, source=move.source, target=move.target, settings=lambda: fixed)


async def test_the_store_becomes_what_the_tables_are(move: Move) -> None:
    async with connected(move.target) as conn:
        await conn.execute("update orders set note = 'changed' where id < '0050'")
        await conn.execute("insert into orders (id, client_id) values ('new', 'c')")
        await conn.execute("delete from order_items where order_id in ('0100', '0101')")
        await conn.execute("delete from orders where id in ('0100', '0101', '0102')")
    progress = await backfill_of(move).run()
    assert (progress.rows, progress.written, progress.removed) == (RECORDS - 2, 51, 3)
    # What was rejected on the way there has nobody else, and neither has what the mapping leaves alone.
    assert await differences(move) == ["order:bad"]
    async with connected(move.source) as conn:
        assert await conn.fetchval("select count(*) from kv_store where key in ('order:bad', 'session:1')") == 2
    assert (await backfill_of(move).run()).written == 0


async def test_beside_writers_and_what_capture_carries_the_newest_version_holds(move: Move) -> None:
    stop = asyncio.Event()
    rng = random.Random(3)

    async def write() -> None:
        async with connected(move.target) as conn:
            number = 0
            while not stop.is_set():
                key = f"{rng.randrange(RECORDS):04}"
                async with conn.transaction():
                    if rng.random() < 0.2:
                        await conn.execute("delete from order_items where order_id = $1", key)
                        await conn.execute("delete from orders where id = $1", key)
                    else:
                        await conn.execute(
                            "insert into orders (id, client_id, note) values ($1, 'c', $2) "
                            "on conflict (id) do update set note = excluded.note",
                            key,
                            f"write {number}",
                        )
                number += 1

    applier = Applier(
        mapping=move.mapping,
        kafka=move.kafka,
        source=move.source,
        target=move.target,
        direction="reverse",
        settings=ApplierSettings(session_timeout=6.0),
    )
    async with Relay(move.target, move.kafka):
        ended = asyncio.Event()
        applying = asyncio.create_task(applier.run(ended))
        await eventually(lambda: applier.problem == "", "the applier runs", within=20)
        writers = [asyncio.create_task(write()) for _ in range(2)]
        for _ in range(3):
            await backfill_of(move, chunk_rows=20).run()
        stop.set()
        await asyncio.gather(*writers)

        async def same() -> bool:
            return await differences(move) == ["order:bad"]

        await eventually(same, "both stores agree", within=30)
        ended.set()
        await applying


async def test_a_store_that_takes_the_writes_is_not_written_over(postgres_server: str, kafka: str) -> None:
    async with migration(postgres_server, kafka) as move, connected(move.source) as conn:
        await put(conn, [("order:1", order(1))])
        with pytest.raises(Exception, match="may not change the store that takes the writes"):
            await backfill_of(move).run()
        assert await conn.fetchval("select count(*) from kv_store") == 1
