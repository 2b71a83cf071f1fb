"""The work of comparing, from what is asked over HTTP's tables to what is found in two real stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest_asyncio
from uuid_utils.compat import uuid7

from replank.contracts.schema import MigrationConsistentAgain, MigrationInconsistent
from replank.migrate.comparison import ComparisonSettings, Direction, Kind
from replank.postgres import Pools
from replank.testing import eventually
from replank.testing.services import appended
from replank_schema.migration import comparison, comparison_store
from replank_schema.migration.comparison import Subject
from replank_schema.migration.comparison_model import KeptMismatch, Run, RunState
from replank_schema.migration.comparison_work import ComparisonWork, Stores
from tests.common.migrate.compared import AT_ONCE, CLIENTS, ORDERS
from tests.common.migrate.compared import Stores as Shop
from tests.common.migrate.compared import shop as made

NEVER = 3600.0


@pytest_asyncio.fixture
async def shop(postgres_server: str) -> AsyncIterator[Shop]:
    async with made(postgres_server) as equal:
        yield equal


@pytest_asyncio.fixture
async def subject(database: asyncpg.Pool) -> Subject:
    migration_id: UUID = uuid7()
    await database.execute(
        """
        insert into migration (id, name, owner, source, plan, plan_sha256, planned_by, planned_at)
        values ($1, 'shop', 'user:ada', '{"target": "shop", "table": "kv"}', '{"mapping": {}}', 'x', 'user:ada', now())
        """,
        migration_id,
    )
    return Subject(migration_id, "shop", 99.9)


@asynccontextmanager
async def working(
    dsn: str,
    shop: Shop,
    subject: Subject,
    *,
    settings: Callable[[], ComparisonSettings] = lambda: AT_ONCE,
    direction: Direction = "forward",
    sample_every: float = NEVER,
) -> AsyncIterator[ComparisonWork]:
    pools = Pools(dsn, service="schema")
    work = ComparisonWork(
        pools.write_heavy,
        Stores(shop.source_dsn, shop.target_dsn, shop.mapping, direction),
        subject=lambda: subject,
        settings=settings,
        sample_every=sample_every,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(work.run(stop))
    try:
        yield work
    finally:
        stop.set()
        await asyncio.wait_for(running, 10)
        await pools.close()


async def ask(database: asyncpg.Pool, subject: Subject) -> UUID:
    async with database.acquire() as conn, conn.transaction():
        run = await comparison.ask(conn, subject.id, asked_by="user:ada")
        assert run is not None
        return run.id


async def ended(database: asyncpg.Pool, subject: Subject, run_id: UUID) -> Run:
    async def is_over() -> Run | None:
        async with database.acquire() as conn:
            run = await comparison_store.run(conn, subject.id, run_id)
        return run if run is not None and run.ended_at is not None else None

    run = await eventually(is_over, "the comparison has ended", within=30)
    assert run is not None
    return run


async def open_mismatches(database: asyncpg.Pool, subject: Subject) -> list[KeptMismatch]:
    async with database.acquire() as conn:
        return await comparison_store.mismatches(
            conn, subject.id, after=comparison_store.OLDEST, limit=100, only_open=True
        )


async def test_what_is_asked_for_is_compared_found_repaired_and_resolved(
    database: asyncpg.Pool, postgres_dsn: str, shop: Shop, subject: Subject
) -> None:
    await shop.target.execute("update orders set note = 'else' where id = 'o1'")
    await shop.target.execute("delete from clients where id = 'c1'")
    async with working(postgres_dsn, shop, subject):
        run = await ended(database, subject, await ask(database, subject))
        assert run.state is RunState.DONE
        assert run.progress is not None
        assert run.progress.records == {"client": CLIENTS, "order": ORDERS}
        assert run.progress.different == 2
        found = {mismatch.key: mismatch for mismatch in await open_mismatches(database, subject)}
        assert {key: mismatch.kind for key, mismatch in found.items()} == {
            "client:c1": Kind.MISSING,
            "order:o1": Kind.DIFFERENT,
        }
        assert found["order:o1"].fields == ["orders.note"]

        async with database.acquire() as conn, conn.transaction():
            repair_id = await comparison.ask_repair(conn, subject.id, None, dry_run=False, asked_by="user:ada")

        async def repaired() -> bool:
            async with database.acquire() as conn:
                repair = await comparison_store.repair(conn, subject.id, repair_id)
            return repair is not None and repair.actions is not None

        await eventually(repaired, "the repair is done")
        await shop.carry()
        await ended(database, subject, await ask(database, subject))
        assert await open_mismatches(database, subject) == []
    async with database.acquire() as conn:
        told = [type(event) for _, event in await appended(conn)]
    assert told == [MigrationInconsistent, MigrationConsistentAgain]


async def test_samples_find_what_nobody_asked_for(
    database: asyncpg.Pool, postgres_dsn: str, shop: Shop, subject: Subject
) -> None:
    await shop.target.execute("update orders set note = 'else' where id = 'o1'")
    async with working(postgres_dsn, shop, subject, sample_every=0.05):

        async def found() -> list[str]:
            return [mismatch.key for mismatch in await open_mismatches(database, subject)]

        assert await eventually(found, "a sample meets it") == ["order:o1"]
        await shop.target.execute("update orders set note = 'note 1' where id = 'o1'")

        async def resolved() -> bool:
            return await found() == []

        await eventually(resolved, "a sample sees that it is gone")


async def test_a_comparison_that_is_interrupted_is_gone_on_with_by_the_next_worker(
    database: asyncpg.Pool, postgres_dsn: str, shop: Shop, subject: Subject
) -> None:
    for number in range(200):
        await shop.put(f"order:many{number}", {"clientId": "c1", "items": []})
    await shop.carry()
    await shop.target.execute("update orders set note = 'else' where id = 'many100'")
    slow = AT_ONCE.model_copy(update={"chunk_rows": 1})
    run_id = await ask(database, subject)

    async def begun() -> bool:
        async with database.acquire() as conn:
            run = await comparison_store.run(conn, subject.id, run_id)
        return run is not None and run.progress is not None

    async with working(postgres_dsn, shop, subject, settings=lambda: slow):
        await eventually(begun, "it has begun")
    async with database.acquire() as conn:
        halfway = await comparison_store.run(conn, subject.id, run_id)
    assert halfway is not None
    assert halfway.progress is not None
    assert (halfway.state, halfway.progress.stage) == (RunState.RUNNING, "records")
    async with working(postgres_dsn, shop, subject):
        run = await ended(database, subject, run_id)
    assert run.progress is not None
    assert run.progress.records == {"client": CLIENTS, "order": ORDERS + 200}
    assert run.started_at == halfway.started_at
    assert [mismatch.key for mismatch in await open_mismatches(database, subject)] == ["order:many100"]


async def test_a_comparison_that_is_cancelled_stops_while_it_runs(
    database: asyncpg.Pool, postgres_dsn: str, shop: Shop, subject: Subject
) -> None:
    # One that never ends by itself: a difference that stays on its way for longer than the test.
    await shop.put("order:new", {"clientId": "c1", "items": []})
    patient = ComparisonSettings(chunk_rows=1, settle_keys=1, patience=0.05, pause=0.01)
    run_id = await ask(database, subject)
    async with working(postgres_dsn, shop, subject, settings=lambda: patient):
        async with database.acquire() as conn, conn.transaction():
            assert await comparison_store.cancel(conn, subject.id, run_id)
        assert (await ended(database, subject, run_id)).state is RunState.CANCELLED
        assert (await ended(database, subject, await ask(database, subject))).state is RunState.DONE


async def test_a_comparison_of_before_the_cut_over_begins_anew_after_it(
    database: asyncpg.Pool, postgres_dsn: str, shop: Shop, subject: Subject
) -> None:
    run_id = await ask(database, subject)
    async with database.acquire() as conn, conn.transaction():
        await comparison_store.started(conn, run_id, "forward")
    await shop.move_writes_to_tables()
    async with working(postgres_dsn, shop, subject, direction="reverse"):
        assert (await ended(database, subject, run_id)).state is RunState.CANCELLED
        async with database.acquire() as conn:
            newest, _ = await comparison_store.runs(conn, subject.id, before=comparison_store.NEWEST, limit=2)
        run = await ended(database, subject, newest.id)
    assert (run.state, run.direction, run.asked_by) == (RunState.DONE, "reverse", "user:ada")


async def test_a_store_that_is_away_is_said_and_waited_for(
    database: asyncpg.Pool, postgres_dsn: str, shop: Shop, subject: Subject
) -> None:
    run_id = await ask(database, subject)
    await shop.target.execute("alter table orders rename to orders_elsewhere")
    async with working(postgres_dsn, shop, subject) as work:
        await eventually(lambda: work.problem, "it says what is wrong", within=30)
        await shop.target.execute("alter table orders_elsewhere rename to orders")
        assert (await ended(database, subject, run_id)).state is RunState.DONE
        await eventually(lambda: not work.problem, "all is well again", within=30)
