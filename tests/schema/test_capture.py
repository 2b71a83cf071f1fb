"""However changes are captured, a migration has the same life: by triggers or a writer, over Kafka or at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import pytest_asyncio

from replank.migrate import authority
from replank.testing import eventually

from .life import PATIENCE, Planner, Shop, a_shop, traffic
from .test_life import Serve, agree, serve

__all__ = ["serve"]  # a fixture

KINDS: dict[str, dict[str, Any]] = {
    "a writer": {"capture": "writer"},
    "a writer, at once": {"capture": "writer", "same_transaction": True},
    "triggers, at once": {"same_transaction": True},
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest_asyncio.fixture
async def shop(postgres_server: str, kind: dict[str, Any]) -> AsyncIterator[Shop]:
    async with a_shop(postgres_server, databases=1 if kind.get("same_transaction") else 2) as made:
        made.by_writer = kind.get("capture") == "writer"
        yield made


@asynccontextmanager
async def a_role_without_triggers(shop: Shop) -> AsyncIterator[str]:
    """The DSN of a role that may do to the source all that a migration by a writer needs, and make no trigger."""
    role, parts = shop.name, urlsplit(shop.source_dsn)
    database = parts.path.removeprefix("/")
    await shop.source.execute(f"create role {role} login password 'secret'")
    try:
        await shop.source.execute(f"grant select, insert, update, delete on kv_store to {role}")
        await shop.source.execute(f'grant create on database "{database}" to {role}')
        yield urlunsplit(parts._replace(netloc=f"{role}:secret@{parts.netloc.rpartition('@')[2]}"))
    finally:
        await shop.source.execute(f"drop owned by {role} cascade; drop role {role}")


@pytest.mark.timeout(300)
async def test_a_whole_life_and_back_however_changes_are_captured(
    serve: Serve, shop: Shop, kind: dict[str, Any]
) -> None:
    await shop.seed(200)
    async with serve() as planner, traffic(shop, range(180, 240)):
        await live(planner, shop, kind)
        await planner.do("rollback", to="new_with_fallback")
        await planner.reaches("new_with_fallback")
        await planner.advance_to("completed")
        await eventually(planner.is_idle, "nothing flows back any more", within=PATIENCE)
        await planner.do("rollback", tables="drop")
        await planner.reaches("rolled_back")
    assert await shop.key_value() == shop.truth
    left = [found for found in await shop.traces() if found not in ("replank_outbox", "kv_store")]
    assert left == []


@pytest.mark.timeout(300)
async def test_a_whole_life_to_its_end_however_changes_are_captured(
    serve: Serve, shop: Shop, kind: dict[str, Any]
) -> None:
    await shop.seed(50)
    async with serve() as planner:
        async with traffic(shop, range(30, 60)):
            await live(planner, shop, kind)
        await agree(shop)
        async with traffic(shop, range(30, 60)):
            await planner.advance_to("completed")
            await eventually(planner.is_idle, "nothing flows back any more", within=PATIENCE)
            before = await shop.key_value()
            await planner.do("retire")
            await planner.reaches("retired")
            for number in range(10):
                await shop.put(number)
    assert await shop.tables() == shop.truth
    assert await shop.key_value() == before, "the old store takes no writes any more"


async def live(planner: Planner, shop: Shop, kind: dict[str, Any]) -> None:
    """To the cut-over."""
    await planner.plan(shop, options={"endpoints": ["orders.list"], "partitions": 2, **kind})
    await planner.settings(min_compared_reads=0, chunk_rows=50)
    await planner.do("start")
    await planner.advance_to("new_only")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", [KINDS["a writer"]], ids=["a writer"])
async def test_a_writer_needs_no_right_to_make_triggers(serve: Serve, shop: Shop, kind: dict[str, Any]) -> None:
    await shop.seed(20)
    async with (
        a_role_without_triggers(shop) as dsn,
        serve(databases={"source": dsn, "target": shop.target_dsn}) as planner,
    ):
        await planner.plan(shop)
        refused = (await planner.ask("start")).json()["conditions"]
        assert [one["name"] for one in refused] == ["source_denied"]
        async with traffic(shop, range(10, 30)):
            await live(planner, shop, kind)
        await agree(shop)
        assert await shop.source.fetchval("select count(*) from pg_trigger where tgname ^@ 'replank_m_'") == 0
        # What goes past the writer is neither told nor refused.
        await shop.source.execute("delete from kv_store where key = 'order:1'")
        with pytest.raises(authority.WritesElsewhere):
            await shop.to_key_value(1, None)
        await planner.do("rollback", tables="drop")
        await planner.reaches("rolled_back")
        await shop.put(2)
        assert (await shop.key_value())["order:2"] == shop.truth["order:2"]
