"""The end of a migration: nothing of it is left but what was asked for, and whoever still uses its routers goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from openfeature import api
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from replank import outbox
from replank.migrate import authority
from replank.migrate.client import ReadRouter, Token, WriteRouter
from replank.testing import eventually
from replank.testing.processes import Process
from replank.testing.servers import kafka_admin, waiting_for_locks

from .life import PATIENCE, Planner, Shop, order, traffic
from .test_life import Serve, environment, serve, shop

__all__ = ["environment", "serve", "shop"]  # fixtures


@dataclass
class Application:
    """A process of the application. It uses the routers of a migration that it need not know the end of."""

    shop: Shop
    reads: ReadRouter
    writes: WriteRouter

    async def put(self, number: int) -> Token:
        value = order(number)
        token = await self.writes.write(
            kv=lambda: self.shop.to_key_value(number, value), tables=lambda: self.shop.to_tables(number, value)
        )
        self.shop.truth[f"order:{number}"] = value
        return token

    async def total(self, number: int, token: Token | None = None) -> float | None:
        async def kv() -> float | None:
            found = await self.shop.source.fetchval("select value from kv_store where key = $1", f"order:{number}")
            return json.loads(found)["total"] if found else None

        async def tables() -> float | None:
            found = await self.shop.target.fetchval("select total::float8 from orders where id = $1", str(number))
            return float(found) if found is not None else None

        return await self.reads.read("orders.list", kv=kv, tables=tables, token=token)

    async def writes_and_reads(self, number: int) -> None:
        token = await self.put(number)
        assert await self.total(number, token) == self.shop.truth[f"order:{number}"]["total"]
        await self.reads.unapplied(token)


@asynccontextmanager
async def application(shop: Shop) -> AsyncIterator[Application]:
    reads = ReadRouter(shop.name, source=shop.source, target=shop.target, flags=api.get_client())
    async with reads:
        yield Application(shop, reads, WriteRouter(shop.name))


@asynccontextmanager
async def reading_by(shop: Shop, mode: str) -> AsyncIterator[None]:
    """What the application's flags say, as OpenFeature keeps them for the process."""
    flag = f"migrate.{shop.name}.reads.orders.list"
    api.set_provider_and_wait(InMemoryProvider({flag: InMemoryFlag("on", {"on": mode})}))
    try:
        yield
    finally:
        api.shutdown()


async def completed(planner: Planner, shop: Shop, **options: Any) -> None:
    await planner.plan(shop, options={"endpoints": ["orders.list"], **options})
    await planner.settings(min_compared_reads=0)
    await planner.do("start")
    await planner.advance_to("completed")
    await eventually(planner.is_idle, "nothing flows back any more", within=PATIENCE)


async def topics_of(kafka: str, name: str) -> list[str]:
    async with kafka_admin(kafka) as admin:
        return [topic for topic in await admin.list_topics() if name in topic]


async def schemas(shop: Shop) -> set[str]:
    """The schemas that a migration has made, or has left, by database."""
    found = "select nspname from pg_namespace where nspname ^@ 'replank_' and nspname <> 'replank_outbox'"
    return {
        f"{side}.{row['nspname']}"
        for side, pool in (("source", shop.source), ("target", shop.target))
        for row in await pool.fetch(found)
    }


