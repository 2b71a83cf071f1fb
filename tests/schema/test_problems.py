"""What keeps a migration from going on is told where people look: in its status, with what to do, and in a metric."""

from __future__ import annotations

from uuid import UUID

import pytest

from replank.testing import eventually

from .life import PATIENCE, Planner, Shop
from .test_life import Serve, serve, shop

__all__ = ["serve", "shop"]  # fixtures


async def met_problem(planner: Planner, shop: Shop) -> float:
    """What the metric says of the migration in this process."""
    lines = (await planner.client.get("/metrics")).text.splitlines()
    found = f'replank_migrate_problem{{migration="{shop.name}"}} '
    return next(float(line.removeprefix(found)) for line in lines if line.startswith(found))


async def tells(planner: Planner, shop: Shop, *words: str) -> None:
    async def told() -> bool:
        problem = (await planner.view())["problem"]
        assert all(word in problem for word in words), problem
        assert await met_problem(planner, shop) == 1
        return True

    await eventually(told, "the problem is told", within=PATIENCE)


@pytest.mark.timeout(200)
async def test_a_plan_that_settings_do_not_fit_any_more_says_so_in_its_status_and_goes_on_when_they_do(
    serve: Serve, shop: Shop
) -> None:
    await shop.seed(5)
    async with serve() as planner:
        await planner.plan(shop)
        await planner.do("start")
        await planner.may_advance()

        async def well() -> bool:
            return await met_problem(planner, shop) == 0

        await eventually(well, "all is well", within=PATIENCE)
    async with serve(databases={"source": shop.source_dsn}) as lacking:
        lacking.id = planner.id
        await tells(lacking, shop, "the database target is not configured", "REPLANK_SCHEMA_DATABASES")
        assert (await lacking.client.get(f"/v1/migrations/{planner.id}/rejects")).status_code == 409
    async with serve() as again:
        again.id = planner.id
        await again.advance_to("verifying")
        assert (await again.view())["problem"] == ""


@pytest.mark.timeout(200)
async def test_a_mapping_that_this_version_cannot_read_is_told_and_breaks_nothing_else(
    serve: Serve, shop: Shop
) -> None:
    await shop.seed(5)
    async with serve() as planner:
        await planner.plan(shop)
        await unreadable(planner)
        (refused,) = (await planner.ask("start")).json()["conditions"]
        assert refused["name"] == "mapping"
        assert "entities.order.table" in refused["detail"]
        assert (await planner.view())["phase"] == "planned"
        await planner.do("cancel")

        await planner.plan(shop)
        await planner.do("start")
        await planner.may_advance()
        await unreadable(planner)
    async with serve() as later:
        later.id = planner.id
        await tells(later, shop, "cannot work on this migration", "entities.order.table")
        assert (await later.ask("rejects/retry")).status_code == 409


async def unreadable(planner: Planner) -> None:
    """The plan as another version might have kept it."""
    spoilt = "update migration set plan = jsonb_set(plan, '{mapping,entities,order,table}', '7') where id = $1"
    await planner.database.execute(spoilt, UUID(planner.id))


@pytest.mark.timeout(200)
async def test_a_unique_index_that_records_are_in_the_way_of_names_them_and_is_built_when_they_are_mended(
    serve: Serve, shop: Shop
) -> None:
    # Order 20 is of the same client as order 0, and there can be only one.
    await shop.seed(21)
    mapping = shop.mapping.replace("{columns: [client_id]}", "{columns: [client_id], unique: true}")
    async with serve() as planner:
        await planner.plan(shop, mapping=mapping)
        await planner.do("start")
        await planner.advance_to("verifying")

        async def told() -> bool:
            (indexes,) = [one for one in (await planner.view())["next"]["conditions"] if one["name"] == "indexes"]
            assert indexes["detail"] == (
                f"2 rows of orders that share their client_id with others ({shop.name}_orders_client), "
                "such as order:0, order:20"
            )
            assert "mend or delete these records in the key-value store" in indexes["fix"]
            return True

        await eventually(told, "it names the index and the records", within=PATIENCE)
        await shop.delete(20)
        await planner.advance_to("shadow_reads")
