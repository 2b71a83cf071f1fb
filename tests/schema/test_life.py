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

from replank.migrate import authority
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
            back = await planner.do("rollback", tables="drop")
            assert back["reads"][0]["mode"] == "new", "the key-value store is behind"
            arrived = await planner.reaches("rolled_back")
        assert arrived["reads"][0]["mode"] == "kv"
        assert await shop.key_value() == shop.truth


async def test_it_is_cancelled_after_the_cut_over_without_losing_a_write(serve: Serve, shop: Shop) -> None:
    await shop.seed(200)
    async with serve() as planner:
        await planner.plan(shop)
        await planner.settings(min_compared_reads=0)
        async with traffic(shop, range(190, 230)):
            await planner.do("start")
            await planner.advance_to("new_only")
            await planner.do("cancel", tables="drop")
            arrived = await planner.reaches("cancelled")
        assert arrived["reads"][0]["mode"] == "kv"
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
async def test_what_is_written_at_the_very_end_of_a_run_is_not_told_to_the_next(serve: Serve, shop: Shop) -> None:
    await shop.seed(5)
    async with serve() as planner:
        await planner.plan(shop)
        await planner.do("start")
        await planner.advance_to("verifying")
        async with shop.source.acquire() as writer, writer.transaction():
            await writer.execute("update kv_store set value = jsonb_set(value, '{total}', '7') where key = 'order:1'")
            await planner.do("rollback", tables="drop")
            await eventually(lambda: waits_for(shop, "kv_store"), "capture is being removed", within=PATIENCE)
        await planner.reaches("rolled_back")
        await shop.put(1)
        await planner.do("start")
        await planner.advance_to("verifying")
        await agree(shop)


async def waits_for(shop: Shop, table: str) -> bool:
    """Whether somebody waits for a lock on a table of the key-value store's database."""
    waiting = "select exists (select from pg_locks where relation = $1::text::regclass and not granted)"
    return bool(await shop.source.fetchval(waiting, table))


async def test_a_part_that_failed_and_works_again_says_so(serve: Serve, shop: Shop) -> None:
    async with serve() as planner:
        await planner.plan(shop)
        await planner.do("start")
        before = (await observer(planner))["since"]
        await shop.target.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and application_name = 'replank-migrate-schema'"
        )

        async def works_again() -> bool:
            assert (await observer(planner))["since"] != before
            return True

        await eventually(works_again, "the observer has failed and works again", within=PATIENCE)


async def observer(planner: Planner) -> dict[str, Any]:
    """The part that looks at the databases, once it runs and nothing is wrong."""

    async def runs() -> dict[str, Any]:
        seen = await planner.view()
        found = [part for part in seen["work"] if part["name"] == "observer"]
        assert [part["state"] for part in found] == ["running"], seen["work"]
        assert not seen["problem"], seen["work"]
        assert seen["authority"] is not None
        return dict(found[0])

    return await eventually(runs, "the observer runs", within=PATIENCE)


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
async def test_a_reference_to_nothing_is_told_early_and_holds_the_writes_back_until_its_record_is_mended(
    serve: Serve, shop: Shop
) -> None:
    await shop.seed(50)
    shop.truth["order:7"] |= {"clientId": "gone"}
    await shop.source.execute(
        "update kv_store set value = jsonb_set(value, '{clientId}', '\"gone\"') where key = 'order:7'"
    )
    async with serve() as planner:
        await planner.plan(shop)
        await planner.settings(min_compared_reads=0)
        await planner.do("start")
        await planner.advance_to("verifying")

        async def says(where: str, *words: str) -> bool:
            seen = await planner.view()
            parts = {part["name"]: part["detail"] for part in seen["work"]}
            names = {condition["name"]: condition for condition in seen["next"]["conditions"]}
            told = names[where]["detail"] + names[where]["fix"] if where in names else parts.get(where, "")
            assert all(word in told for word in words), told
            return True

        found = "1 row of orders whose client_id is in no row of clients (orders_client_id_fkey), such as order:"
        await eventually(lambda: says("references", f"{found}7"), "the work tells of it", within=PATIENCE)
        await planner.advance_to("new_with_fallback")
        words = (f"{found}7", "mend these records in the key-value store")
        await eventually(lambda: says("references_hold", *words), "it names the record", within=PATIENCE)
        refused = await planner.ask("advance")
        assert "references_hold" in [condition["name"] for condition in refused.json()["conditions"]]
        await shop.put(7)
        await planner.may_advance()

        # One that is written to the tables themselves, after the writes have moved and before the constraint is there.
        async with shop.target.acquire() as conn, conn.transaction():
            await conn.execute("lock table orders in access share mode")
            await planner.do("advance")
            await planner.reaches("new_only")
            await conn.execute("insert into orders (id, client_id, total) values ('8000', 'gone', 1)")
        words = (f"{found}8000", "mend or delete these rows in the tables")
        await eventually(lambda: says("constraints", *words), "it is not just told to wait", within=PATIENCE)
        await shop.target.execute("delete from orders where id = '8000'")
        await planner.advance_to("completed")


@pytest.mark.timeout(200)
async def test_tables_that_a_rollback_has_kept_are_named_before_a_start_is_refused_for_them(
    serve: Serve, shop: Shop
) -> None:
    await shop.seed(5)
    async with serve() as planner:
        await planner.plan(shop)
        await planner.do("start")
        await planner.advance_to("verifying")
        await planner.do("rollback")
        following = (await planner.reaches("rolled_back"))["next"]
        assert not following["allowed"]
        (unmet,) = [condition for condition in following["conditions"] if not condition["met"]]
        (refused,) = (await planner.ask("start")).json()["conditions"]
        assert unmet == refused
        assert "the table orders holds rows already" in unmet["detail"]
        assert "the rollback has kept" in unmet["fix"]
        # Whoever still takes them for the store that is written to is told so, and loses nothing.
        with pytest.raises(asyncpg.PostgresError) as closed:
            await shop.target.execute("delete from orders")
        assert isinstance(authority.refusal(closed.value), authority.WritesElsewhere)
        await shop.target.execute("drop table clients, orders, order_items")
        assert (await planner.view())["next"]["allowed"]
        await planner.do("start")
        await planner.advance_to("verifying")


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
