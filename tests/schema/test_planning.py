"""Planning a migration and settling its checklist, on a real database."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from replank import flags
from replank.connection import Connection
from replank.contracts.schema import MigrationPhaseChanged, MigrationPlanned, MigrationReady, plan_sha256
from replank.testing import eventually
from replank.testing.services import appended
from replank_schema.migration import service, store
from replank_schema.migration.machine import Command, TransitionRefused
from replank_schema.migration.model import Draft, Item, Migration, Mode, Options, Phase, Settings, Standing, State
from replank_schema.migration.report import Report
from replank_schema.migration.service import LeaseLost, Settled

MAPPING: dict[str, Any] = {"mapping": 1, "name": "orders", "nested": {"ratio": 0.25, "none": None}}
DRAFT = Draft("orders", "user:ada", "shop", "public.kv", "tables", MAPPING, Options(endpoints=("list",)), Settings())


async def planned(database: asyncpg.Pool) -> Migration:
    async with database.acquire() as conn, conn.transaction():
        return await service.plan(conn, DRAFT, planned_by="user:ben")


async def settle(
    database: asyncpg.Pool, migration_id: UUID, item: Item, state: State = State.MET, detail: str = "seen"
) -> Settled:
    async with database.acquire() as conn, conn.transaction():
        return await service.settle(conn, migration_id, item, state, detail=detail, event_id=uuid4())


async def test_planning_keeps_the_plan_and_says_so_in_one_transaction(database: asyncpg.Pool) -> None:
    migration = await planned(database)
    async with database.acquire() as conn:
        assert await store.get(conn, migration.id) == migration
        plan = await store.plan(conn, migration.id)
        assert (plan.mapping, plan.options) == (MAPPING, DRAFT.options)
        assert [route.endpoint for route in await store.routes(conn, migration.id)] == ["list"]
        assert [(line.item, line.state) for line in await store.checklist(conn, migration.id)] == [
            (Item.ACCESS, State.PENDING),
            (Item.BASELINE, State.PENDING),
            (Item.ARCHIVE, State.PENDING),
        ]
        ((key, event),) = await appended(conn)
    assert key == str(migration.id)
    assert isinstance(event, MigrationPlanned)
    assert (event.owner, event.planned_by) == ("user:ada", "user:ben")
    assert (event.source.target, event.source.table) == ("shop", "public.kv")
    assert event.plan == DRAFT.plan
    assert event.plan_sha256 == plan_sha256(DRAFT.plan) == migration.plan_sha256


async def test_planning_that_is_rolled_back_leaves_nothing(database: asyncpg.Pool) -> None:
    async with database.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await service.plan(conn, DRAFT, planned_by="user:ben")
        await transaction.rollback()
    async with database.acquire() as conn:
        assert await store.page(conn, before=store.NEWEST, limit=10) == []
        assert await appended(conn) == []


@pytest.mark.parametrize("order", [list(Item), list(reversed(Item))], ids=["in order", "in reverse"])
async def test_a_migration_is_ready_with_its_last_item_and_says_so_once(
    database: asyncpg.Pool, order: list[Item]
) -> None:
    migration = await planned(database)
    assert [await settle(database, migration.id, item) for item in order] == [
        Settled.NOTED,
        Settled.NOTED,
        Settled.READY,
    ]
    assert await settle(database, migration.id, order[0]) is Settled.NOTED
    async with database.acquire() as conn:
        found = await store.get(conn, migration.id)
        events = [event for _, event in await appended(conn) if isinstance(event, MigrationReady)]
    assert found is not None
    assert found.standing == Standing()
    assert found.ready_at is not None
    assert [event.migration_id for event in events] == [migration.id]


async def test_items_that_are_settled_at_the_same_time_make_one_ready(database: asyncpg.Pool) -> None:
    migration = await planned(database)
    outcomes = await asyncio.gather(*(settle(database, migration.id, item) for item in Item))
    assert sorted(outcomes) == [Settled.NOTED, Settled.NOTED, Settled.READY]
    async with database.acquire() as conn:
        assert sum(isinstance(event, MigrationReady) for _, event in await appended(conn)) == 1


async def test_a_failed_baseline_holds_the_migration_back_until_a_later_one_is_captured(database: asyncpg.Pool) -> None:
    migration = await planned(database)
    await settle(database, migration.id, Item.ACCESS)
    await settle(database, migration.id, Item.ARCHIVE)
    assert await settle(database, migration.id, Item.BASELINE, State.FAILED, "no such table") is Settled.NOTED
    async with database.acquire() as conn:
        (line,) = [line for line in await store.checklist(conn, migration.id) if line.item is Item.BASELINE]
    assert (line.state, line.detail) == (State.FAILED, "no such table")
    assert line.event_id is not None
    assert await settle(database, migration.id, Item.BASELINE) is Settled.READY


async def settle_access(database: asyncpg.Pool, migration_id: UUID, user: str, *, owns: bool) -> Settled:
    async with database.acquire() as conn, conn.transaction():
        return await service.settle_access(conn, migration_id, user=user, owns=owns, event_id=uuid4())


async def access(database: asyncpg.Pool, migration_id: UUID) -> tuple[State, str | None]:
    async with database.acquire() as conn:
        (line,) = [line for line in await store.checklist(conn, migration_id) if line.item is Item.ACCESS]
    return line.state, line.detail


async def test_access_that_the_owner_lost_holds_the_migration_back_until_it_is_granted_again(
    database: asyncpg.Pool,
) -> None:
    migration = await planned(database)
    assert await settle_access(database, migration.id, "user:ada", owns=True) is Settled.NOTED
    assert await access(database, migration.id) == (State.MET, "user:ada is owner")
    assert await settle_access(database, migration.id, "user:ada", owns=False) is Settled.NOTED
    assert await access(database, migration.id) == (State.MISSING, "user:ada is owner no more")
    await settle(database, migration.id, Item.BASELINE)
    assert await settle(database, migration.id, Item.ARCHIVE) is Settled.NOTED
    assert await settle_access(database, migration.id, "user:ada", owns=True) is Settled.READY


async def test_owners_whom_the_plan_does_not_name_neither_open_nor_close_the_item(database: asyncpg.Pool) -> None:
    migration = await planned(database)
    assert await settle_access(database, migration.id, "user:eve", owns=True) is Settled.NOT_THE_OWNER
    assert await access(database, migration.id) == (State.PENDING, None)
    await settle_access(database, migration.id, "user:ada", owns=True)
    assert await settle_access(database, migration.id, "user:eve", owns=False) is Settled.NOT_THE_OWNER
    assert await access(database, migration.id) == (State.MET, "user:ada is owner")


async def test_a_revocation_counts_until_the_start_also_of_a_migration_that_was_ready(database: asyncpg.Pool) -> None:
    migration = await planned(database)
    await settle_access(database, migration.id, "user:ada", owns=True)
    await settle(database, migration.id, Item.BASELINE)
    assert await settle(database, migration.id, Item.ARCHIVE) is Settled.READY
    assert await settle_access(database, migration.id, "user:ada", owns=False) is Settled.NOTED
    assert await access(database, migration.id) == (State.MISSING, "user:ada is owner no more")
    async with database.acquire() as conn, conn.transaction():
        held = await service.held(conn, migration.id)
        with pytest.raises(TransitionRefused, match="access: user:ada is owner no more"):
            await start(conn, held)
    # Granted again it is ready as before, which is not said twice.
    assert await settle_access(database, migration.id, "user:ada", owns=True) is Settled.NOTED
    async with database.acquire() as conn, conn.transaction():
        started = await start(conn, await service.held(conn, migration.id))
    assert started.standing == Standing(Phase.CAPTURING, run=1)
    assert await settle_access(database, migration.id, "user:ada", owns=False) is Settled.CLOSED
    assert await settle_access(database, uuid4(), "user:ada", owns=False) is Settled.UNKNOWN_MIGRATION


async def start(conn: Connection, migration: Migration) -> Migration:
    return await service.command(
        conn, migration, Command.START, by="user:ada", reason="test", databases=frozenset({"shop", "tables"})
    )


async def test_a_start_is_a_row_an_audit_line_an_event_and_flags_or_nothing(database: asyncpg.Pool) -> None:
    migration = await planned(database)
    for item in Item:
        await settle(database, migration.id, item)
    async with database.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await start(conn, await service.held(conn, migration.id))
        await transaction.rollback()
        assert (await service.held(conn, migration.id)).standing == Standing()
        assert [line.action for line in await store.audit_page(conn, migration.id, before=store.LATEST, limit=9)] == [
            "plan"
        ]
        async with conn.transaction():
            await start(conn, await service.held(conn, migration.id))
        line = (await store.audit_page(conn, migration.id, before=store.LATEST, limit=1))[0]
        assert (line.who, line.action, line.reason, line.from_phase, line.to_phase) == (
            "user:ada",
            "start",
            "test",
            Phase.PLANNED,
            Phase.CAPTURING,
        )
        assert isinstance(line.evidence["conditions"], list)
        assert {"access", "baseline", "archive", "databases", "name_free"} <= {
            condition["name"] for condition in line.evidence["conditions"] if isinstance(condition, dict)
        }
        told = [event for _, event in await appended(conn) if isinstance(event, MigrationPhaseChanged)]
        assert [(event.from_phase, event.to_phase, event.run) for event in told] == [("planned", "capturing", 1)]
        flag = await flags.get_flag(conn, "migrate.orders.reads.list")
        assert flag is not None
        assert flag.value == "kv"


async def test_two_of_one_name_are_not_under_way_at_once(database: asyncpg.Pool) -> None:
    first, second = await planned(database), await planned(database)
    for migration in (first, second):
        for item in Item:
            await settle(database, migration.id, item)
    async with database.acquire() as conn, conn.transaction():
        await start(conn, await service.held(conn, first.id))
    async with database.acquire() as conn, conn.transaction():
        held = await service.held(conn, second.id)
        with pytest.raises(TransitionRefused, match=f"migration {first.id} of the same name is under way"):
            await start(conn, held)


async def test_a_leader_whose_lease_is_another_ones_changes_nothing(database: asyncpg.Pool) -> None:
    migration = await planned(database)
    for item in Item:
        await settle(database, migration.id, item)
    async with database.acquire() as conn:
        async with conn.transaction():
            await start(conn, await service.held(conn, migration.id))
        ((led, token),) = await store.claim(conn, "first", 0.05)
        assert led == migration.id
        assert await store.claim(conn, "second", 60.0) == []

        async def taken_over() -> list[tuple[UUID, int]]:
            return await store.claim(conn, "second", 60.0)

        ((_, newer),) = await eventually(taken_over, "the lease ran out")
        assert newer > token
        assert not await store.renew(conn, migration.id, token, 60.0, Report())
        with pytest.raises(LeaseLost):
            async with conn.transaction():
                await service.note(conn, migration.id, token, 1, {"installed": True})
        assert not (await store.facts(conn, migration.id)).installed
        async with conn.transaction():
            await service.note(conn, migration.id, newer, 1, {"installed": True})
        assert (await store.facts(conn, migration.id)).installed


@pytest.mark.parametrize("phase", [Phase.NEW_ONLY, Phase.COMPLETED])
async def test_reads_go_back_at_once_or_from_completion_when_the_writes_are_back(
    database: asyncpg.Pool, phase: Phase
) -> None:
    migration = await planned(database)
    flag = "migrate.orders.reads.list"

    async def value() -> str:
        async with database.acquire() as conn:
            found = await flags.get_flag(conn, flag)
        assert found is not None
        return str(found.value)

    async def roll_back(to: Phase | None) -> None:
        async with database.acquire() as conn, conn.transaction():
            held = await service.held(conn, migration.id)
            await service.command(
                conn, held, Command.ROLLBACK, by="user:ada", reason="test", databases=frozenset(), to=to
            )

    async with database.acquire() as conn, conn.transaction():
        await store.move(conn, migration.id, Standing(phase, run=1), migration.tables)
        await service.set_reads(conn, migration, Mode.NEW, 100.0, by="user:ada", reason="test")
    await roll_back(Phase.SHADOW_READS)
    if phase is Phase.NEW_ONLY:
        assert await value() == "compare"
        return
    assert await value() == "new"
    await roll_back(None)
    assert await value() == "new", "asked to go further back, the key-value store is still behind"
    async with database.acquire() as conn:
        ((_, token),) = await store.claim(conn, "leader", 60.0)
        async with conn.transaction():
            held = await service.held(conn, migration.id)
            with pytest.raises(TransitionRefused, match="has not heard"):
                await service.set_endpoint(conn, held, "list", Mode.KV, 100.0, by="user:ada", reason="test")
            assert await service.reads_follow(conn, migration.id, token)
        assert await value() == "kv"
        async with conn.transaction():
            assert not await service.reads_follow(conn, migration.id, token), "once is enough"


async def test_what_is_said_of_an_unknown_migration_changes_nothing(database: asyncpg.Pool) -> None:
    assert await settle(database, uuid4(), Item.ACCESS) is Settled.UNKNOWN_MIGRATION
    async with database.acquire() as conn:
        assert await appended(conn) == []


async def test_pages_show_the_newest_first_and_none_twice(database: asyncpg.Pool) -> None:
    ids = [(await planned(database)).id for _ in range(5)]
    async with database.acquire() as conn:
        first = await store.page(conn, before=store.NEWEST, limit=3)
        rest = await store.page(conn, before=first[-1].id, limit=3)
    assert [migration.id for migration in first + rest] == list(reversed(ids))


async def test_a_page_is_read_by_the_primary_key_alone(database: asyncpg.Pool) -> None:
    async with database.acquire() as conn, conn.transaction():
        await conn.execute("set local enable_seqscan = off")
        plan = await conn.fetch("explain " + store._PAGE, store.NEWEST, 3, None)
    text = "\n".join(row[0] for row in plan)
    assert "Index Scan Backward using migration_pkey" in text
    assert "Sort" not in text
