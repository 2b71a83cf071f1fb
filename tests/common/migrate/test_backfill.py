"""The backfill: moves everything, exactly once, beside writers; stops anywhere and goes on there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from replank import outbox
from replank.migrate import capture, ddl, mapping, reverse
from replank.migrate.applier import Applier, ApplierSettings
from replank.migrate.backfill import Backfill, BackfillOvertaken, BackfillProgress, BackfillSettings
from replank.migrate.compile import compile as compiled
from replank.migrate.throttle import ThrottleSettings
from replank.outbox.relay import Relay
from replank.testing.processes import Process
from replank.testing.servers import waiting_for_locks
from replank.testing.wait import eventually
from tests.common.migrate.moving import (
    MAPPING,
    Move,
    connected,
    differences,
    migration,
    order,
    put,
    put_before_capture,
)

RECORDS = 1000


@pytest_asyncio.fixture
async def move(postgres_server: str, kafka: str) -> AsyncIterator[Move]:
    async with migration(postgres_server, kafka) as made:
        yield made


def backfill_of(move: Move, on_progress: Any = None, **settings: Any) -> Backfill:
    fixed = BackfillSettings(**{"chunk_rows": 100, **settings})
    return Backfill(
        mapping=move.mapping, source=move.source, target=move.target, settings=lambda: fixed, on_progress=on_progress
    )


async def test_everything_is_moved_counted_and_compared(move: Move) -> None:
    dirty = [("order:bad", {"clientId": 5}), ("order:worse", [1]), ("session:1", {"user": 1})]
    await put_before_capture(move, [(f"order:{n}", order(n)) for n in range(RECORDS)] + dirty)
    told: list[BackfillProgress] = []
    progress = await backfill_of(move, told.append).run()
    assert (progress.scanned, progress.filled, progress.kept, progress.rejected) == (RECORDS + 3, RECORDS, 0, 2)
    assert (progress.done, progress.compared, progress.different, progress.unsettled) == (True, RECORDS + 3, 0, 0)
    assert progress.estimate == RECORDS + 3
    assert progress.eta == 0.0
    assert [p.scanned for p in told] == sorted(p.scanned for p in told)
    assert await differences(move) == ["order:bad", "order:worse"]
    again = await backfill_of(move).run()
    assert (again.scanned, again.filled, again.done) == (RECORDS + 3, RECORDS, True)


async def test_a_backfill_that_is_killed_again_and_again_moves_everything_once(move: Move) -> None:
    await put_before_capture(move, [(f"order:{n}", order(n)) for n in range(RECORDS)])
    program = [
        "tests.common.migrate.programs.backfill",
        MAPPING.format(name=move.name),
        move.source,
        move.target,
        "10",
    ]
    for reached in (50, 300, 640):
        async with Process(*program) as process:

            def far_enough(reached: int = reached, process: Process = process) -> bool:
                told = [line.split() for line in process.output.splitlines() if line.startswith("scanned")]
                return bool(told) and int(told[-1][1]) >= reached

            await eventually(far_enough, f"{reached} records are moved", within=30, interval=0.002)
            process.kill()
    progress = await backfill_of(move).run()
    assert (progress.scanned, progress.filled, progress.kept) == (RECORDS, RECORDS, 0)
    # What was compared and not written down is compared again.
    assert progress.compared == RECORDS
    assert progress.different == 0
    assert await differences(move) == []


async def test_a_backfill_beside_writers_leaves_what_they_wrote(move: Move) -> None:
    await put_before_capture(move, [(f"order:{n:05}", order(n)) for n in range(RECORDS)])
    rng = random.Random(1)
    written = 0
    stop = asyncio.Event()

    async def write() -> None:
        nonlocal written
        async with connected(move.source) as conn:
            while not stop.is_set():
                key = f"order:{rng.randrange(RECORDS + 200):05}"
                if rng.random() < 0.3:
                    await conn.execute("delete from kv_store where key = $1", key)
                else:
                    await put(conn, [(key, order(rng.randrange(1000), note=f"write {written}"))])
                written += 1

    applier = Applier(
        mapping=move.mapping,
        kafka=move.kafka,
        source=move.source,
        target=move.target,
        direction="forward",
        settings=ApplierSettings(session_timeout=6.0),
    )
    applying = asyncio.create_task(applier.run(stop))
    async with Relay(move.source, move.kafka):
        writer = asyncio.create_task(write())
        await eventually(lambda: applier.lag().events or applier.problem == "", "the applier runs", within=20)
        pace = ThrottleSettings(rows_per_second=600)
        progress = await backfill_of(move, chunk_rows=37, throttle=pace).run()
        stop.set()
        await writer

        async def same() -> bool:
            return not await differences(move)

        await applying
        stop.clear()
        applying = asyncio.create_task(applier.run(stop))
        await eventually(same, "both stores agree", within=30)
        stop.set()
        await applying
    assert progress.different == 0
    assert written > 100


@pytest.mark.parametrize("change", ["update", "delete"])
async def test_a_change_that_overtakes_a_chunk_on_its_way_is_kept(move: Move, change: str) -> None:
    await put_before_capture(move, [(f"order:{n}", order(n, note="old")) for n in range(10)])
    async with connected(move.target) as holder, connected(move.target) as conn:
        # What the applier does while a batch is applied: the chunk has been read, and cannot be filled yet.
        await holder.execute(f"select pg_advisory_lock_shared(hashtextextended('{move.schema}.fill.0', 0))")
        running = asyncio.create_task(backfill_of(move, compare=False).run())
        await eventually(lambda: waiting_for_locks(conn), "the fill waits for the applier")
        value = None if change == "delete" else '{"clientId": "c", "note": "new"}'
        await holder.execute(f"set replank_migrate.applier = '{move.name}'")
        await holder.execute(
            f"select {move.schema}.apply(array['order:3'], array[$1::text]::jsonb[], array[1], array[null::text])",
            value,
        )
        await holder.execute("select pg_advisory_unlock_all()")
        progress = await running
        notes = {row["id"]: row["note"] for row in await conn.fetch("select id, note from orders")}
    assert (progress.filled, progress.kept) == (9, 1)
    assert notes.get("3") == (None if change == "delete" else "new")
    assert len(notes) == (9 if change == "delete" else 10)


async def test_a_record_that_the_database_refuses_stops_nothing(move: Move) -> None:
    await put_before_capture(
        move, [(f"order:{n}", order(n, note="bad" if n in {7, 77} else "good")) for n in range(300)]
    )
    async with connected(move.target) as conn:
        await conn.execute("alter table orders add constraint not_bad check (note <> 'bad')")
        progress = await backfill_of(move).run()
        rejects = await conn.fetch(f"select key, reason from {move.schema}.reject order by key")
    assert (progress.filled, progress.rejected, progress.different) == (298, 2, 0)
    assert [row["key"] for row in rejects] == ["order:7", "order:77"]
    assert "not_bad" in rejects[0]["reason"]


async def test_what_differs_for_certain_is_told(move: Move) -> None:
    await put_before_capture(move, [(f"order:{n}", order(n)) for n in range(50)])
    async with connected(move.target) as conn:
        await conn.execute(f"set replank_migrate.applier = '{move.name}'")
        await conn.execute("insert into orders (id, client_id, note) values ('7', 'c', 'somebody else''s')")
    progress = await backfill_of(move).run()
    assert (progress.kept, progress.different, progress.different_keys) == (1, 1, ("order:7",))


async def test_settings_are_read_between_chunks_and_a_cancelled_backfill_goes_on(move: Move) -> None:
    await put_before_capture(move, [(f"order:{n}", order(n)) for n in range(RECORDS)])
    slow = BackfillSettings(chunk_rows=10, throttle=ThrottleSettings(rows_per_second=20))
    current = slow
    told: list[BackfillProgress] = []
    backfill = Backfill(
        mapping=move.mapping,
        source=move.source,
        target=move.target,
        settings=lambda: current,
        on_progress=told.append,
    )
    running = asyncio.create_task(backfill.run())
    await eventually(lambda: "pace" in backfill.progress.waiting_for, "it waits for its pace")
    assert backfill.progress.scanned < 200
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    running = asyncio.create_task(backfill.run())
    await eventually(lambda: "pace" in backfill.progress.waiting_for, "it waits for its pace again")
    current = BackfillSettings(chunk_rows=200)
    progress = await asyncio.wait_for(running, 20)
    assert (progress.filled, progress.kept, progress.done) == (RECORDS, 0, True)
    assert max(b.scanned - a.scanned for a, b in pairwise(told)) == 200


async def test_two_backfills_do_not_both_go_on(move: Move) -> None:
    await put_before_capture(move, [(f"order:{n}", order(n)) for n in range(500)])
    slow = {"chunk_rows": 5, "throttle": ThrottleSettings(rows_per_second=500)}
    results = await asyncio.gather(
        backfill_of(move, **slow).run(), backfill_of(move, **slow).run(), return_exceptions=True
    )
    assert sum(isinstance(result, BackfillOvertaken) for result in results) >= 1
    progress = await backfill_of(move).run()
    assert (progress.scanned, progress.filled, progress.kept) == (500, 500, 0)


async def test_same_transaction_beside_writers_that_roll_back(postgres_dsn: str, kafka: str) -> None:
    described = mapping.load(MAPPING.format(name="same"))
    move = Move(described, compiled(described), postgres_dsn, postgres_dsn, kafka)
    async with connected(postgres_dsn) as conn:
        await conn.execute("create table kv_store (key text primary key, value jsonb not null)")
        await outbox.install(conn)
        await ddl.create_tables(postgres_dsn, move.compiled)
        await put(conn, [(f"order:{n:04}", order(n)) for n in range(RECORDS)])
        await capture.install(conn, described, same_transaction=True)
        await reverse.install(conn, described, same_transaction=True)
    settings = BackfillSettings(chunk_rows=50)
    stop = asyncio.Event()
    rng = random.Random(2)

    async def write() -> None:
        async with connected(postgres_dsn) as conn:
            while not stop.is_set():
                transaction = conn.transaction()
                await transaction.start()
                for _ in range(3):
                    n = rng.randrange(RECORDS)
                    if rng.random() < 0.3:
                        await conn.execute("delete from kv_store where key = $1", f"order:{n:04}")
                    else:
                        note = 5 if rng.random() < 0.2 else f"written {n}"
                        await put(conn, [(f"order:{n:04}", order(n, note=note))])
                await (transaction.rollback() if rng.random() < 0.5 else transaction.commit())

    async def write_on() -> None:
        while not stop.is_set():
            with suppress(asyncpg.DeadlockDetectedError):  # of the writers among themselves
                await write()

    async with connected(postgres_dsn) as conn:
        held = conn.transaction()
        await held.start()
        await put(conn, [("order:0003", order(3, note="never committed"))])
        writers = [asyncio.create_task(write_on()) for _ in range(2)]
        backfill = Backfill(
            mapping=described,
            source=postgres_dsn,
            target=postgres_dsn,
            settings=lambda: settings,
            same_transaction=True,
        )
        running = asyncio.create_task(backfill.run())
        await eventually(lambda: backfill.progress.scanned >= RECORDS / 2, "the writer is not waited for", within=30)
        await held.rollback()
        progress = await asyncio.wait_for(running, 60)
        stop.set()
        await asyncio.gather(*writers)
        rejected = {row["key"] for row in await conn.fetch(f"select key from {move.schema}.reject")}
    assert progress.done
    assert set(await differences(move)) == rejected
