"""The schema service alone, on real servers: everybody else is played by the test."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
import pytest_asyncio

from replank.contracts.archiver import PlanArchived
from replank.contracts.auth_cache import AccessGranted, AccessRevoked
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.schema import MigrationPlanned, MigrationReady
from replank.testing import eventually, servers
from replank.testing.plugin import FaultProxies
from replank.testing.services import Issuer, Rights, basics, emit, events_of, http_alone, living, playing_rights
from replank_schema.application import compose
from replank_schema.settings import SchemaSettings

MAY_PLAN = ("user:ada", "plan", "system:replank")
MAPPING: dict[str, Any] = {
    "mapping": 1,
    "name": "orders",
    "source": {"table": "public.kv", "key": "key", "value": "value"},
    "entities": {
        "order": {
            "key": "order:{id}",
            "table": "orders",
            "columns": {"id": {"key": "id", "type": "text"}},
            "primary_key": ["id"],
            "rest": "rest",
        }
    },
}
ORDERS: dict[str, Any] = {"owner": "user:ben", "source": "shop", "target": "tables", "mapping": MAPPING}


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest_asyncio.fixture
async def rights() -> AsyncIterator[Rights]:
    async with playing_rights(MAY_PLAN) as playing:
        yield playing


Configure = Callable[[str], SchemaSettings]


@pytest.fixture
def configure(kafka: str, issuer: Issuer, rights: Rights) -> Configure:
    """The settings of a service on the database of the given DSN."""

    def on(dsn: str) -> SchemaSettings:
        given = basics(issuer, dsn=dsn, kafka=kafka, name="schema", authz_url=rights.url)
        return SchemaSettings.model_validate(given)

    return on


@pytest.fixture
def settings(database: asyncpg.Pool, postgres_dsn: str, configure: Configure) -> SchemaSettings:
    return configure(postgres_dsn)


@pytest_asyncio.fixture
async def quiet(settings: SchemaSettings, issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    async with http_alone(compose(settings), issuer.token()) as client:
        yield client


@pytest_asyncio.fixture
async def refusing(untouched_dsn: str, configure: Configure, issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose requests are all refused: the test fails if one of them leaves anything behind."""
    async with http_alone(compose(configure(untouched_dsn)), issuer.token()) as client:
        yield client
    conn = await asyncpg.connect(untouched_dsn)
    assert await count(conn) == (0, 0)
    await conn.close()


async def plan(client: httpx.AsyncClient, body: Any = ORDERS, key: str | None = None) -> httpx.Response:
    return await client.post("/v1/migrations", json=body, headers={"idempotency-key": key or str(uuid4())})


async def count(database: asyncpg.Pool | asyncpg.Connection) -> tuple[int, int]:
    """How many migrations there are, and events but for those about contracts."""
    return (
        await database.fetchval("select count(*) from migration"),
        await database.fetchval("select count(*) from replank_outbox.event where topic <> 'replank.contracts'"),
    )


async def test_a_planned_migration_is_announced_and_becomes_ready_by_the_events_of_others(
    settings: SchemaSettings, kafka: str, issuer: Issuer
) -> None:
    async with living(compose(settings), issuer.token()) as client:
        answer = await plan(client)
        assert answer.status_code == 201, answer.text
        shown = answer.json()
        migration_id = UUID(shown["id"])
        assert {line["item"]: line["state"] for line in shown["readiness"]} == dict.fromkeys(
            ("access", "baseline", "archive"), "pending"
        )
        (planned,) = await events_of(kafka, MigrationPlanned, lambda event: event.migration_id == migration_id)
        assert (planned.name, planned.owner, planned.planned_by) == ("orders", "user:ben", "user:ada")
        assert planned.plan["mapping"] == shown["mapping"]

        await emit_all(kafka, migration_id, planned)

        async def is_ready() -> Any:
            found = (await client.get(f"/v1/migrations/{migration_id}")).json()
            assert found["ready"], found["readiness"]
            assert found["phase"] == "planned"
            return found

        ready = await eventually(is_ready, "the migration is ready", within=30)
        assert {line["state"] for line in ready["readiness"]} == {"met"}
        assert all(line["event_id"] for line in ready["readiness"])
        (said,) = await events_of(kafka, MigrationReady, lambda event: event.migration_id == migration_id)
        assert said.plan_sha256 == planned.plan_sha256


