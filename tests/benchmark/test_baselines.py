"""Measuring a source on a real target database, and keeping what came of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from pydantic import SecretStr

from replank.contracts.alerts import AlertRaised
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.schema import Source
from replank.testing import servers
from replank.testing.plugin import FaultProxies
from replank.testing.services import appended
from replank_benchmark.baselines import service, store
from replank_benchmark.baselines.model import CannotCapture, TargetUnavailable
from replank_benchmark.baselines.targets import Targets

ROWS = 500


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(postgres_server: str) -> AsyncIterator[str]:
    """The DSN of a small target database, of a role that may read some of it and write nothing."""
    role = servers.fresh_name()
    async with servers.database(postgres_server) as dsn:
        conn = await asyncpg.connect(dsn)
        await conn.execute(f"""
            create role "{role}" login password '{role}';
            create schema "Odd schema";
            create table kv (key text primary key, value jsonb not null);
            insert into kv select n::text, jsonb_build_object('n', n) from generate_series(1, {ROWS}) as n;
            create table secret (id int);
            create table "Odd schema"."Odd""table" (id int);
            create table orders (id int, at date) partition by range (at);
            create table orders_2025 partition of orders for values from ('2025-01-01') to ('2026-01-01');
            create table orders_2026 partition of orders for values from ('2026-01-01') to ('2027-01-01');
            insert into orders select n, date '2025-06-01' + n from generate_series(1, {ROWS}) as n;
            create view recent as select * from orders where at > '2026-01-01';
            create sequence counter;
            grant usage on schema "Odd schema" to "{role}";
            grant select on kv, orders, recent, counter, "Odd schema"."Odd""table" to "{role}";
            analyze;
        """)
        try:
            parts = urlsplit(dsn)
            yield urlunsplit(parts._replace(netloc=f"{role}:{role}@{parts.hostname}:{parts.port}"))
        finally:
            await conn.execute(f'drop owned by "{role}"; drop role "{role}"')
            await conn.close()


@pytest.fixture
def targets(shop: str) -> Targets:
    return Targets({"shop": SecretStr(shop)}, timeout=10.0)


async def test_a_table_is_measured(targets: Targets) -> None:
    capture = await targets.capture(Source(target="shop", table="kv"))
    (relation,) = capture.relations
    assert (relation.schema, relation.name, relation.rows_estimated) == ("public", "kv", ROWS)
    assert relation.bytes_total >= 2 * 8192  # the table and its index have a page each, at least
    assert relation.sequential_scans is not None
    assert capture.plan_cost > 0
    assert capture.explain["Plan"]["Node Type"] == "Seq Scan"


@pytest.mark.parametrize("table", ["orders", "recent"], ids=["a partitioned table", "a view"])
async def test_what_stands_for_other_relations_is_measured_by_those(targets: Targets, table: str) -> None:
    capture = await targets.capture(Source(target="shop", table=table))
    assert {relation.name for relation in capture.relations} <= {"orders_2025", "orders_2026"}
    assert 0 < capture.rows_estimated <= ROWS


async def test_a_query_is_measured_by_what_it_reads_and_never_run(targets: Targets) -> None:
    query = "select pg_sleep(30), kv.* from kv join orders on orders.id::text = kv.key -- all of them"
    capture = await targets.capture(Source(target="shop", query=query))
    assert {relation.name for relation in capture.relations} == {"kv", "orders_2025", "orders_2026"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"target": "nowhere", "table": "kv"}, "'nowhere' is not known"),
        ({"target": "shop", "table": "missing"}, "has no table or view 'missing'"),
        ({"target": "shop", "table": "KV"}, "has no table or view 'KV'"),
        ({"target": "shop", "table": "counter"}, "has no table or view 'counter'"),
        ({"target": "shop", "table": "secret"}, "does not let us read 'secret'"),
        ({"target": "shop", "query": "select * from secret"}, "permission denied"),
        ({"target": "shop", "query": "selec 1"}, "syntax error"),
        ({"target": "shop", "query": "select 1) as a; drop table kv; --"}, "refuses the source"),
        ({"target": "shop", "query": "select 1; drop table kv"}, "refuses the source"),
        ({"target": "shop", "query": "delete from kv"}, "refuses the source"),
        ({"target": "shop", "query": "with gone as (delete from kv returning *) select * from gone"}, "refuses"),
        ({"target": "shop", "query": "select $1::text"}, "refuses the source"),
        ({"target": "shop", "query": "select nowhere.column from kv"}, "refuses the source"),
    ],
)
async def test_a_source_that_cannot_be_measured_says_why(targets: Targets, source: dict[str, str], reason: str) -> None:
    with pytest.raises(CannotCapture, match=reason):
        await targets.capture(Source.model_validate(source))
    assert (await targets.capture(Source(target="shop", table="kv"))).rows_estimated == ROWS


async def test_a_role_that_the_target_does_not_know_is_no_reason_to_try_again(shop: str) -> None:
    parts = urlsplit(shop)
    stranger = urlunsplit(parts._replace(netloc=f"stranger:none@{parts.hostname}:{parts.port}"))
    with pytest.raises(CannotCapture, match="does not let us in"):
        await Targets({"shop": SecretStr(stranger)}, timeout=5.0).capture(Source(target="shop", table="kv"))


@pytest.mark.parametrize("fault", ["refuse", "stall"])
async def test_a_target_that_does_not_answer_is_one_to_try_again(
    shop: str, fault_proxy: FaultProxies, fault: str
) -> None:
    parts = urlsplit(shop)
    proxy = await fault_proxy(f"{parts.hostname}:{parts.port}")
    if fault == "refuse":
        await proxy.refuse()
    else:
        proxy.stall()
    through = proxy.in_front_of(shop)
    with pytest.raises(TargetUnavailable, match="does not answer"):
        await Targets({"shop": SecretStr(through)}, timeout=0.5).capture(Source(target="shop", table="kv"))


# --- keeping it ---


async def record(database: asyncpg.Pool, source: Source, outcome: Any) -> tuple[Any, list[Any]]:
    migration_id = uuid4()
    async with database.acquire() as conn:
        async with conn.transaction():
            baseline = await service.record(conn, migration_id, source, outcome)
        assert await store.latest(conn, migration_id) == baseline
        return baseline, [event for _, event in await appended(conn)]


async def test_a_captured_baseline_is_kept_and_said(database: asyncpg.Pool, targets: Targets) -> None:
    source = Source(target="shop", table="kv")
    baseline, events = await record(database, source, await targets.capture(source))
    (event,) = events
    assert isinstance(event, BaselineRecorded)
    assert (event.baseline_id, event.status, event.reason) == (baseline.id, "captured", None)
    assert (event.rows_estimated, event.plan_cost) == (ROWS, baseline.capture.plan_cost)


async def test_a_failed_baseline_is_kept_and_said_and_raises_an_alert(database: asyncpg.Pool) -> None:
    reason = CannotCapture("target 'shop' has no table 'x'" + "!" * 3000)
    baseline, events = await record(database, Source(target="shop", table="x"), reason)
    recorded, alert = events
    assert isinstance(recorded, BaselineRecorded)
    assert (recorded.status, recorded.rows_estimated) == ("failed", None)
    assert recorded.reason == baseline.reason
    assert isinstance(alert, AlertRaised)
    assert alert.detail == baseline.reason
    assert alert.subject == f"migration:{baseline.migration_id}"


async def test_the_latest_baseline_of_a_migration_is_shown(database: asyncpg.Pool) -> None:
    migration_id = uuid4()
    source = Source(target="shop", table="x")
    async with database.acquire() as conn, conn.transaction():
        await service.record(conn, migration_id, source, CannotCapture("first"))
        await service.record(conn, migration_id, source, CannotCapture("second"))
        found = await store.latest(conn, migration_id)
    assert found is not None
    assert found.reason == "second"
