"""Changing tuples, and deciding from them, on a real database and a real cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from replank.cache import Cache
from replank.contracts.auth_cache import AccessGranted, AccessRevoked
from replank.errors import DependencyUnavailable
from replank.postgres import Pools
from replank.testing import eventually
from replank.testing.faults import FaultProxy
from replank.testing.plugin import FaultProxies
from replank.testing.services import appended
from replank_auth_cache.tuples import service, store
from replank_auth_cache.tuples.decisions import Decisions
from replank_auth_cache.tuples.model import OnConflict, RelationTuple, UnknownStore, WriteConflict

ADA_OWNS = RelationTuple("user:ada", "owner", "migration:1")
BEN_OWNS = RelationTuple("user:ben", "owner", "migration:1")


@dataclass
class Bench:
    """A store in a database, and one process's decisions about it, through a cache that can be cut off."""

    database: asyncpg.Pool
    pools: Pools
    decisions: Decisions
    valkey: FaultProxy

    async def change(
        self,
        *writes: RelationTuple,
        deletes: tuple[RelationTuple, ...] = (),
        on_conflict: OnConflict = OnConflict.ERROR,
    ) -> int:
        async with self.database.acquire() as conn, conn.transaction():
            return await service.change(
                conn,
                self.decisions,
                "replank",
                writes=writes,
                deletes=deletes,
                on_duplicate=on_conflict,
                on_missing=on_conflict,
                by="user:root",
            )

    async def ensure(self, *wanted: RelationTuple) -> int:
        """Returns the store's revision afterwards."""
        async with self.database.acquire() as conn, conn.transaction():
            await service.ensure(conn, self.decisions, "replank", wanted, by="user:root")
            held = await store.revision(conn, "replank")
        assert held is not None
        return held[1]

    async def allowed(self, wanted: RelationTuple) -> bool:
        return await self.decisions.allowed("replank", wanted)

    async def remove_behind_its_back(self, gone: RelationTuple) -> None:
        """Delete a row without raising the revision: only a cached decision can still say yes after this."""
        async with self.database.acquire() as conn:
            await conn.execute("delete from relation_tuple where actor = $1 and object = $2", gone.user, gone.object)


@pytest_asyncio.fixture
async def bench(
    database: asyncpg.Pool, postgres_dsn: str, valkey_url: str, fault_proxy: FaultProxies
) -> AsyncIterator[Bench]:
    async with database.acquire() as conn:
        await store.create_stores(conn, ["replank"])
    valkey = await fault_proxy(urlsplit(valkey_url).netloc.rpartition("@")[2])
    async with (
        Pools(postgres_dsn, service="test") as pools,
        Cache(valkey.in_front_of(valkey_url), name="test") as cache,
    ):
        decisions = Decisions(pools.authorization_primary, cache, max_age=60.0, entry_ttl=60.0, cache_pause=0.05)
        yield Bench(database, pools, decisions, valkey)


async def test_a_written_tuple_is_allowed_and_said(bench: Bench) -> None:
    assert not await bench.allowed(ADA_OWNS)
    assert await bench.change(ADA_OWNS) == 1
    assert await bench.allowed(ADA_OWNS)
    assert not await bench.allowed(BEN_OWNS)
    async with bench.database.acquire() as conn:
        ((key, event),) = await appended(conn)
    assert key == "migration:1"
    assert isinstance(event, AccessGranted)
    assert (event.user, event.relation, event.object) == ("user:ada", "owner", "migration:1")
    assert (event.revision, event.granted_by) == (1, "user:root")


async def test_a_decision_is_cached(bench: Bench) -> None:
    await bench.change(ADA_OWNS)
    assert await bench.allowed(ADA_OWNS)
    await bench.remove_behind_its_back(ADA_OWNS)
    assert await bench.allowed(ADA_OWNS)


async def test_a_revocation_takes_effect_before_it_commits_and_is_said(bench: Bench) -> None:
    await bench.change(ADA_OWNS)
    assert await bench.allowed(ADA_OWNS)
    async with bench.database.acquire() as conn:
        async with conn.transaction():
            await service.change(conn, bench.decisions, "replank", deletes=[ADA_OWNS], by="user:root")
            # Still allowed by what is committed; what matters is that the cache is not believed any more.
            assert await bench.allowed(ADA_OWNS)
        assert not await bench.allowed(ADA_OWNS)
        _, (_, event) = await appended(conn)
    assert isinstance(event, AccessRevoked)
    assert event.revision == 2


async def test_a_revocation_while_the_cache_is_away_holds_when_the_cache_is_back(bench: Bench) -> None:
    await bench.change(ADA_OWNS)
    assert await bench.allowed(ADA_OWNS)
    await bench.valkey.refuse()
    await bench.change(deletes=(ADA_OWNS,))
    assert not await bench.allowed(ADA_OWNS)
    await bench.valkey.heal()
    answers = []

    async def the_cache_is_asked_again() -> bool:
        answers.append(await bench.allowed(ADA_OWNS))
        return bench.valkey.connections > 0

    await eventually(the_cache_is_asked_again, "the cache is asked again")
    answers.append(await bench.allowed(ADA_OWNS))
    assert not any(answers)