async def test_the_owner_losing_access_before_it_is_ready_opens_the_item_again(
    settings: SchemaSettings, kafka: str, issuer: Issuer
) -> None:
    async with living(compose(settings), issuer.token()) as client:
        migration_id = (await plan(client)).json()["id"]

        async def access() -> str:
            shown = (await client.get(f"/v1/migrations/{migration_id}")).json()
            return str({line["item"]: line["state"] for line in shown["readiness"]}["access"])

        async def becomes(wanted: str) -> None:
            async def is_so() -> bool:
                return await access() == wanted

            await eventually(is_so, f"access is {wanted}", within=30)

        granted, revoked = ownership(migration_id, "replank")
        await emit(kafka, granted, key=granted.object)
        await becomes("met")
        # The same relation in a store that nobody here asks is another matter; of one key, it comes first.
        await emit(kafka, ownership(migration_id, "elsewhere")[1], key=granted.object)
        await emit(kafka, revoked, key=granted.object)
        await becomes("missing")
        await emit(kafka, granted, key=granted.object)
        await becomes("met")


def ownership(migration_id: str, store: str) -> tuple[AccessGranted, AccessRevoked]:
    """Ben is granted, and is revoked, the migration."""
    now = datetime.now(UTC)
    change: dict[str, Any] = {
        "store": store,
        "user": "user:ben",
        "relation": "owner",
        "object": f"migration:{migration_id}",
        "revision": 1,
    }
    return (
        AccessGranted(**change, granted_by="user:ada", granted_at=now),
        AccessRevoked(**change, revoked_by="user:ada", revoked_at=now),
    )


async def emit_all(kafka: str, migration_id: UUID, planned: MigrationPlanned) -> None:
    now = datetime.now(UTC)
    key = f"migration:{migration_id}"
    granted = AccessGranted(
        store="replank",
        user="user:ben",
        relation="owner",
        object=key,
        revision=1,
        granted_by="service:auth-cache",
        granted_at=now,
    )
    # What is none of its business must not disturb it.
    for stranger in ("migration:none", f"migration:{uuid4()}", "store:replank"):
        await emit(kafka, granted.model_copy(update={"object": stranger}), key=stranger)
    await emit(kafka, granted, key=key)
    recorded = BaselineRecorded(
        baseline_id=uuid4(),
        migration_id=migration_id,
        target="shop",
        status="captured",
        rows_estimated=10,
        bytes_total=8192,
        plan_cost=1.5,
        recorded_at=now,
    )
    await emit(kafka, recorded, key=str(migration_id))
    archived = PlanArchived(
        migration_id=migration_id,
        bucket="bucket",
        object_key="key",
        sha256=planned.plan_sha256,
        size=10,
        archived_at=now,
    )
    await emit(kafka, archived, key=str(migration_id))


async def test_the_same_idempotency_key_plans_once(quiet: httpx.AsyncClient, database: asyncpg.Pool) -> None:
    first = await plan(quiet, key="once")
    again = await plan(quiet, key="once")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == f"/v1/migrations/{first.json()['id']}"
    assert await count(database) == (1, 1)
    other = await plan(quiet, {**ORDERS, "target": "another"}, key="once")
    assert other.status_code == 422
    assert await count(database) == (1, 1)


async def test_pages_lead_through_all_migrations(quiet: httpx.AsyncClient) -> None:
    ids = [(await plan(quiet)).json()["id"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await quiet.get("/v1/migrations", params=query)).json()
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    assert seen == list(reversed(ids))


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in ORDERS.items() if name != field}


