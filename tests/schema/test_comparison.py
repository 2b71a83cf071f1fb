"""What schema keeps of comparisons, when it tells, and its HTTP interface, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
import pytest_asyncio
from uuid_utils.compat import uuid7

from replank.contracts.schema import MigrationConsistentAgain, MigrationInconsistent
from replank.http import Authenticator, CurrentPrincipal, Problem, Readiness, create_app
from replank.migrate.comparison import Findings, Kind, Mismatch, Progress, Repaired
from replank.postgres import Pools
from replank.testing.services import Issuer, appended
from replank_schema.migration import comparison, comparison_store
from replank_schema.migration.comparison import ComparisonEnded, Subject
from replank_schema.migration.comparison_api import comparison_routes
from replank_schema.migration.comparison_model import Consistency, KeptMismatch, Run, RunState

DONE = Progress(stage="done", records={"order": 1000}, rows={"order": 1000})


def mismatch(key: str, kind: Kind = Kind.DIFFERENT, *fields: str) -> Mismatch:
    return Mismatch(key, "order", kind, fields or ("orders.total",), "0af7651916cd43dd8448eb211c80319c")


@pytest_asyncio.fixture
async def migration(database: asyncpg.Pool) -> UUID:
    migration_id: UUID = uuid7()
    await database.execute(
        """
        insert into migration (id, name, owner, source, plan, plan_sha256, planned_by, planned_at)
        values ($1, 'shop', 'user:ada', '{"target": "shop", "table": "kv"}', '{"mapping": {}}', 'x', 'user:ada', now())
        """,
        migration_id,
    )
    return migration_id


@pytest.fixture
def subject(migration: UUID) -> Subject:
    return Subject(migration, "shop", 99.9)


async def running(database: asyncpg.Pool, migration: UUID) -> Run:
    async with database.acquire() as conn, conn.transaction():
        assert await comparison.ask(conn, migration, asked_by="user:ada") is not None
        asked = await comparison_store.to_run(conn, migration)
        assert asked is not None
        await comparison_store.started(conn, asked.id, "forward")
        run = await comparison_store.run(conn, migration, asked.id)
        assert run is not None
        return run


async def keep(
    database: asyncpg.Pool, subject: Subject, run: Run, progress: Progress, findings: Findings | None = None
) -> None:
    async with database.acquire() as conn, conn.transaction():
        await comparison.keep_progress(conn, subject, run, progress, findings or Findings())


async def keep_sample(database: asyncpg.Pool, subject: Subject, findings: Findings) -> None:
    async with database.acquire() as conn, conn.transaction():
        await comparison.keep_sample(conn, subject, findings)


async def kept(database: asyncpg.Pool, migration: UUID, *, only_open: bool = True) -> list[KeptMismatch]:
    async with database.acquire() as conn:
        return await comparison_store.mismatches(
            conn, migration, after=comparison_store.OLDEST, limit=100, only_open=only_open
        )


async def consistency(database: asyncpg.Pool, migration: UUID) -> Consistency:
    async with database.acquire() as conn:
        return await comparison_store.consistency(conn, migration, window=comparison.WINDOW)


async def alerts(database: asyncpg.Pool) -> list[MigrationInconsistent | MigrationConsistentAgain]:
    async with database.acquire() as conn:
        return [
            event
            for _, event in await appended(conn)
            if isinstance(event, MigrationInconsistent | MigrationConsistentAgain)
        ]


async def test_a_migration_has_one_comparison_at_a_time(database: asyncpg.Pool, migration: UUID) -> None:
    async def ask() -> Run | None:
        async with database.acquire() as conn, conn.transaction():
            return await comparison.ask(conn, migration, asked_by="user:ada")

    asked = [run for run in await asyncio.gather(*(ask() for _ in range(5))) if run is not None]
    assert [run.state for run in asked] == [RunState.ASKED]
    async with database.acquire() as conn, conn.transaction():
        assert await comparison_store.cancel(conn, migration, asked[0].id)
    assert await ask() is not None


async def test_a_comparison_goes_on_from_the_progress_that_was_kept(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    run = await running(database, migration)
    progress = Progress(
        stage="rows",
        relation="order",
        after="order:5",
        pending=("order:7",),
        records={"order": 12},
        mismatches={Kind.MISSING: 2},
    )
    await keep(database, subject, run, progress)
    async with database.acquire() as conn:
        found = await comparison_store.to_run(conn, migration)
    assert found is not None
    assert (found.state, found.progress) == (RunState.RUNNING, progress)


async def test_nothing_more_is_kept_of_a_comparison_that_was_cancelled(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    run = await running(database, migration)
    async with database.acquire() as conn, conn.transaction():
        assert await comparison_store.cancel(conn, migration, run.id)
    with pytest.raises(ComparisonEnded):
        await keep(database, subject, run, DONE, Findings([mismatch("order:1")]))
    assert await kept(database, migration) == []


async def test_a_mismatch_that_is_seen_again_stays_one_and_keeps_when_it_was_first_seen(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    run = await running(database, migration)
    await keep(database, subject, run, Progress(), Findings([mismatch("order:1", Kind.MISSING)]))
    (first,) = await kept(database, migration)
    await keep_sample(database, subject, Findings([mismatch("order:1", Kind.STALE, "orders.city")]))
    (second,) = await kept(database, migration)
    assert (second.id, second.first_seen) == (first.id, first.first_seen)
    assert (second.kind, second.fields) == (Kind.STALE, ["orders.city"])
    assert second.last_seen > first.last_seen


async def test_a_mismatch_that_is_seen_equal_is_resolved_and_may_come_again_as_another(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    await keep_sample(database, subject, Findings([mismatch("order:1"), mismatch("order:2")]))
    await keep_sample(database, subject, Findings(equal=["order:1"]))
    assert [found.key for found in await kept(database, migration)] == ["order:2"]
    await keep_sample(database, subject, Findings([mismatch("order:1")]))
    found = await kept(database, migration, only_open=False)
    assert [(known.key, known.resolved_at is None) for known in found] == [
        ("order:1", False),
        ("order:2", True),
        ("order:1", True),
    ]


async def test_a_whole_comparison_resolves_what_it_does_not_see_again_but_not_what_did_not_settle(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    await keep_sample(database, subject, Findings([mismatch(key) for key in ("order:1", "order:2", "order:3")]))
    run = await running(database, migration)
    await keep(database, subject, run, Progress(), Findings([mismatch("order:2")], unsettled=["order:3"]))
    assert len(await kept(database, migration)) == 3, "before its end it cannot tell"
    await keep(database, subject, run, DONE)
    assert [found.key for found in await kept(database, migration)] == ["order:2", "order:3"]


async def test_a_comparison_that_found_more_than_it_tells_resolves_nothing_by_silence(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    await keep_sample(database, subject, Findings([mismatch("order:1")]))
    run = await running(database, migration)
    progress = DONE.model_copy(update={"untold": 1, "mismatches": {Kind.DIFFERENT: 1}})
    await keep(database, subject, run, progress)
    assert [found.key for found in await kept(database, migration)] == ["order:1"]


async def test_each_fall_below_the_threshold_is_told_once_and_so_is_the_return(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    bad = DONE.model_copy(update={"mismatches": {Kind.MISSING: 2}})
    for progress in (bad, bad, DONE, DONE, bad):
        await keep(database, subject, await running(database, migration), progress)
    told = await alerts(database)
    assert [type(event) for event in told] == [MigrationInconsistent, MigrationConsistentAgain, MigrationInconsistent]
    assert [event.percent for event in told] == [99.8, 100.0, 99.8]
    assert told[0].event_topic == "replank.alerts"
    assert (await consistency(database, migration)).inconsistent_since is not None


async def test_99_9_per_cent_is_enough_and_one_more_difference_is_not(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    await keep(
        database,
        subject,
        await running(database, migration),
        DONE.model_copy(update={"mismatches": {Kind.DIFFERENT: 1, Kind.REJECTED: 50}}),
    )
    assert await alerts(database) == []
    await keep(
        database,
        subject,
        await running(database, migration),
        DONE.model_copy(update={"mismatches": {Kind.DIFFERENT: 2}}),
    )
    assert [type(event) for event in await alerts(database)] == [MigrationInconsistent]


async def test_samples_count_for_as_long_as_the_window(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    await keep_sample(database, subject, Findings([mismatch("order:1")], equal=["order:2", "order:3", "order:4"]))
    found = await consistency(database, migration)
    assert (found.full, found.samples, found.samples_compared) == (None, 75.0, 4)
    (told,) = await alerts(database)
    assert isinstance(told, MigrationInconsistent)
    assert (told.seen_by, told.percent) == ("samples", 75.0)
    await database.execute("update comparison_sample set at = at - interval '1 day'")
    await keep_sample(database, subject, Findings(equal=["order:1"]))
    found = await consistency(database, migration)
    assert (found.samples, found.samples_compared, found.open_mismatches) == (100.0, 1, 0)
    assert await database.fetchval("select count(*) from comparison_sample") == 1


async def test_what_cannot_be_committed_is_told_to_nobody(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    async with database.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await comparison.keep_sample(conn, subject, Findings([mismatch("order:1")]))
        await transaction.rollback()
    assert await alerts(database) == []
    assert await kept(database, migration) == []


async def test_a_key_of_many_kilobytes_is_kept_like_any_other(
    database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    key = "order:" + "".join(str(uuid4()) for _ in range(200))
    for _ in range(2):
        await keep_sample(database, subject, Findings([mismatch(key)]))
    assert [found.key for found in await kept(database, migration)] == [key]


async def test_open_mismatches_are_paged_by_an_index(database: asyncpg.Pool, migration: UUID) -> None:
    async with database.acquire() as conn, conn.transaction():
        await conn.execute("set local enable_seqscan = off")
        plan = await conn.fetch("explain " + comparison_store._OPEN_MISMATCHES, migration, comparison_store.OLDEST, 10)
    text = "\n".join(row[0] for row in plan)
    assert "open_mismatch_of_migration" in text
    assert "Sort" not in text


# --- HTTP ---


@pytest_asyncio.fixture
async def client(database: asyncpg.Pool, postgres_dsn: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of these routes alone. ``user:eve`` may see everything and change nothing."""
    issuer = Issuer(tmp_path)
    pools = Pools(postgres_dsn, service="schema")

    async def anybody(principal: CurrentPrincipal) -> None:
        assert principal.user

    async def not_eve(principal: CurrentPrincipal) -> None:
        if principal.user == "user:eve":
            raise Problem(403, "forbidden", "not eve")

    app = create_app(
        service="schema",
        version="1",
        authenticator=Authenticator(issuer=issuer.issuer, audience=issuer.audience, jwks=str(issuer.jwks)),
        readiness=Readiness(),
        routers=[comparison_routes(pools, may_see=anybody, may_change=not_eve, compares=anybody)],
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {issuer.token()}", "x-eve": f"Bearer {issuer.token('user:eve')}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as opened:
        yield opened
    await pools.close()


async def post(client: httpx.AsyncClient, path: str, body: Any = None, key: str | None = None) -> httpx.Response:
    return await client.post(path, json=body, headers={"idempotency-key": key or str(uuid4())})


async def test_a_comparison_is_asked_for_once_shown_and_cancelled(client: httpx.AsyncClient, migration: UUID) -> None:
    base = f"/v1/migrations/{migration}/comparisons"
    asked = await post(client, base, key="k")
    assert asked.status_code == 202, asked.text
    assert (await post(client, base, key="k")).json() == asked.json()
    refused = await post(client, base)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:replank:problem:comparison-under-way")
    shown = await client.get(asked.headers["location"])
    assert (shown.json()["state"], shown.json()["percent"]) == ("asked", None)
    cancelled = await client.post(asked.headers["location"] + "/cancel")
    assert cancelled.json()["state"] == "cancelled"
    assert (await post(client, base)).status_code == 202
    listed = (await client.get(base)).json()["items"]
    assert [run["state"] for run in listed] == ["asked", "cancelled"]


async def test_a_finished_comparison_shows_its_counts(
    client: httpx.AsyncClient, database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    run = await running(database, migration)
    progress = DONE.model_copy(update={"mismatches": {Kind.MISSING: 3, Kind.EXTRA: 2, Kind.REJECTED: 7}})
    await keep(database, subject, run, progress)
    shown = (await client.get(f"/v1/migrations/{migration}/comparisons/{run.id}")).json()
    assert shown["state"] == "done"
    assert (shown["compared"], shown["different"]) == (1002, 5)
    assert shown["percent"] == pytest.approx(100 * 997 / 1002)
    assert shown["mismatches"] == {"missing": 3, "extra": 2, "rejected": 7}


async def test_mismatches_are_paged_and_those_that_are_gone_are_shown_on_request(
    client: httpx.AsyncClient, database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    await keep_sample(database, subject, Findings([mismatch(f"order:{number}") for number in range(5)]))
    await keep_sample(database, subject, Findings(equal=["order:0"]))
    path = f"/v1/migrations/{migration}/mismatches"
    seen: list[Any] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = (await client.get(path, params=query)).json()
        seen += page["items"]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    assert sorted(item["key"] for item in seen) == [f"order:{number}" for number in range(1, 5)]
    assert seen[0]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert seen[0]["fields"] == ["orders.total"]
    everything = (await client.get(path, params={"resolved": "true"})).json()["items"]
    assert sum(item["resolved_at"] is not None for item in everything) == 1


async def test_a_repair_without_keys_takes_those_that_it_can_mend(
    client: httpx.AsyncClient, database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    await keep_sample(
        database, subject, Findings([mismatch("order:1"), mismatch("order:2", Kind.REJECTED), mismatch("order:3")])
    )
    asked = await post(client, f"/v1/migrations/{migration}/repair", {"dry_run": True})
    assert asked.status_code == 202, asked.text
    assert (sorted(asked.json()["keys"]), asked.json()["actions"]) == (["order:1", "order:3"], None)
    async with database.acquire() as conn:
        found = await comparison_store.to_repair(conn, migration)
        assert found is not None
        assert found.dry_run
        await comparison_store.repaired(conn, found.id, [Repaired("order:1", "upsert"), Repaired("order:3", "delete")])
        assert await comparison_store.to_repair(conn, migration) is None
    shown = (await client.get(asked.headers["location"])).json()
    assert shown["actions"] == [{"key": "order:1", "op": "upsert"}, {"key": "order:3", "op": "delete"}]


@pytest.mark.parametrize("body", [{"keys": []}, {"keys": [""]}, {"keys": ["x"] * 501}, {"key": ["x"]}])
async def test_a_repair_of_no_keys_or_of_too_many_is_refused(
    client: httpx.AsyncClient, migration: UUID, body: dict[str, Any]
) -> None:
    answer = await post(client, f"/v1/migrations/{migration}/repair", body)
    assert answer.status_code == 422, answer.text


async def test_what_is_asked_of_no_migration_is_not_found(client: httpx.AsyncClient) -> None:
    base = f"/v1/migrations/{uuid4()}"
    for path in ("comparisons", "repair"):
        assert (await post(client, f"{base}/{path}", {})).status_code == 404
    assert (await client.get(f"{base}/comparisons/{uuid4()}")).status_code == 404
    assert (await client.get(f"{base}/repairs/{uuid4()}")).status_code == 404


async def test_who_may_only_see_can_neither_compare_nor_cancel_nor_repair(
    client: httpx.AsyncClient, migration: UUID
) -> None:
    run = (await post(client, f"/v1/migrations/{migration}/comparisons")).json()
    client.headers["authorization"] = client.headers["x-eve"]
    base = f"/v1/migrations/{migration}"
    assert (await client.get(f"{base}/mismatches")).status_code == 200
    assert (await client.get(f"{base}/consistency")).status_code == 200
    for path in ("comparisons", "repair", f"comparisons/{run['id']}/cancel"):
        assert (await post(client, f"{base}/{path}", {})).status_code == 403


async def test_consistency_is_known_as_soon_as_it_was_measured(
    client: httpx.AsyncClient, database: asyncpg.Pool, migration: UUID, subject: Subject
) -> None:
    shown = (await client.get(f"/v1/migrations/{migration}/consistency")).json()
    assert (shown["full"], shown["samples"], shown["open_mismatches"]) == (None, None, 0)
    await keep(database, subject, await running(database, migration), DONE)
    assert (await client.get(f"/v1/migrations/{migration}/consistency")).json()["full"] == 100.0
