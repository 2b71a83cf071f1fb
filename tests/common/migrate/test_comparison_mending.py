"""Samples find what goes wrong while writes go on; repair mends it, whichever store leads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from replank.migrate.comparison import (
    ComparisonSettings,
    Findings,
    Kind,
    Repaired,
    Sampler,
    check,
    opened,
    repair,
    sample,
)
from replank.migrate.locks import LocksNotGranted
from replank.migrate.session import session
from replank.testing import eventually
from replank.testing.servers import waiting_for_locks
from tests.common.migrate.compared import AT_ONCE, ORDERS, PUT, Stores, order, shop


@pytest_asyncio.fixture
async def stores(postgres_server: str) -> AsyncIterator[Stores]:
    async with shop(postgres_server) as equal:
        yield equal


async def sampled(stores: Stores, wanted: int, settings: ComparisonSettings = AT_ONCE) -> Findings:
    async with opened(stores.source_dsn, stores.target_dsn, stores.mapping, "forward") as sides:
        return await sample(sides, wanted, settings)


async def mend(stores: Stores, *keys: str, dry_run: bool = False) -> list[Repaired]:
    return await repair(stores.source_dsn, stores.target_dsn, stores.mapping, keys, dry_run=dry_run)


# --- samples ---


async def test_a_sample_as_large_as_the_store_finds_every_record_that_differs(stores: Stores) -> None:
    await stores.target.execute("update orders set note = 'else' where id in ('o1', 'o5')")
    found = await sampled(stores, 1000)
    assert {mismatch.key: mismatch.kind for mismatch in found.mismatches} == {
        "order:o1": Kind.DIFFERENT,
        "order:o5": Kind.DIFFERENT,
    }
    assert (found.different, found.unsettled) == (2, [])


async def test_samples_meet_every_record_sooner_or_later(stores: Stores) -> None:
    for number in range(300):
        await stores.put(f"order:many{number}", order(1))
    await stores.carry()
    async with opened(stores.source_dsn, stores.target_dsn, stores.mapping, "forward") as sides:
        met: set[str] = set()
        draws = 0
        while len(met) < 300 and draws < 500:
            drawn = await sides.random_keys(20)
            assert len(drawn) == len(set(drawn)) <= 20
            met.update(key for key in drawn if key.startswith("order:many"))
            draws += 1
    assert len(met) == 300


async def test_a_sample_looks_at_what_was_written_and_deleted_last(stores: Stores) -> None:
    for number in range(300):
        await stores.put(f"order:many{number}", order(1))
    await stores.carry()
    await stores.put("order:o1", order(1, note="newest"))
    await stores.delete("order:o2")
    await stores.carry(lose=["order:o1", "order:o2"])
    found = await sampled(stores, 4)
    kinds = {mismatch.key: mismatch.kind for mismatch in found.mismatches}
    assert kinds == {"order:o1": Kind.DIFFERENT, "order:o2": Kind.EXTRA}


@pytest.mark.parametrize("phantom", ["a-first", "o1-between", "z-last"])
async def test_samples_meet_rows_that_no_record_stands_for_sooner_or_later(stores: Stores, phantom: str) -> None:
    await stores.target.execute("insert into orders (id, client_id) values ($1, 'c1')", phantom)

    async def met() -> list[tuple[str, Kind]]:
        return [(mismatch.key, mismatch.kind) for mismatch in (await sampled(stores, 20)).mismatches]

    assert await eventually(met, "a sample meets the row", within=60) == [(f"order:{phantom}", Kind.EXTRA)]


async def test_what_is_on_its_way_counts_in_no_sample(stores: Stores) -> None:
    await stores.put("order:o1", order(1, note="newer"))
    found = await sampled(stores, 1000, ComparisonSettings(pause=0.01, patience=0.05))
    assert (found.different, found.unsettled) == (0, ["order:o1"])
    assert "order:o1" not in found.equal


async def test_sampling_goes_on_until_it_is_told_to_stop_and_survives_a_server_that_goes_away(stores: Stores) -> None:
    taken: list[Findings] = []

    async def report(findings: Findings) -> None:
        taken.append(findings)

    sampler = Sampler(
        stores.source_dsn, stores.target_dsn, stores.mapping, report=report, settings=lambda: AT_ONCE, every=0.01
    )
    stop = asyncio.Event()
    running = asyncio.create_task(sampler.run(stop))
    await eventually(lambda: len(taken) >= 3, "three samples were taken")
    await stores.source.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and application_name = 'replank-migrate-compare'"
    )
    before = len(taken)
    await eventually(lambda: len(taken) >= before + 3, "it goes on")
    assert sampler.problem == ""
    stop.set()
    await asyncio.wait_for(running, 5)


# --- repair ---


async def test_repair_mends_every_kind_of_mismatch_by_the_way_of_all_changes(stores: Stores) -> None:
    await stores.put("order:missing", order(1))
    await stores.put("order:o1", order(1, note="newer"))
    await stores.delete("order:o2")
    await stores.carry(lose=["order:missing", "order:o1", "order:o2"])
    await stores.target.execute("update order_items set quantity = 99 where order_id = 'o3'")
    await stores.target.execute("insert into clients (id, name) values ('phantom', 'nobody')")
    _, found = await stores.compare()
    keys = [mismatch.key for mismatch in found]
    assert len(keys) == 5
    told = await mend(stores, *keys, dry_run=True)
    assert (await stores.compare())[0].different == 5, "a dry run changes nothing"
    done = await mend(stores, *keys)
    assert (
        done
        == told
        == [
            Repaired("client:phantom", "delete"),
            Repaired("order:missing", "upsert"),
            Repaired("order:o1", "upsert"),
            Repaired("order:o2", "delete"),
            Repaired("order:o3", "upsert"),
        ]
    )
    await stores.carry()
    assert (await stores.compare())[1] == []


async def test_repair_of_an_equal_key_changes_nothing(stores: Stores) -> None:
    await mend(stores, "order:o1", "order:nowhere", "")
    await stores.carry()
    done, found = await stores.compare()
    assert (found, done.records["order"]) == ([], ORDERS)


@pytest.mark.parametrize(
    ("key", "statement"),
    [
        ("order:new", "insert into kv_store select 'order:new', value from kv_store where key = 'order:o1'"),
        ("order:o1", "delete from kv_store where key = 'order:o1'"),
        ("order:o1", "update kv_store set value = value || '{\"note\": \"newer\"}' where key = 'order:o1'"),
    ],
    ids=["insert", "delete", "update"],
)
async def test_a_repair_takes_nothing_back_that_is_being_written(stores: Stores, key: str, statement: str) -> None:
    async with session(stores.source_dsn, "writer", timeout=30) as conn:
        async with conn.transaction():
            await conn.execute(statement)
            repairing = asyncio.create_task(mend(stores, key))

            async def waits_or_is_done() -> bool:
                return repairing.done() or await waiting_for_locks(stores.source) > 0

            await eventually(waits_or_is_done, "the repair waits for the writer, or went past it")
        await repairing
    await stores.carry()
    assert (await stores.compare())[1] == []


async def test_a_repair_that_cannot_hold_the_writers_gives_up_and_changes_nothing(stores: Stores) -> None:
    events = await stores.source.fetchval("select count(*) from replank_outbox.event")
    async with session(stores.source_dsn, "writer", timeout=30) as conn, conn.transaction():
        await conn.execute(PUT, "order:o1", json.dumps(order(1)))
        with pytest.raises(LocksNotGranted):
            await asyncio.wait_for(
                repair(stores.source_dsn, stores.target_dsn, stores.mapping, ["order:o2"], within=1.5), 20
            )
    assert await stores.source.fetchval("select count(*) from replank_outbox.event") == events + 1


async def test_in_one_database_a_repair_is_done_when_it_returns(postgres_server: str) -> None:
    async with shop(postgres_server, same_transaction=True) as stores:
        await stores.target.execute("update orders set note = 'else' where id = 'o1'")
        await stores.target.execute("delete from clients where id = 'c1'")
        await mend(stores, "order:o1", "client:c1")
        assert (await stores.compare())[1] == []


# --- after the cut-over ---


async def by_application(stores: Stores, statement: str) -> None:
    async with session(stores.target_dsn, "application", timeout=30) as conn:
        await conn.execute(statement)


async def test_after_the_cut_over_the_key_value_store_is_what_is_checked_and_mended(stores: Stores) -> None:
    await stores.move_writes_to_tables()
    await by_application(stores, "update orders set note = 'newer' where id in ('o1', 'o2')")
    await by_application(stores, "delete from clients where id = 'c3'")
    done, found = await stores.compare(ComparisonSettings(pause=0.01, patience=0.05), "reverse")
    assert (found, done.unsettled) == ([], 3), "on their way"
    await stores.carry_back(lose=["order:o1", "client:c3"])
    _, found = await stores.compare(AT_ONCE, "reverse")
    kinds = {mismatch.key: mismatch.kind for mismatch in found}
    assert kinds == {"client:c3": Kind.MISSING, "order:o1": Kind.DIFFERENT}
    done_ = await repair(stores.source_dsn, stores.target_dsn, stores.mapping, list(kinds), direction="reverse")
    assert done_ == [Repaired("client:c3", "delete"), Repaired("order:o1", "upsert")]
    await stores.carry_back()
    done, found = await stores.compare(AT_ONCE, "reverse")
    assert (found, done.unsettled, done.records["client"]) == ([], 0, 3)
    assert await stores.source.fetchval("select value ->> 'note' from kv_store where key = 'order:o1'") == "newer"


async def test_a_side_that_takes_no_writes_does_not_lead_a_repair(stores: Stores) -> None:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await repair(stores.source_dsn, stores.target_dsn, stores.mapping, ["order:o1"], direction="reverse")
    assert refused.value.sqlstate == "RPL02"
    await stores.move_writes_to_tables()
    with pytest.raises(asyncpg.PostgresError) as refused:
        await mend(stores, "order:o1")
    assert refused.value.sqlstate == "RPL02"


async def test_single_keys_are_checked_at_once(stores: Stores) -> None:
    await stores.target.execute("update orders set note = 'else' where id = 'o1'")
    async with opened(stores.source_dsn, stores.target_dsn, stores.mapping, "forward") as sides:
        found = await check(sides, ["order:o1", "order:o2", "order:nowhere", "session:1"], AT_ONCE)
    assert [mismatch.key for mismatch in found.mismatches] == ["order:o1"]
    assert list(found.equal) == ["order:nowhere", "order:o2", "session:1"]
