"""What cannot be started is refused before anything is touched: in neither database is anything afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit, urlunsplit

import pytest

from .life import Planner, Shop
from .test_life import Serve, serve, shop

__all__ = ["serve", "shop"]  # fixtures


async def no_primary_key(shop: Shop) -> None:
    await shop.source.execute("alter table kv_store drop constraint kv_store_pkey")


async def another_key(shop: Shop) -> None:
    await shop.source.execute("alter table kv_store drop constraint kv_store_pkey, add primary key (key, value)")


async def no_table(shop: Shop) -> None:
    await shop.source.execute("drop table kv_store")


async def value_is_text(shop: Shop) -> None:
    await shop.source.execute("alter table kv_store alter value type text")


async def rows_in_the_target(shop: Shop) -> None:
    await shop.target.execute("create table clients (id text primary key, name text, rest jsonb)")
    await shop.target.execute("insert into clients values ('1', 'somebody else''s', null)")


async def another_table_in_the_target(shop: Shop) -> None:
    await shop.target.execute("create table orders (id text primary key, client_id integer)")


async def values_that_overflow(shop: Shop) -> None:
    await shop.source.execute(
        "insert into kv_store select 'order:' || n, jsonb_build_object('clientId', '1', 'total', 1e15)"
        " from generate_series(1001, 1100) as n"
    )


@pytest.mark.parametrize(
    ("spoil", "condition"),
    [
        (no_primary_key, "source_primary_key"),
        (another_key, "source_primary_key"),
        (no_table, "source_no_table"),
        (value_is_text, "source_value_type"),
        (rows_in_the_target, "target"),
        (another_table_in_the_target, "target"),
        (values_that_overflow, "dry_run"),
    ],
)
async def test_a_start_that_would_not_end_well_is_refused_by_name_and_touches_nothing(
    serve: Serve, shop: Shop, spoil: Callable[[Shop], Awaitable[None]], condition: str
) -> None:
    await shop.seed(10)
    async with serve(whole=False) as planner:
        await planner.plan(shop)
        await spoil(shop)
        before = await shop.traces()
        await refused(planner, condition)
        assert await shop.traces() == before
        assert (await planner.view())["phase"] == "planned"


async def test_a_role_that_may_not_is_told_what_it_lacks_and_touches_nothing(serve: Serve, shop: Shop) -> None:
    await shop.seed(1)
    role = shop.name
    await shop.source.execute(f"create role {role} login password 'secret'")
    try:
        await shop.source.execute(f"grant select on kv_store to {role}")
        parts = urlsplit(shop.source_dsn)
        dsn = urlunsplit(parts._replace(netloc=f"{role}:secret@{parts.netloc.rpartition('@')[2]}"))
        async with serve(whole=False, databases={"source": dsn, "target": dsn}) as planner:
            await planner.plan(shop)
            before = await shop.traces()
            conditions = await refused(planner, "source_denied")
            assert "TRIGGER" in conditions["source_denied"]
            assert "source_schema_denied" in conditions
            assert "target" in conditions
            assert await shop.traces() == before
    finally:
        await shop.source.execute(f"drop owned by {role}; drop role {role}")


async def refused(planner: Planner, condition: str) -> dict[str, str]:
    answer = await planner.ask("start")
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:replank:problem:transition-refused"), answer.text
    unmet = {found["name"]: found["detail"] for found in answer.json()["conditions"]}
    assert condition in unmet
    assert all(found["fix"] for found in answer.json()["conditions"])
    return unmet


async def test_what_is_not_there_or_not_ready_is_named(serve: Serve, shop: Shop) -> None:
    async with serve(whole=False, databases={"source": shop.source_dsn}) as planner:
        await planner.plan(shop)
        unmet = await refused(planner, "databases")
        assert "target" in unmet["databases"]
        for command in ("advance", "pause", "resume", "rollback"):
            answer = await planner.ask(command)
            assert answer.status_code == 409, (command, answer.text)
            assert answer.json()["fix"], command
        stale = await planner.ask("cancel", expected="verifying")
        assert stale.json()["type"] == "urn:replank:problem:phase-changed"
        assert (await planner.ask("cancel")).json()["phase"] == "cancelled"
        assert (await planner.ask("start")).status_code == 409
