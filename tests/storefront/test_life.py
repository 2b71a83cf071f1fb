"""The shop sells through the whole life of a migration, there and back, and every answer is true.

The parts of the library do here what the schema service does with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import openfeature.api
import pytest

from replank import flags, outbox
from replank.migrate import capture, ddl, flip, mapping, reverse, topics
from replank.migrate.applier import Applier
from replank.migrate.backfill import Backfill
from replank.migrate.client import Mode
from replank.migrate.compile import compile as compile_mapping
from replank.migrate.flip import Stores
from replank.migrate.mapping import Mapping
from replank.outbox.relay import Relay
from replank.testing import eventually
from replank_storefront.audit import audit
from replank_storefront.drive import Drive, Limits
from replank_storefront.generate import Sizes, Verdict
from replank_storefront.requester import TokenFile
from replank_storefront.seed import seed
from replank_storefront.settings import StorefrontSettings

from . import moved
from .conftest import Databases, serving

ENDPOINTS = (
    "site.list",
    "site.offer",
    "product.list",
    "product.get",
    "product.search",
    "order.get",
    "client.report",
    "event.counts",
)


@asynccontextmanager
async def appliers(shop: Mapping, stores: Stores) -> AsyncIterator[None]:
    """What carries changes from one database to the other, in both directions."""
    await topics.ensure_topics(stores.kafka, shop.name, 3)
    stop = asyncio.Event()
    directions: tuple[topics.Direction, ...] = ("forward", "reverse")
    running = [
        Applier(mapping=shop, kafka=stores.kafka, source=stores.source, target=stores.target, direction=direction)
        for direction in directions
    ]
    tasks = [asyncio.create_task(applier.run(stop)) for applier in running]
    try:
        async with Relay(stores.target, stores.kafka):
            await eventually(lambda: not any(applier.problem for applier in running), "the appliers run", within=30)
            yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        await topics.remove_topics(stores.kafka, shop.name)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("same_transaction", [True, False], ids=["one database", "two databases"])
async def test_traffic_sees_nothing_of_a_migration_there_and_back(
    databases: Databases,
    settings: StorefrontSettings,
    kafka: str,
    auth: TokenFile,
    kv: asyncpg.Connection,
    *,
    same_transaction: bool,
) -> None:
    text = moved.MAPPING.read_text().replace("name: storefront", f"name: {settings.migration}", 1)
    shop = mapping.load(text)
    compiled = compile_mapping(shop)
    target = databases.kv if same_transaction else databases.tables
    stores = Stores(shop.name, databases.kv, target, kafka, same_transaction)
    settings = StorefrontSettings.model_validate({**settings.model_dump(), "tables_dsn": target, "run_relay": True})
    planted = await seed(kv, Sizes.of(1_000))
    async with AsyncExitStack() as stack:
        tables = await asyncpg.connect(target)
        stack.push_async_callback(tables.close)
        await tables.execute("create extension if not exists pg_trgm")
        await outbox.install(tables)
        url = await stack.enter_async_context(serving(settings))
        drive = Drive(url, auth, Limits(workers=3, products=5, patience=30))
        driving = asyncio.create_task(drive.run())
        stack.callback(driving.cancel)

        async def sells(requests: int = 150) -> None:
            enough = drive.numbers.requests + requests
            await eventually(lambda: drive.numbers.requests >= enough or driving.done(), "the shop sells", within=60)
            assert not drive.numbers.first, drive.numbers.first

        async def read(mode: Mode) -> None:
            async with kv.transaction():
                for endpoint in ENDPOINTS:
                    await flags.set_flag(kv, f"migrate.{shop.name}.reads.{endpoint}", mode, by="user:test")
            client = openfeature.api.get_client()
            await eventually(
                lambda: all(
                    client.get_string_value(f"migrate.{shop.name}.reads.{endpoint}", "kv") == mode
                    for endpoint in ENDPOINTS
                ),
                f"everybody reads {mode}",
            )

        await sells()
        await ddl.create_tables(target, compiled)
        await capture.install(kv, shop, same_transaction=same_transaction)
        await reverse.install(tables, shop, same_transaction=same_transaction)
        if not same_transaction:
            await stack.enter_async_context(appliers(shop, stores))
        await sells()
        filled = await Backfill(
            mapping=shop, source=databases.kv, target=target, same_transaction=same_transaction
        ).run()
        assert filled.rejected == len(planted.of(Verdict.REJECTED))
        await ddl.build_indexes(target, compiled)
        for mode in ("compare", "new_with_fallback", "new"):
            await read(mode)
            await sells()
        assert (await flip.to_tables(stores)).side == "target"
        await sells()
        assert (await flip.to_key_value(stores)).side == "source"
        await sells()
        await read("kv")
        assert (await flip.to_tables(stores)).side == "target"
        await sells()
        await read("new")
        await sells()
        drive.stop.set()
        result = await driving
        # It was no quiet walk past all of this: the tables took writes, and they came back.
        assert await kv.fetchval(f"select count(*) from {compiled.schema}.restored") > 20
        counted = await tables.fetch(
            f"select outcome, sum(reads) from {compiled.schema}.compared_read group by outcome"
        )
        compared = {row["outcome"]: int(row["sum"]) for row in counted}
        assert compared["match"] > 20
        assert not compared.keys() & {"mismatch", "error"}
        assert result.clean, result.as_json()
        assert (await flip.to_key_value(stores)).side == "source"
        for store, conn in (("kv", kv), ("tables", tables)):
            found = await audit(conn, store, result.truth)  # type: ignore[arg-type]
            assert (found.wrong, found.doubtful) == (0, 0), found.first
