"""The auth-cache service alone, on real servers: everybody else is played by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
import pytest_asyncio

from replank.authz import AuthzClient, Tuple
from replank.contracts.auth_cache import AccessGranted, AccessRevoked
from replank.contracts.declarations import EventContractDeclared, EventContractUsed
from replank.contracts.schema import (
    MigrationPlanned,
    SchemaOwnerChanged,
    SchemaVersionPublished,
    Source,
    VaultMode,
    plan_sha256,
)
from replank.events import Event
from replank.testing import eventually
from replank.testing.services import Issuer, appended, basics, emit, events_of, http_alone, living
from replank_auth_cache.application import compose
from replank_auth_cache.settings import AuthCacheSettings

ROOT = "user:root"
ADA = {"user": "user:ada", "relation": "owner", "object": "migration:1"}
BEN = {"user": "user:ben", "relation": "owner", "object": "migration:1"}
BOOTSTRAP = [
    {"user": ROOT, "relation": "write", "object": "store:replank"},
    {"user": "user:local-admin", "relation": "plan", "object": "system:replank"},
]

Configure = Callable[..., AuthCacheSettings]


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest.fixture
def configure(kafka: str, valkey_url: str, issuer: Issuer) -> Configure:
    def on(dsn: str, **more: Any) -> AuthCacheSettings:
        given = basics(issuer, dsn=dsn, kafka=kafka, name="auth-cache", authz_url="http://127.0.0.1:1")
        # It asks nobody: it is the one who is asked.
        given.pop("authz_url")
        return AuthCacheSettings.model_validate(
            {**given, "valkey_url": valkey_url, "bootstrap_tuples": BOOTSTRAP, **more}
        )

    return on


@pytest_asyncio.fixture
async def client(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, issuer: Issuer
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the HTTP side, as somebody who may write."""
    service = compose(configure(postgres_dsn))
    for _, step in service.steps:
        await step()
    async with http_alone(service, issuer.token(ROOT)) as calling:
        yield calling


async def check(client: httpx.AsyncClient, key: dict[str, str], **more: Any) -> bool:
    answer = await client.post("/stores/replank/check", json={"tuple_key": key, **more})
    assert answer.status_code == 200, answer.text
    assert answer.json()["resolution"] == ""
    return bool(answer.json()["allowed"])