def deep(levels: int) -> Any:
    return json.loads('{"a":' * levels + "1" + "}" * levels)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**ORDERS, "surprise": 1}, "surprise"),
        ({**ORDERS, "owner": "ben"}, "owner"),
        ({**ORDERS, "owner": "user:*"}, "owner"),
        ({**ORDERS, "source": "Shop?"}, "source"),
        ({**ORDERS, "source": {"target": "shop"}}, "source"),
        ({**ORDERS, "target": ""}, "target"),
        ({**ORDERS, "mapping": []}, "mapping"),
        ({**ORDERS, "mapping": None}, "mapping"),
        ({**ORDERS, "mapping": {"a": "nul \x00"}}, "body"),
        ({**ORDERS, "mapping": deep(70)}, "mapping"),
        ({**ORDERS, "options": {"endpoints": ["a", "a"]}}, "options"),
        ({**ORDERS, "options": {"partitions": 0}}, "partitions"),
        ({**ORDERS, "settings": {"auto_until": "planned"}}, "settings"),
        ({**ORDERS, "settings": {"chunk_rows": 0}}, "chunk_rows"),
        (without("mapping"), "mapping"),
        (without("owner"), "owner"),
        ([ORDERS], "body"),
    ],
)
async def test_a_request_that_does_not_fit_is_refused_by_field_and_leaves_nothing(
    refusing: httpx.AsyncClient, body: Any, field: str
) -> None:
    answer = await plan(refusing, body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert any(field in fault["field"] for fault in answer.json()["errors"]), answer.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b'{"mapping": {"a": ' + b"[" * 100_000, 400),
        (json.dumps({**ORDERS, "mapping": {"a": 1}}).replace("1}", "1e999}").encode(), 422),
        (json.dumps({**ORDERS, "mapping": {"a": "x" * 2_000_000}}).encode(), 413),
    ],
    ids=["cut off", "nested without end", "infinite", "too large"],
)
async def test_bytes_that_are_no_acceptable_json_are_refused_and_leave_nothing(
    refusing: httpx.AsyncClient, content: bytes, status: int
) -> None:
    headers = {"content-type": "application/json", "idempotency-key": "k"}
    answer = await refusing.post("/v1/migrations", content=content, headers=headers)
    assert answer.status_code == status, answer.text


TWO_PATTERNS = """mapping: 1
name: orders
source: {table: kv, key: key, value: value}
entities:
  order:
    key: "order:{id}"
    table: orders
    columns: {id: {key: id, type: text}}
    primary_key: [id]
    rest: rest
  line:
    key: "{kind}:{id}"
    table: lines
    columns:
      id: {key: id, type: text}
      kind: {key: kind, type: nothing}
    primary_key: [kind, id]
    rest: rest
"""


@pytest.mark.parametrize(
    ("mapping", "line", "path"),
    [
        (TWO_PATTERNS, "line 16", "entities.line.columns.kind.type"),
        (TWO_PATTERNS.replace("nothing", "text"), "line 1", "key"),
        (TWO_PATTERNS.replace("nothing", "text, references: line"), "line 1", "entities"),
        ("mapping: 1\nname: [", "line 2", ""),
    ],
    ids=["type", "two entities", "cycle", "no YAML"],
)
async def test_a_mapping_that_cannot_be_carried_out_is_refused_by_path_and_line_and_leaves_nothing(
    refusing: httpx.AsyncClient, mapping: str, line: str, path: str
) -> None:
    answer = await plan(refusing, {**ORDERS, "mapping": mapping})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:replank:problem:invalid-mapping"), answer.text
    assert any(line in fault["field"] and path in fault["field"] for fault in answer.json()["errors"]), answer.text


async def test_planning_needs_an_idempotency_key(refusing: httpx.AsyncClient) -> None:
    answer = await refusing.post("/v1/migrations", json=ORDERS)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:replank:problem:idempotency-key-missing")


async def test_who_has_not_the_right_is_refused_and_who_has_no_token_too(
    refusing: httpx.AsyncClient, issuer: Issuer, rights: Rights
) -> None:
    eve = {"authorization": f"Bearer {issuer.token('user:eve')}", "idempotency-key": "k"}
    refused = await refusing.post("/v1/migrations", json=ORDERS, headers=eve)
    assert refused.status_code == 403
    assert refused.json()["subject"] == "user:eve"
    assert rights.asked[-1] == ("user:eve", "plan", "system:replank")
    assert (await refusing.get("/v1/migrations", headers=eve)).status_code == 403
    for token in ("", "Bearer nonsense", f"Bearer {issuer.token(aud='other')}", f"Bearer {issuer.token(exp=1)}"):
        answer = await refusing.get("/v1/migrations", headers={"authorization": token})
        assert answer.status_code == 401, token


