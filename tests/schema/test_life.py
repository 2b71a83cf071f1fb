"""The whole life of a migration, through the service's own interface, on real servers and under writes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from replank.testing import eventually
from replank.testing.processes import Process
from replank.testing.services import Issuer, basics, http_alone, living, playing_rights
from replank_schema.application import compose
from replank_schema.settings import SchemaSettings

from .life import PATIENCE, Planner, Shop, a_shop, traffic

ADA = ("user:ada", "plan", "system:replank")


@pytest_asyncio.fixture
async def shop(postgres_server: str) -> AsyncIterator[Shop]:
    async with a_shop(postgres_server) as made:
        yield made


Serve = Callable[..., AbstractAsyncContextManager[Planner]]


@pytest_asyncio.fixture
async def serve(
    tmp_path: Path, database: asyncpg.Pool, postgres_dsn: str, kafka: str, shop: Shop
) -> AsyncIterator[Serve]:
    """Starts the service, whole or (``whole=False``) without its work, and gives somebody who may plan."""
    issuer = Issuer(tmp_path)
    async with playing_rights(ADA) as rights:

        @asynccontextmanager
        async def start(*, whole: bool = True, **given: Any) -> AsyncIterator[Planner]:
            known = basics(issuer, dsn=postgres_dsn, kafka=kafka, name="schema", authz_url=rights.url)
            databases = {"source": shop.source_dsn, "target": shop.target_dsn}
            composed = compose(SchemaSettings.model_validate({**known, "databases": databases, **given}))
            async with (living if whole else http_alone)(composed, issuer.token()) as client:
                yield Planner(client, database)

        yield start


@pytest.fixture
def environment(
    tmp_path: Path, postgres_dsn: str, kafka: str, shop: Shop, serve: Serve
) -> Callable[[], dict[str, str]]:
    """The variables of a process of the service, beside what `serve` starts."""

    def made() -> dict[str, str]:
        folder = tmp_path / "worker"
        folder.mkdir(exist_ok=True)
        known = basics(Issuer(folder), dsn=postgres_dsn, kafka=kafka, name="schema", authz_url="http://127.0.0.1:9")
        databases = json.dumps({"source": shop.source_dsn, "target": shop.target_dsn})
        given = {**known, "databases": databases, "lease_seconds": 1.0}
        return {f"REPLANK_SCHEMA_{name.upper()}": str(value) for name, value in given.items()}

    return made


async def agree(shop: Shop) -> None:
    """Both stores come to hold the truth."""

    async def hold_it() -> bool:
        assert await shop.tables() == shop.truth
        assert await shop.key_value() == shop.truth
        return True

    await eventually(hold_it, "both stores hold the truth", within=30)


@pytest.mark.timeout(300)
async def test_a_whole_life_with_ways_back_loses_no_write(serve: Serve, shop: Shop) -> None:
    await shop.seed(500)
    async with serve() as planner:
        await planner.plan(shop)
        await planner.settings(min_compared_reads=0, chunk_rows=100)
        async with traffic(shop, range(480, 560)):
            await planner.do("start")
            await planner.advance_to("new_only")
            # A way back in the middle, and on again.
            await planner.do("rollback", to="new_with_fallback")
            await planner.reaches("new_with_fallback")
            await planner.advance_to("new_only")
        await agree(shop)
        async with traffic(shop, range(480, 560)):
            await planner.advance_to("completed")
            await eventually(planner.is_idle, "nothing flows back any more", within=PATIENCE)
        # The way back has to tell the key-value store of everything first.
        async with traffic(shop, range(480, 560)):
            await planner.do("rollback", tables="drop")
            await planner.reaches("rolled_back")
        assert await shop.key_value() == shop.truth


@pytest.mark.timeout(300)
async def test_a_process_that_is_killed_in_the_backfill_is_followed_by_another_that_goes_on(
    serve: Serve, shop: Shop, tmp_path: Path, environment: Callable[[], dict[str, str]]
) -> None:
    await shop.seed(3000)
    async with serve(whole=False) as planner:
        await planner.plan(shop)
        # Slow enough to be killed in the middle.
        await planner.settings(chunk_rows=50, rows_per_second=500, min_compared_reads=0)
        await planner.do("start")

        async def moved(at_least: int) -> int:
            found = (await planner.view())["progress"]
            assert found is not None
            assert found["rows"] >= at_least
            return int(found["rows"])

        async with Process("replank_schema", env=environment()) as first:
            await planner.advance_to("backfilling")
            await eventually(lambda: moved(300), "it is in the middle", within=PATIENCE)
            first.kill()
            await first.exit_code(within=PATIENCE)
        assert (await planner.view())["phase"] == "backfilling"
        in_the_target = await shop.target.fetchval("select count(*) from orders")
        assert in_the_target < 3000
        async with Process("replank_schema", env=environment()):
            async with traffic(shop, range(2900, 3100)):
                await eventually(lambda: moved(in_the_target + 100), "another one goes on", within=PATIENCE)
                await planner.settings(rows_per_second=None, chunk_rows=1000)
                await planner.advance_to("shadow_reads")
            await agree(shop)
            # It went on: what the first one had filled was neither filled nor read again.
            progress = (await planner.view())["progress"]
            assert progress["filled"] + progress["kept"] <= len(shop.truth) + 200


@pytest.mark.timeout(200)
async def test_a_pause_stops_the_backfill_and_nothing_that_is_written_meanwhile(serve: Serve, shop: Shop) -> None:
    await shop.seed(2000)
    async with serve() as planner:
        await planner.plan(shop)
        await planner.settings(chunk_rows=50, rows_per_second=200)
        await planner.do("start")
        await planner.advance_to("backfilling")
        paused = await planner.do("pause")
        assert paused["paused"]
        assert (await planner.ask("advance")).status_code == 409

        async def stopped() -> bool:
            return "backfill" not in {part["name"] for part in (await planner.view())["work"]}

        await eventually(stopped, "the backfill has stopped", within=PATIENCE)
        before = await shop.target.fetchval("select count(*) from orders")
        await shop.put(5000)

        async def applied() -> bool:
            return bool(await shop.target.fetchval("select count(*) from orders where id = '5000'"))

        await eventually(applied, "what is written is carried on", within=PATIENCE)
        assert await shop.target.fetchval("select count(*) from orders") == before + 1
        await planner.do("resume")
        await planner.settings(rows_per_second=None)
        await planner.advance_to("verifying")
        await agree(shop)
        await planner.do("cancel", tables="drop")
        await planner.reaches("cancelled")
        assert [left for left in await shop.traces() if left != "replank_outbox"] == []
        assert await shop.key_value() == shop.truth


@pytest.mark.timeout(200)
async def test_a_record_that_cannot_be_converted_stops_nothing_is_mended_or_accepted_by_name(
    serve: Serve, shop: Shop
) -> None:
    await shop.seed(50)
    bad = {"clientId": "1", "total": "much", "items": [], "note": "n"}
    for key in ("order:bad", "order:worse"):
        await shop.source.execute("insert into kv_store values ($1, $2::jsonb)", key, json.dumps(bad))
    async with serve() as planner:
        await planner.plan(shop, options={"dry_run_rejects": 0.5})
        await planner.settings(min_compared_reads=0)
        await planner.do("start")
        await planner.advance_to("new_with_fallback")
        listed = (await planner.client.get(f"/v1/migrations/{planner.id}/rejects", params={"limit": 1})).json()
        assert [(item["key"], item["path"], item["accepted"]) for item in listed["items"]] == [
            ("order:bad", "total", False)
        ]
        assert "much" not in json.dumps(listed)
        assert listed["next"] is not None
        assert (await planner.ask("advance")).json()["conditions"][0]["name"] == "rejects_settled"

        # One is mended where it is and sent again, the other one given up by name.
        assert (await planner.ask("rejects/order:bad/retry")).json() == {"asked": 1}
        await shop.source.execute(
            "update kv_store set value = jsonb_set(value, '{total}', '12.5') where key = 'order:bad'"
        )
        assert (await planner.ask("rejects/retry", keys=["order:bad"])).status_code == 202

        async def mended() -> bool:
            return bool(await shop.target.fetchval("select count(*) from orders where id = 'bad' and total = 12.5"))

        await eventually(mended, "it is in the tables", within=PATIENCE)
        assert (await planner.ask("rejects/accept")).json() == {"accepted": 1}
        found = await planner.may_advance()
        assert found["rejects"] == {"open": 0, "accepted": 1}
        audit = (await planner.client.get(f"/v1/migrations/{planner.id}/audit")).json()["items"]
        assert audit[0]["action"] == "accept_rejects"
        assert audit[0]["evidence"]["keys"] == ["order:worse"]


@pytest.mark.timeout(200)
async def test_it_goes_by_itself_as_far_as_it_is_told(serve: Serve, shop: Shop) -> None:
    await shop.seed(100)
    async with serve() as planner:
        await planner.plan(shop, settings={"auto_until": "shadow_reads"})
        await planner.do("start")
        await planner.reaches("shadow_reads")
        audit = (await planner.client.get(f"/v1/migrations/{planner.id}/audit")).json()["items"]
        assert [line["to"] for line in reversed(audit) if line["action"] in ("start", "advance")] == [
            "capturing",
            "backfilling",
            "verifying",
            "shadow_reads",
        ]
        assert all(line["who"] == "service:schema" for line in audit if line["action"] == "advance")