async def test_a_fresh_process_does_not_believe_what_was_cached_before_the_revocation(bench: Bench) -> None:
    await bench.change(ADA_OWNS)
    assert await bench.allowed(ADA_OWNS)
    await bench.change(deletes=(ADA_OWNS,))
    fresh = Decisions(bench.pools.authorization_primary, bench.decisions._cache, max_age=60.0, entry_ttl=60.0)
    assert not await fresh.allowed("replank", ADA_OWNS)


async def test_another_process_notices_a_revocation_within_the_age_that_it_allows(bench: Bench) -> None:
    other = Decisions(bench.pools.authorization_primary, bench.decisions._cache, max_age=0.0, entry_ttl=60.0)
    await bench.change(ADA_OWNS)
    assert await other.allowed("replank", ADA_OWNS)
    await bench.change(deletes=(ADA_OWNS,))
    assert not await other.allowed("replank", ADA_OWNS)


async def test_a_change_that_rolls_back_leaves_the_answer_as_it_was(bench: Bench) -> None:
    await bench.change(ADA_OWNS)
    async with bench.database.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await service.change(conn, bench.decisions, "replank", deletes=[ADA_OWNS], by="user:root")
        await transaction.rollback()
    assert await bench.allowed(ADA_OWNS)
    await bench.change(deletes=(ADA_OWNS,))
    assert not await bench.allowed(ADA_OWNS)


async def test_without_the_cache_postgres_answers(bench: Bench) -> None:
    await bench.valkey.refuse()
    await bench.change(ADA_OWNS)
    assert await bench.allowed(ADA_OWNS)
    assert not await bench.allowed(BEN_OWNS)


async def test_without_postgres_there_is_no_answer_rather_than_a_wrong_one(bench: Bench) -> None:
    nowhere = Pools("postgresql://postgres@127.0.0.1:1/none", service="test")
    cut_off = Decisions(nowhere.authorization_primary, bench.decisions._cache, max_age=60.0, entry_ttl=60.0)
    with pytest.raises(DependencyUnavailable, match="authorization_primary"):
        await cut_off.allowed("replank", ADA_OWNS)


async def test_exact_checks_ask_postgres_whatever_is_cached(bench: Bench) -> None:
    await bench.change(ADA_OWNS)
    assert await bench.allowed(ADA_OWNS)
    await bench.remove_behind_its_back(ADA_OWNS)
    assert not await bench.decisions.allowed("replank", ADA_OWNS, exact=True)


async def test_writing_what_is_there_and_deleting_what_is_not_are_refused_whole(bench: Bench) -> None:
    await bench.change(ADA_OWNS)
    with pytest.raises(WriteConflict, match="already exists: user: 'user:ada'"):
        await bench.change(BEN_OWNS, ADA_OWNS)
    with pytest.raises(WriteConflict, match="does not exist: user: 'user:ben'"):
        await bench.change(deletes=(ADA_OWNS, BEN_OWNS))
    assert await bench.allowed(ADA_OWNS)
    assert not await bench.allowed(BEN_OWNS)


async def test_they_can_be_ignored_and_then_say_nothing(bench: Bench) -> None:
    await bench.change(ADA_OWNS)
    await bench.change(ADA_OWNS, deletes=(BEN_OWNS,), on_conflict=OnConflict.IGNORE)
    async with bench.database.acquire() as conn:
        assert len(await appended(conn)) == 1


async def test_a_store_that_does_not_exist_is_an_error_and_not_a_no(bench: Bench) -> None:
    with pytest.raises(UnknownStore, match="nowhere"):
        await bench.decisions.allowed("nowhere", ADA_OWNS)
    async with bench.database.acquire() as conn, conn.transaction():
        with pytest.raises(UnknownStore, match="nowhere"):
            await service.change(conn, bench.decisions, "nowhere", writes=[ADA_OWNS], by="user:root")


async def test_concurrent_changes_get_revisions_in_commit_order(bench: Bench) -> None:
    tuples = [RelationTuple(f"user:{number}", "owner", "migration:1") for number in range(8)]
    revisions = await asyncio.gather(*(bench.change(item) for item in tuples))
    assert sorted(revisions) == list(range(1, 9))
    async with bench.database.acquire() as conn:
        said = [event.revision for _, event in await appended(conn) if isinstance(event, AccessGranted)]
    assert said == sorted(said)


async def test_bootstrapping_twice_writes_and_says_once(bench: Bench) -> None:
    for _ in range(2):
        async with bench.database.acquire() as conn, conn.transaction():
            await service.bootstrap(conn, bench.decisions, ["replank", "other"], "replank", [ADA_OWNS])
    assert await bench.allowed(ADA_OWNS)
    async with bench.database.acquire() as conn:
        assert len(await appended(conn)) == 1


async def test_a_check_is_one_probe_of_the_primary_key(bench: Bench) -> None:
    async with bench.database.acquire() as conn, conn.transaction():
        await conn.execute("set local enable_seqscan = off")
        plan = await conn.fetch("explain " + store._CHECK, "replank", "migration:1", "owner", "user:ada")
    text = "\n".join(row[0] for row in plan)
    assert "Index Only Scan using relation_tuple_pkey" in text
    assert "Seq Scan" not in text


async def test_tuples_that_are_there_already_cost_the_store_no_revision(bench: Bench) -> None:
    assert await bench.ensure(ADA_OWNS) == 1
    assert await bench.ensure(ADA_OWNS) == 1
    assert await bench.ensure(ADA_OWNS, BEN_OWNS) == 2
    assert await bench.allowed(ADA_OWNS)
    assert await bench.allowed(BEN_OWNS)