@pytest.mark.timeout(300)
async def test_a_retired_migration_leaves_nothing_but_the_guard_and_the_application_goes_on(
    serve: Serve, shop: Shop, kafka: str
) -> None:
    await shop.seed(60)
    async with serve() as planner, AsyncExitStack() as stack:
        await completed(planner, shop)
        assert len(await topics_of(kafka, shop.name)) == 2
        await stack.enter_async_context(reading_by(shop, "new"))
        old = await stack.enter_async_context(application(shop))
        await old.writes_and_reads(1)

        # Something that was told on the way and never published: whoever shares this outbox would wait behind it.
        await shop.target.execute(
            "select replank_outbox.append($1, 'order:1', 'replank.schema.record.changed.v1', $2)",
            f"replank.migrate.{shop.name}.reverse",
            b'{"key": "order:1", "version": 1, "op": "delete"}',
        )
        asked = await planner.do("retire")
        assert (asked["phase"], asked["moving_to"]) == ("retiring", "retired")
        refused = await planner.ask("rollback")
        assert refused.status_code == 409
        assert "not taken back" in refused.json()["detail"]

        async def retired() -> bool:
            await old.writes_and_reads(2)
            # One that has just been started tries the key-value store first.
            async with application(shop) as new:
                await new.writes_and_reads(3)
                assert new.writes.store == "tables"
            return bool((await planner.view())["phase"] == "retired")

        await eventually(retired, "it is retired", within=PATIENCE)
        for number in (4, 5):
            await old.writes_and_reads(number)
            async with application(shop) as new:
                await new.writes_and_reads(number)
        assert await shop.tables() == shop.truth

        assert await schemas(shop) == {"source.replank_retired"}
        assert await topics_of(kafka, shop.name) == []
        async with shop.target.acquire() as conn:
            assert (await outbox.status(conn)).depth == 0
        with pytest.raises(asyncpg.PostgresError) as closed:
            await shop.source.execute("delete from kv_store")
        assert isinstance(authority.refusal(closed.value), authority.WritesElsewhere)
        with pytest.raises(asyncpg.PostgresError):
            await shop.source.execute("truncate kv_store")

        seen = await planner.view()
        assert seen["reads"][0]["mode"] == "new"
        for mode in ("kv", "new"):
            moved = {"mode": mode, "reason": "a test"}
            answer = await planner.client.put(f"/v1/migrations/{planner.id}/reads/orders.list", json=moved)
            assert answer.status_code == 409, answer.text
        audit = (await planner.client.get(f"/v1/migrations/{planner.id}/audit")).json()["items"]
        assert [(line["action"], line["from"], line["to"]) for line in audit[:2]] == [
            ("arrive", "retiring", "retired"),
            ("retire", "completed", "retiring"),
        ]
        assert audit[0]["evidence"] == {"closed": "source", "leave": "closed"}
        events = await planner.database.fetch(
            "select convert_from(value, 'UTF8')::jsonb ->> 'to_phase' as phase from replank_outbox.event"
            " where type = 'replank.schema.migration.phase.changed.v1' order by id desc limit 2"
        )
        assert [row["phase"] for row in events] == ["retired", "retiring"]

        # Its name is free, and its table is not taken for another migration by mistake.
        first = planner.id
        planned = await planner.plan(shop)
        assert planner.id != first
        unmet = {one["name"]: one for one in (await planner.ask("start")).json()["conditions"]}
        assert set(unmet) == {"source_retired", "target"}
        assert "drop function" in unmet["source_retired"]["fix"]
        assert planned["name"] == shop.name
        await shop.source.execute(f"drop function replank_retired.{shop.name}_source() cascade")
        await shop.target.execute("drop table clients, orders, order_items")
        await planner.do("start")
        await shop.source.execute("delete from kv_store where key like 'order:%'")
        shop.truth = {key: value for key, value in shop.truth.items() if key.startswith("client:")}
        await shop.put(7)
        await planner.advance_to("shadow_reads")
        assert await shop.tables() == shop.truth


@pytest.mark.timeout(200)
async def test_the_old_store_is_open_again_where_that_was_asked_for(serve: Serve, shop: Shop) -> None:
    await shop.seed(5)
    async with serve() as planner:
        await completed(planner, shop)
        refused = (await planner.ask("retire", leave="dropped")).json()
        assert [one["name"] for one in refused["conditions"]] == ["leave"]
        await planner.do("retire", leave="open")
        await planner.reaches("retired")
        # As if it had been cut off just before it could say that it had arrived.
        await planner.database.execute(
            "update migration set phase = 'retiring', moving_to = 'retired' where id = $1", UUID(planner.id)
        )
        await planner.reaches("retired")
    assert await schemas(shop) == set()
    await shop.source.execute("delete from kv_store")