async def write(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/stores/replank/write", json=body)


async def test_the_owner_of_a_planned_migration_gets_access_and_it_is_said(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, kafka: str, issuer: Issuer
) -> None:
    planned = MigrationPlanned(
        migration_id=uuid4(),
        name="orders",
        owner="user:ben",
        source=Source(target="shop", table="kv"),
        plan={},
        plan_sha256=plan_sha256({}),
        planned_by="user:ada",
        planned_at=datetime.now(UTC),
    )
    owns = {"user": "user:ben", "relation": "owner", "object": f"migration:{planned.migration_id}"}
    async with living(compose(configure(postgres_dsn)), issuer.token("service:schema")) as client:
        assert await check(client, BOOTSTRAP[1])
        assert not await check(client, owns)
        await emit(kafka, planned, key=str(planned.migration_id))

        async def has_access() -> bool:
            return await check(client, owns)

        await eventually(has_access, "the owner has access", within=30)
        said = await events_of(kafka, AccessGranted, lambda event: event.object == owns["object"])
    assert [(event.user, event.relation, event.granted_by) for event in said] == [
        ("user:ben", "owner", "service:auth-cache")
    ]


def published(schema_id: UUID, owner: str, version: int = 1, mode: VaultMode = "standard") -> SchemaVersionPublished:
    return SchemaVersionPublished(
        mode=mode,
        schema_id=schema_id,
        name="orders/order",
        version=version,
        previous=version - 1 or None,
        sha256="0" * 64,
        size=2,
        kind="schema",
        field_count=0,
        owner=owner,
        published_by="user:ada",
        published_at=datetime.now(UTC),
    )


async def test_a_schema_belongs_to_its_owner_in_its_own_mode_until_it_is_passed_on(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, kafka: str, issuer: Issuer
) -> None:
    schema_id = uuid4()

    def owns(user: str, mode: VaultMode = "standard") -> dict[str, str]:
        return {"user": user, "relation": "owner", "object": f"schema:{mode}.{schema_id}"}

    passed_on = SchemaOwnerChanged(
        mode="standard",
        schema_id=schema_id,
        name="orders/order",
        owner="user:cleo",
        previous_owner="user:ben",
        changed_by="user:ada",
        changed_at=datetime.now(UTC),
    )
    async with living(compose(configure(postgres_dsn)), issuer.token("service:schema")) as client:
        await emit(kafka, published(schema_id, "user:ben"), key=str(schema_id))

        async def belongs_to(user: str) -> bool:
            return await check(client, owns(user))

        await eventually(lambda: belongs_to("user:ben"), "the owner has access", within=30)
        assert not await check(client, owns("user:ben", "pro"))

        await emit(kafka, passed_on, key=str(schema_id))
        await emit(kafka, published(schema_id, "user:cleo", version=2), key=str(schema_id))
        # Said twice under two ids, as by somebody who changed it to what it was.
        await emit(kafka, passed_on, key=str(schema_id))
        await emit(kafka, published(schema_id, "user:dan", mode="pro"), key=str(schema_id))

        async def last_is_applied() -> bool:
            return await check(client, owns("user:dan", "pro"))

        await eventually(last_is_applied, "all of them are applied", within=30)
        assert await belongs_to("user:cleo")
        assert not await belongs_to("user:ben")
    async with database.acquire() as conn:
        said = [
            (event.event_type, event.user, event.object)
            for _, event in await appended(conn)
            if isinstance(event, AccessGranted | AccessRevoked) and event.object.endswith(str(schema_id))
        ]
    standard, pro = f"schema:standard.{schema_id}", f"schema:pro.{schema_id}"
    granted, revoked = AccessGranted.event_type, AccessRevoked.event_type
    assert said == [
        (granted, "user:ben", standard),
        (revoked, "user:ben", standard),
        (granted, "user:cleo", standard),
        (granted, "user:dan", pro),
    ]


async def test_its_contracts_are_declared_at_its_first_start_and_what_it_used_is_told_when_it_stops(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, kafka: str, issuer: Issuer
) -> None:
    schema_id = uuid4()
    owns = {"user": "user:ben", "relation": "owner", "object": f"schema:standard.{schema_id}"}

    async def declared() -> list[str]:
        async with database.acquire() as conn:
            return [event.contract for _, event in await appended(conn) if isinstance(event, EventContractDeclared)]

    async with living(compose(configure(postgres_dsn)), issuer.token()):
        await eventually(declared, "its contracts are declared")
        # The relay publishes them: somebody else may read them, and nobody has to.
        await events_of(kafka, EventContractDeclared, lambda event: event.contract == AccessGranted.event_type)
    async with living(compose(configure(postgres_dsn)), issuer.token()) as client:
        await emit(kafka, published(schema_id, "user:ben"), key=str(schema_id))

        async def is_applied() -> bool:
            return await check(client, owns)

        await eventually(is_applied, "the event is applied", within=30)
    own: list[type[Event]] = [AccessGranted, AccessRevoked, EventContractDeclared, EventContractUsed]
    assert sorted(await declared()) == sorted(contract.event_type for contract in own)
    async with database.acquire() as conn:
        used = [event for _, event in await appended(conn) if isinstance(event, EventContractUsed)]
    # Others may plan migrations on the same Kafka meanwhile, and publish schemas.
    (of_versions,) = [event for event in used if event.contract == SchemaVersionPublished.event_type]
    assert of_versions.consumer == "auth-cache"
    assert of_versions.events >= 1
    assert not [event for event in used if event.contract.startswith("replank.contracts.")]


async def test_a_bootstrapped_tuple_is_written_once_however_often_the_service_starts(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, issuer: Issuer
) -> None:
    for _ in range(2):
        async with living(compose(configure(postgres_dsn)), issuer.token()) as client:
            assert await check(client, BOOTSTRAP[1])
    async with database.acquire() as conn:
        # It consumes too: somebody else's plan on the same Kafka may have become a grant meanwhile.
        granted = [event for _, event in await appended(conn) if isinstance(event, AccessGranted)]
    said = [{"user": event.user, "relation": event.relation, "object": event.object} for event in granted]
    assert [given for given in said if given in BOOTSTRAP] == sorted(BOOTSTRAP, key=said.index)


async def test_writes_and_deletes_take_effect_and_are_said(client: httpx.AsyncClient, database: asyncpg.Pool) -> None:
    assert not await check(client, ADA)
    written = await write(client, writes={"tuple_keys": [ADA, BEN]})
    assert (written.status_code, written.json()) == (200, {})
    assert await check(client, ADA)
    swapped = await write(client, deletes={"tuple_keys": [ADA]}, writes={"tuple_keys": [{**ADA, "relation": "viewer"}]})
    assert swapped.status_code == 200
    assert not await check(client, ADA)
    assert not await check(client, ADA, consistency="HIGHER_CONSISTENCY")
    assert await check(client, BEN, context={"unused": 1})
    async with database.acquire() as conn:
        events = [event for _, event in await appended(conn)][len(BOOTSTRAP) :]
    assert [event.event_type.split(".")[3] for event in events] == ["granted", "granted", "revoked", "granted"]
    assert [event.model_dump()["user"] for event in events] == ["user:ada", "user:ben", "user:ada", "user:ada"]


async def test_conflicts_are_answered_as_openfga_does_and_can_be_ignored(client: httpx.AsyncClient) -> None:
    await write(client, writes={"tuple_keys": [ADA]})
    again = await write(client, writes={"tuple_keys": [BEN, ADA]})
    assert (again.status_code, again.json()["code"]) == (400, "write_failed_due_to_invalid_input")
    assert again.json()["message"].startswith("cannot write a tuple which already exists: user: 'user:ada'")
    assert not await check(client, BEN)
    missing = await write(client, deletes={"tuple_keys": [BEN]})
    assert (missing.status_code, missing.json()["code"]) == (400, "write_failed_due_to_invalid_input")
    ignored = await write(
        client,
        writes={"tuple_keys": [ADA], "on_duplicate": "ignore"},
        deletes={"tuple_keys": [BEN], "on_missing": "ignore"},
    )
    assert ignored.status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_error"),
        ({"tuple_key": {**ADA, "user": 7}}, "validation_error"),
        ({"tuple_key": {**ADA, "user": "ada"}}, "validation_error"),
        ({"tuple_key": {**ADA, "user": "team:a#member"}}, "validation_error"),
        ({"tuple_key": {**ADA, "user": "user:*"}}, "validation_error"),
        ({"tuple_key": {**ADA, "relation": ""}}, "validation_error"),
        ({"tuple_key": {**ADA, "object": "migration:" + "x" * 500}}, "validation_error"),
        ({"tuple_key": {**ADA, "object": "migration:a b"}}, "validation_error"),
        ({"tuple_key": {**ADA, "condition": {"name": "c"}}}, "validation_error"),
        ({"tuple_key": ADA, "contextual_tuples": {"tuple_keys": [ADA]}}, "validation_error"),
        ({"tuple_key": ADA, "consistency": "WHATEVER"}, "validation_error"),
        ([], "validation_error"),
    ],
)
async def test_a_check_that_does_not_fit_has_openfgas_code(client: httpx.AsyncClient, body: Any, code: str) -> None:
    answer = await client.post("/stores/replank/check", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["message"]


async def test_writes_that_do_not_fit_have_openfgas_codes_and_leave_nothing(
    client: httpx.AsyncClient, database: asyncpg.Pool
) -> None:
    many = [{**ADA, "object": f"migration:{number}"} for number in range(101)]
    for body, code in [
        ({}, "invalid_write_input"),
        ({"writes": {"tuple_keys": []}}, "validation_error"),
        ({"writes": {"tuple_keys": [{"user": "user:ada"}]}}, "validation_error"),
        ({"writes": {"tuple_keys": [ADA], "surprise": 1}}, "validation_error"),
        ({"writes": {"tuple_keys": many}}, "exceeded_entity_limit"),
        ({"writes": {"tuple_keys": [ADA, ADA]}}, "cannot_allow_duplicate_tuples_in_one_request"),
        (
            {"writes": {"tuple_keys": [ADA]}, "deletes": {"tuple_keys": [ADA]}},
            "cannot_allow_duplicate_tuples_in_one_request",
        ),
    ]:
        answer = await client.post("/stores/replank/write", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, code), answer.text
    assert await database.fetchval("select count(*) from relation_tuple") == len(BOOTSTRAP)


async def test_malformed_and_oversized_bodies_are_refused(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    cut_off = await client.post("/stores/replank/check", content=b"{", headers=headers)
    assert (cut_off.status_code, cut_off.json()["code"]) == (400, "validation_error")
    large = await client.post("/stores/replank/check", content=b'"' + b"x" * 2_000_000 + b'"', headers=headers)
    assert large.status_code == 413


async def test_an_unknown_store_is_not_found_whatever_is_asked_of_it(client: httpx.AsyncClient) -> None:
    for path, body in (("check", {"tuple_key": ADA}), ("write", {"writes": {"tuple_keys": [ADA]}})):
        answer = await client.post(f"/stores/nowhere/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "store_id_not_found"), answer.text


async def test_checking_needs_a_token_and_writing_a_right(client: httpx.AsyncClient, issuer: Issuer) -> None:
    body = {"tuple_key": ADA}
    assert (await client.post("/stores/replank/check", json=body, headers={"authorization": ""})).status_code == 401
    expired = {"authorization": f"Bearer {issuer.token(exp=1)}"}
    assert (await client.post("/stores/replank/check", json=body, headers=expired)).status_code == 401
    eve = {"authorization": f"Bearer {issuer.token('user:eve')}"}
    assert (await client.post("/stores/replank/check", json=body, headers=eve)).status_code == 200
    refused = await client.post("/stores/replank/write", json={"writes": {"tuple_keys": [ADA]}}, headers=eve)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert not await check(client, ADA)


async def test_without_valkey_it_answers_and_is_ready(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, issuer: Issuer
) -> None:
    settings = configure(postgres_dsn, valkey_url="redis://127.0.0.1:1/0")
    async with living(compose(settings), issuer.token(ROOT)) as client:
        assert (await write(client, writes={"tuple_keys": [ADA]})).status_code == 200
        assert await check(client, ADA)
        await write(client, deletes={"tuple_keys": [ADA]})
        assert not await check(client, ADA)
        dependencies = (await client.get("/readyz")).json()["dependencies"]
    assert (dependencies["valkey"]["ready"], dependencies["valkey"]["required"]) == (False, False)


async def test_without_postgres_it_answers_503_and_never_yes(configure: Configure, issuer: Issuer) -> None:
    settings = configure("postgresql://postgres@127.0.0.1:1/none")
    async with http_alone(compose(settings), issuer.token(ROOT)) as client:
        answer = await client.post("/stores/replank/check", json={"tuple_key": BOOTSTRAP[0]})
    assert (answer.status_code, answer.json()["dependency"]) == (503, "postgres")


async def test_the_librarys_client_and_this_service_understand_each_other(
    client: httpx.AsyncClient, issuer: Issuer
) -> None:
    authz = AuthzClient("http://service", issuer.token(ROOT))
    await authz.close()
    authz._client = client
    await authz.write([Tuple(**ADA)])
    assert (await authz.check(ADA["user"], ADA["relation"], ADA["object"])).allowed
    assert not (await authz.check(BEN["user"], BEN["relation"], BEN["object"])).allowed
