"""A migration's whole life under live traffic, there, back and there again, in which everything dies in every phase.

Nobody repairs anything, and nothing is lost: what the traffic knows for true is what both stores hold, and no answer
was ever wrong.
"""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from itertools import product
from typing import Any, Final

import pytest

from replank.migrate.mapping import load
from replank.testing import eventually
from replank_cli.demo import shop
from replank_local.services import STOREFRONT
from tests.chaos.moving import PATIENCE, Moving, moving
from tests.e2e.system import fetch, running

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

PHASES: Final = (
    "capturing",
    "backfilling",
    "verifying",
    "shadow_reads",
    "new_with_fallback",
    "new_only",
    "rolling_back",
    "completed",
)
VICTIMS: Final = ("schema", "kafka", "postgres", "storefront")

# So slow that a kill finds it in the middle, and as fast as it can go.
_SLOW: Final = {"rows_per_second": 500, "chunk_rows": 100}
_FAST: Final = {"rows_per_second": None, "chunk_rows": 5000}
_HAS_TABLES: Final = "select to_regclass('orders') is not null as made"


async def test_whatever_dies_in_whatever_phase_a_migration_goes_on_and_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("chaos-migration")
    async with running(folder, STOREFRONT) as system, moving(system, folder) as life:
        await nobody_decides(life)
        # One half of what may die dies on the way there, the other on the way there again.
        await capture(life, "schema", "storefront")
        await backfill(life, "kafka", "postgres")
        await verify(life, "schema", "postgres", rejected=life.planted.rejected)
        await mend(life)
        await read_both(life, "kafka", "storefront")
        await read_tables(life, "schema", "storefront")
        await flip_without_kafka(life)
        await flip_killed_before_it_opens(life)
        await life.strike("kafka", "storefront")
        await go_back(life)

        await capture(life, "kafka", "postgres")
        await backfill(life, "schema", "storefront")
        await verify(life, "kafka", "storefront", rejected=set(life.planted.lost))
        await read_both(life, "schema", "postgres")
        await read_tables(life, "kafka", "postgres")
        await flip_killed_before_it_closes(life)
        await life.strike("schema", "postgres")
        await both_stores_hold_the_truth(life)
        await complete(life)
        assert set(product(PHASES, VICTIMS)) <= life.struck, "everything has died in every phase"


async def nobody_decides(life: Moving) -> None:
    """Without auth-cache nobody may start anything, and nothing is done."""
    await life.system.stack.kill("auth-cache")
    async with life.system.client("schema") as client:
        answer = await client.post(f"/v1/migrations/{life.id}/start", json={"reason": "chaos"})
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True), answer.text
    await life.system.stack.start("auth-cache")
    assert (await life.when(lambda _: True, "schema answers"))["phase"] == "planned"


async def capture(life: Moving, *victims: str) -> None:
    """Die between the tables, which are made, and the triggers, which have to wait for a writer."""
    await life.may_go_on("capturing")
    async with life.locking("source", "lock table kv_store in row exclusive mode"):
        await life.ask("start")

        async def half_installed() -> bool:
            return bool((await fetch(life.dsn("target"), _HAS_TABLES))[0]["made"])

        await eventually(half_installed, "tables are made", within=PATIENCE)
        await life.kill(*victims)
    await life.recover(*victims)


async def backfill(life: Moving, *victims: str) -> None:
    """Die among the chunks."""
    await life.settings(**_SLOW)
    await life.advance("backfilling")
    seen = await life.when(lambda seen: seen["progress"] and seen["progress"]["rows"] >= 500, "some chunks are filled")
    assert not seen["progress"]["done"], "there is something left to do"
    await life.strike(*victims)
    await life.settings(**_FAST)


async def verify(life: Moving, *victims: str, rejected: set[str]) -> None:
    """Die in a comparison of everything; what cannot be converted is known by name all the same."""
    await life.may_go_on("verifying")
    await life.settings(**_SLOW)
    await life.advance("verifying")

    async def in_the_middle() -> bool:
        newest = (await life.listed("comparisons"))[0]
        return bool(newest["state"] == "running" and newest["compared"] > 0)

    await eventually(in_the_middle, "a comparison runs", within=PATIENCE)
    await life.strike(*victims)
    await life.settings(**_FAST)
    await life.rejects_are(rejected)
    await alike(life)


async def mend(life: Moving) -> None:
    """Correct what can be corrected, in the live store."""
    await shop.mend(life.places, life.planted)
    await life.rejects_are(set(life.planted.lost))