@pytest.mark.timeout(200)
async def test_a_retirement_that_is_cut_off_is_gone_on_with_and_lets_no_write_through_meanwhile(
    serve: Serve, shop: Shop, kafka: str, environment: Callable[[], dict[str, str]]
) -> None:
    await shop.seed(5)
    reader = await asyncpg.connect(shop.source_dsn)
    transaction = reader.transaction()
    async with serve(whole=False) as planner:
        async with Process("replank_schema", env=environment()) as first:
            await completed(planner, shop)
            # Guarding waits for no reader; taking the triggers away does.
            await transaction.start()
            await reader.execute("select from kv_store")
            await planner.do("retire")

            async def guarded() -> bool:
                there = await schemas(shop) >= {"source.replank_retired"}
                return there and bool(await waiting_for_locks(shop.source))

            await eventually(guarded, "the triggers are being taken away", within=PATIENCE)
            first.kill()
            await first.exit_code(within=PATIENCE)
        with pytest.raises(asyncpg.PostgresError) as closed:
            await shop.source.execute("delete from kv_store")
        assert isinstance(authority.refusal(closed.value), authority.WritesElsewhere)
        await transaction.rollback()
        await reader.close()
        async with Process("replank_schema", env=environment()):
            await planner.reaches("retired")
    assert await schemas(shop) == {"source.replank_retired"}
    assert await topics_of(kafka, shop.name) == []


@pytest.mark.timeout(300)
async def test_what_a_rollback_has_kept_is_retired_too_closed_open_or_dropped(serve: Serve, shop: Shop) -> None:
    await shop.seed(5)
    async with serve() as planner:
        for leave in ("closed", "open", "dropped"):
            await planner.plan(shop)
            assert (await planner.ask("retire")).status_code == 409
            await planner.do("start")
            await planner.advance_to("verifying")
            assert (await planner.ask("retire")).status_code == 409
            await planner.do("cancel" if leave == "open" else "rollback")
            await planner.reaches("cancelled" if leave == "open" else "rolled_back")
            assert await schemas(shop) >= {f"target.replank_m_{shop.name}"}
            await planner.do("retire", leave=leave)
            await planner.reaches("retired")
            again = "update migration set phase = 'retiring', moving_to = 'retired' where id = $1"
            await planner.database.execute(again, UUID(planner.id))
            await planner.reaches("retired")
            await shop.put(1)
            there = await shop.target.fetchval("select to_regclass('orders') is not null")
            if leave == "closed":
                assert await schemas(shop) == {"target.replank_retired"}
                with pytest.raises(asyncpg.PostgresError) as refusal:
                    await shop.target.execute("delete from orders")
                assert isinstance(authority.refusal(refusal.value), authority.WritesElsewhere)
                await planner.plan(shop)
                (target,) = (await planner.ask("start")).json()["conditions"]
                assert "which a retired migration has left" in target["detail"]
                await shop.target.execute("drop schema replank_retired cascade")
            else:
                assert await schemas(shop) == set()
                assert there is (leave == "open")
            if there:
                await shop.target.execute("delete from orders; drop table clients, orders, order_items")


@pytest.mark.timeout(200)
async def test_tables_that_were_dropped_leave_nothing_to_retire(serve: Serve, shop: Shop) -> None:
    async with serve() as planner:
        await planner.plan(shop)
        await planner.do("start")
        await planner.do("rollback", tables="drop")
        await planner.reaches("rolled_back")
        (left,) = (await planner.ask("retire")).json()["conditions"]
        assert (left["name"], left["fix"]) == ("left", "nothing: its name is free as it is")


@pytest.mark.timeout(300)
async def test_a_run_that_is_taken_back_under_writes_hides_nothing_from_the_next_of_its_name(
    serve: Serve, shop: Shop
) -> None:
    await shop.seed(100)
    async with serve() as planner, traffic(shop, range(80, 140)):
        await planner.plan(shop)
        for _ in range(2):
            await planner.do("start")
            await planner.advance_to("verifying")
            await planner.do("rollback", tables="drop")
            await planner.reaches("rolled_back")
        await planner.do("start")
        await planner.advance_to("backfilling")
        await planner.do("cancel", tables="drop")
        await planner.reaches("cancelled")
        await planner.plan(shop)
        await planner.do("start")
        await planner.advance_to("shadow_reads")

    async def alike() -> bool:
        assert await shop.tables() == shop.truth
        return True

    async with serve() as again:
        again.id = planner.id
        await eventually(alike, "the tables hold the truth", within=PATIENCE)
        async with shop.source.acquire() as conn:
            assert (await outbox.status(conn)).depth == 0