async def test_its_owner_may_see_a_migration_and_neither_another_one_nor_all(
    quiet: httpx.AsyncClient, issuer: Issuer, rights: Rights
) -> None:
    mine, other = [(await plan(quiet)).json()["id"] for _ in range(2)]
    rights.allowed.add(("user:ben", "owner", f"migration:{mine}"))
    ben = {"authorization": f"Bearer {issuer.token('user:ben')}"}
    rights.asked.clear()
    assert (await quiet.get(f"/v1/migrations/{mine}", headers=ben)).json()["id"] == mine
    assert rights.asked == [("user:ben", "plan", "system:replank"), ("user:ben", "owner", f"migration:{mine}")]
    refused = await quiet.get(f"/v1/migrations/{other}", headers=ben)
    assert (refused.status_code, refused.json()["object"]) == (403, f"migration:{other}")
    assert (await quiet.get("/v1/migrations", headers=ben)).status_code == 403
    # Whoever may plan is not asked twice, and what is no id is refused before anybody is asked.
    rights.asked.clear()
    assert (await quiet.get(f"/v1/migrations/{mine}")).status_code == 200
    assert (await quiet.get("/v1/migrations/a:b c", headers=ben)).status_code == 422
    assert rights.asked == [MAY_PLAN]


@pytest.mark.parametrize("path", ["/v1/migrations/01a1fe59-2009-77c9-8d80-1971d57bfc5b", "/v1/nothing"])
async def test_what_is_not_there_is_a_404(refusing: httpx.AsyncClient, path: str) -> None:
    answer = await refusing.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_without_auth_cache_nobody_may_and_nothing_is_written(
    untouched_dsn: str, configure: Configure, issuer: Issuer, refusing: httpx.AsyncClient
) -> None:
    deaf = configure(untouched_dsn).model_copy(update={"authz_url": "http://127.0.0.1:1"})
    async with http_alone(compose(deaf), issuer.token()) as client:
        answer = await plan(client)
    assert (answer.status_code, answer.json()["dependency"]) == (503, "auth-cache")
    assert "retry-after" in answer.headers


async def test_it_starts_without_postgres_says_so_and_recovers_by_itself(
    configure: Configure, issuer: Issuer, database: asyncpg.Pool, postgres_dsn: str, fault_proxy: FaultProxies
) -> None:
    parts = urlsplit(postgres_dsn)
    proxy = await fault_proxy(f"{parts.hostname}:{parts.port}")
    await proxy.refuse()
    through = proxy.in_front_of(postgres_dsn)
    service = compose(configure(through))
    async with living(service, issuer.token(), ready=False) as client:
        assert (await client.get("/healthz")).status_code == 200
        waiting = await client.get("/readyz")
        assert waiting.status_code == 503
        dependencies = waiting.json()["dependencies"]
        assert not dependencies["postgres"]["ready"]
        assert not dependencies["relay"]["ready"]
        assert not dependencies["inbox"]["ready"]
        assert (await plan(client)).json()["dependency"] == "postgres"
        await proxy.heal()

        async def is_ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await eventually(is_ready, "it is ready once Postgres answers", within=30)
        assert (await plan(client)).status_code == 201


async def test_a_database_that_is_not_migrated_is_named_with_what_to_do(
    postgres_server: str, configure: Configure, issuer: Issuer
) -> None:
    async with (
        servers.database(postgres_server) as empty,
        living(compose(configure(empty)), issuer.token(), ready=False) as client,
    ):

        async def says_what_to_do() -> bool:
            answer = await client.get("/readyz")
            assert answer.status_code == 503
            return "replank_schema migrate pre" in answer.text

        await eventually(says_what_to_do, "readiness says how to migrate")