async def read_both(life: Moving, *victims: str) -> None:
    """Die while every answer of the key-value store is held against the tables."""
    await life.ask("rejects/accept", keys=None)
    await life.advance("shadow_reads")
    await life.when(lambda seen: seen["compared_reads"]["compared"] > 0, "reads are compared")
    await life.strike(*victims)


async def read_tables(life: Moving, *victims: str) -> None:
    """Die while the tables answer."""
    await life.advance("new_with_fallback")
    await life.sells()
    await life.strike(*victims)


async def flip_without_kafka(life: Moving) -> None:
    """Writes are held, and cannot be drained: they stay where they were."""
    await life.may_go_on("new_only")
    # Frozen first: nothing drains between the asking and the kill.
    life.system.stack.signal("kafka", signal.SIGSTOP)
    await life.ask("advance", expected="new_with_fallback")
    await life.takes("source", "held")
    await life.kill("kafka")
    await life.takes("source", "open")
    await life.arrives("new_with_fallback")
    assert (await life.listed("audit"))[0]["action"] == "give_up"
    await life.recover("kafka")


async def flip_killed_before_it_opens(life: Moving) -> None:
    """Die when the writers are held, and all they wrote is applied."""
    await life.may_go_on("new_only")
    async with life.blocked("target"):
        await life.ask("advance", expected="new_with_fallback")
        await life.takes("source", "held")
        await life.kill("schema")
    await life.system.stack.start("schema")
    await arrived_in_new_only(life)


async def flip_killed_before_it_closes(life: Moving) -> None:
    """Die when the tables take the writes, and the key-value store does not know yet."""
    await life.may_go_on("new_only")
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(AsyncExitStack())
        await target.enter_async_context(life.blocked("target"))
        await life.ask("advance", expected="new_with_fallback")
        await life.takes("source", "held")
        await stack.enter_async_context(life.blocked("source"))
        await target.aclose()
        await life.takes("target", "open")
        await life.kill("schema")
    await life.system.stack.start("schema")
    await arrived_in_new_only(life)


async def arrived_in_new_only(life: Moving) -> None:
    """The flip has ended by itself, and the tables take the writes."""
    await life.arrives("new_only")
    await life.takes("target", "open")
    await life.takes("source", "closed")


async def go_back(life: Moving) -> None:
    """Die twice between the steps of the way back, and once at its end."""
    await life.sells()
    async with life.blocked("source"):
        await life.ask("rollback", tables="drop")
        held = await life.takes("target", "held")
        await life.kill("schema", "storefront")
        await life.system.stack.start("schema", "storefront")
        await life.takes("target", "held", again=held)
        await life.kill("kafka", "postgres")
    await life.recover("kafka", "postgres")
    await life.arrives("rolled_back")
    await life.kill("schema")
    first = life.shift
    await life.traffic.begin("second")
    await life.traffic.end(first)
    await audited(life, "kv")
    await life.recover("schema")


async def both_stores_hold_the_truth(life: Moving) -> None:
    """The shop is quiet for a moment: only then can two databases be held against each other to the last record."""
    await life.traffic.end(life.shift)
    await audited(life, "tables")
    await audited(life, "kv")
    records, rows = await shop.count(life.places, load(life.places.mapping.read_text()), life.planted.lost)
    assert records == rows
    await life.ask("comparisons")
    await alike(life)
    await life.traffic.begin("third")


async def complete(life: Moving) -> None:
    """Die at the very end."""
    await life.advance("completed")
    await life.strike("schema", "storefront")
    await life.strike("kafka", "postgres")
    await life.traffic.end(life.shift)
    await audited(life, "tables")
    traffic = life.traffic
    assert traffic.total("requests") > 1000
    assert (traffic.total("failures"), traffic.total("wrong")) == (0, 0), traffic.first_faults()


async def alike(life: Moving) -> dict[str, Any]:
    """The newest comparison of everything has found no difference."""
    found = await life.compared()
    assert found["compared"] > 0
    assert (found["different"], found["unsettled"]) == (0, 0), found
    return found


async def audited(life: Moving, store: str) -> None:
    """Hold a store to what the traffic that has ended knows for true."""

    async def the_same() -> bool:
        asked, wrong = await life.traffic.audit(store, life.traffic.ended)
        assert asked > 0
        assert wrong == 0, f"{wrong} of {asked} things in {store} are otherwise"
        return True

    await eventually(the_same, f"{store} holds what is true", within=30, interval=0.5)
