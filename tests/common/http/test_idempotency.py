"""A creating POST that is sent twice creates once and answers the same twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel

from replank.http import Authenticator, Problem, Readiness, RequestModel, create_app, idempotent
from replank.http.idempotency import IdempotencyMisuse
from replank.postgres import Pools, idempotency
from replank.testing.faults import FaultProxy
from replank.testing.plugin import FaultProxies
from replank.testing.wait import eventually
from tests.common.http.conftest import Caller, Issuer


class NewPlank(RequestModel):
    name: str


class PlankView(BaseModel):
    id: UUID
    name: str


@pytest.fixture
async def proxy(postgres_dsn: str, fault_proxy: FaultProxies) -> FaultProxy:
    """Stands between the service and Postgres."""
    return await fault_proxy(urlsplit(postgres_dsn).netloc.rpartition("@")[2])


@pytest.fixture
async def pools(postgres_dsn: str, proxy: FaultProxy) -> AsyncIterator[Pools]:
    async with Pools(proxy.in_front_of(postgres_dsn), service="shop") as opened:
        async with opened.general_primary.acquire() as conn:
            await idempotency.install(conn)
            await conn.execute("create table plank (id uuid primary key, name text not null)")
        yield opened


class Gate:
    """Holds requests inside their transaction until opened."""

    def __init__(self) -> None:
        self.inside = 0
        self.opened = asyncio.Event()
        self.opened.set()

    async def pass_through(self) -> None:
        self.inside += 1
        await self.opened.wait()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def app(authenticator: Authenticator, pools: Pools, gate: Gate) -> FastAPI:
    router = APIRouter()

    async def create(request: Request, body: NewPlank, *, required: bool) -> Response:
        async with (
            pools.write_heavy.acquire() as conn,
            conn.transaction(),
            idempotent(request, conn, required=required) as call,
        ):
            if call.replay is not None:
                return call.replay
            plank = PlankView(id=uuid4(), name=body.name)
            await conn.execute("insert into plank values ($1, $2)", plank.id, plank.name)
            await gate.pass_through()
            if body.name == "rotten":
                raise Problem(409, "rotten", "the plank is rotten")
            return await call.answer(201, plank, headers={"location": f"/planks/{plank.id}"})

    @router.post("/planks", status_code=201)
    async def create_plank(request: Request, body: NewPlank) -> Response:
        return await create(request, body, required=False)

    @router.post("/strict", status_code=201)
    async def create_strictly(request: Request, body: NewPlank) -> Response:
        return await create(request, body, required=True)

    @router.post("/careless")
    async def careless(request: Request) -> Response:
        async with pools.write_heavy.acquire() as conn, idempotent(request, conn) as call:
            return await call.answer(201, PlankView(id=uuid4(), name=""))

    @router.post("/forgetful")
    async def forgetful(request: Request) -> None:
        async with pools.write_heavy.acquire() as conn, conn.transaction(), idempotent(request, conn):
            await conn.execute("insert into plank values (gen_random_uuid(), 'forgotten')")

    return create_app(
        service="shop", version="1.0", authenticator=authenticator, readiness=Readiness(), routers=[router]
    )


@pytest.fixture
async def client(app: FastAPI, calling: Caller) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(app) as opened:
        yield opened


def keyed(key: str) -> dict[str, str]:
    return {"idempotency-key": key}


async def planks(pool: asyncpg.Pool) -> int:
    return int(await pool.fetchval("select count(*) from plank"))


async def test_the_same_request_again_gets_the_same_answer_and_creates_nothing(
    client: httpx.AsyncClient, pool: asyncpg.Pool
) -> None:
    first = await client.post("/planks", json={"name": "oak"}, headers=keyed("a"))
    again = await client.post("/planks", json={"name": "oak"}, headers=keyed("a"))
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert first.headers["location"] == again.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await planks(pool) == 1


async def test_the_same_key_for_another_request_is_refused(client: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await client.post("/planks", json={"name": "oak"}, headers=keyed("a"))
    for answer in (
        await client.post("/planks", json={"name": "ash"}, headers=keyed("a")),
        await client.post("/planks?fast=1", json={"name": "oak"}, headers=keyed("a")),
    ):
        assert answer.status_code == 422
        assert answer.json()["type"] == "urn:replank:problem:idempotency-key-reused"
    assert await planks(pool) == 1


async def test_a_key_belongs_to_one_caller_and_one_path(
    app: FastAPI, calling: Caller, issuer: Issuer, pool: asyncpg.Pool
) -> None:
    async with calling(app) as anna, calling(app, issuer.token("user:bert")) as bert:
        for caller, path in ((anna, "/planks"), (bert, "/planks"), (anna, "/strict")):
            answer = await caller.post(path, json={"name": "oak"}, headers=keyed("a"))
            assert "idempotency-replayed" not in answer.headers
    assert await planks(pool) == 3


async def test_a_request_that_failed_may_be_tried_again_under_its_key(
    client: httpx.AsyncClient, pool: asyncpg.Pool
) -> None:
    assert (await client.post("/planks", json={"name": "rotten"}, headers=keyed("a"))).status_code == 409
    assert await planks(pool) == 0
    assert (await client.post("/planks", json={"name": "oak"}, headers=keyed("a"))).status_code == 201
    assert await planks(pool) == 1


async def test_a_second_request_while_the_first_is_served_is_told_to_come_back(
    client: httpx.AsyncClient, gate: Gate, pool: asyncpg.Pool
) -> None:
    gate.opened.clear()
    first = asyncio.create_task(client.post("/planks", json={"name": "oak"}, headers=keyed("a")))
    await eventually(lambda: gate.inside == 1, "the first request is in its transaction")
    second = await client.post("/planks", json={"name": "oak"}, headers=keyed("a"))
    assert second.status_code == 409
    assert second.json()["type"] == "urn:replank:problem:request-in-progress"
    assert second.headers["retry-after"] == "1"
    gate.opened.set()
    assert (await first).status_code == 201
    third = await client.post("/planks", json={"name": "oak"}, headers=keyed("a"))
    assert third.content == (await first).content
    assert await planks(pool) == 1


async def test_a_race_of_many_creates_one(client: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    async def until_served() -> httpx.Response:
        while True:
            answer = await client.post("/planks", json={"name": "oak"}, headers=keyed("a"))
            if answer.status_code != 409:
                return answer

    answers = await asyncio.gather(*(until_served() for _ in range(8)))
    assert len({answer.content for answer in answers}) == 1
    assert await planks(pool) == 1


async def test_a_database_that_goes_away_in_the_middle_leaves_nothing_and_the_retry_creates_once(
    client: httpx.AsyncClient, gate: Gate, pool: asyncpg.Pool, proxy: FaultProxy
) -> None:
    gate.opened.clear()
    first = asyncio.create_task(client.post("/planks", json={"name": "oak"}, headers=keyed("a")))
    await eventually(lambda: gate.inside == 1, "the first request is in its transaction")
    await proxy.refuse()
    gate.opened.set()
    answer = await first
    assert answer.status_code == 503
    assert answer.json()["dependency"] == "postgres"
    assert (await client.post("/planks", json={"name": "oak"}, headers=keyed("a"))).status_code == 503
    assert await planks(pool) == 0
    await proxy.heal()

    async def created() -> bool:
        # The server may take a moment to notice that the first session is gone, and to release its lock.
        retried = await client.post("/planks", json={"name": "oak"}, headers=keyed("a"))
        assert retried.status_code in {201, 409}
        return retried.status_code == 201

    await eventually(created, "the retry creates")
    assert await planks(pool) == 1


async def test_without_a_key_every_request_creates_unless_a_key_is_required(
    client: httpx.AsyncClient, pool: asyncpg.Pool
) -> None:
    for _ in range(2):
        assert (await client.post("/planks", json={"name": "oak"})).status_code == 201
    assert await planks(pool) == 2
    answer = await client.post("/strict", json={"name": "oak"})
    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:replank:problem:idempotency-key-missing"


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256])
async def test_a_malformed_key_is_refused(client: httpx.AsyncClient, key: str) -> None:
    answer = await client.post("/planks", json={"name": "oak"}, headers=keyed(key))
    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:replank:problem:idempotency-key-malformed"


async def test_after_a_day_a_key_is_new_and_the_old_answers_are_gone(
    client: httpx.AsyncClient, pool: asyncpg.Pool
) -> None:
    for key in "abc":
        await client.post("/planks", json={"name": "oak"}, headers=keyed(key))
    await pool.execute("update replank_http.idempotency set created_at = created_at - interval '2 days'")
    again = await client.post("/planks", json={"name": "ash"}, headers=keyed("a"))
    assert again.status_code == 201
    assert again.json()["name"] == "ash"
    assert [row["key"] for row in await pool.fetch("select key from replank_http.idempotency")] == ["a"]


@pytest.mark.parametrize("path", ["/careless", "/forgetful"])
async def test_misuse_is_an_error_that_changes_nothing(
    client: httpx.AsyncClient, pool: asyncpg.Pool, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await client.post(path, headers=keyed("a"))).status_code == 500
    assert IdempotencyMisuse.__name__ in caplog.text
    assert await planks(pool) == 0


async def test_installing_twice_or_at_once_is_harmless(pool: asyncpg.Pool) -> None:
    async def install() -> None:
        async with pool.acquire() as conn:
            await idempotency.install(conn)

    await asyncio.gather(*(install() for _ in range(4)))
    assert await pool.fetchval("select to_regclass('replank_http.idempotency') is not null")
