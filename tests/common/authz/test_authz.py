"""Only a clear yes is a yes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.responses import JSONResponse, PlainTextResponse, Response

from replank import service
from replank.authz import AuthzClient, AuthzRejected, Tuple
from replank.authz.routes import require
from replank.errors import ConfigurationError, DependencyUnavailable
from replank.http import Authenticator, Principal, Readiness, create_app
from replank.testing import eventually
from replank.testing.faults import unused_address
from replank.testing.plugin import FaultProxies
from tests.common.authz.conftest import Server

ANNA_OWNS_7 = Tuple("user:anna", "owner", "plank:7")


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AuthzClient]:
    async with AuthzClient(server.url, "token") as opened:
        yield opened


async def test_a_written_fact_is_allowed_and_a_deleted_one_is_not(client: AuthzClient) -> None:
    assert not (await client.check("user:anna", "owner", "plank:7")).allowed
    await client.write([ANNA_OWNS_7])
    decision = await client.check("user:anna", "owner", "plank:7")
    assert (decision.allowed, decision.user, decision.relation, decision.object) == (
        True,
        "user:anna",
        "owner",
        "plank:7",
    )
    await client.write(deletes=[ANNA_OWNS_7])
    assert not (await client.check("user:anna", "owner", "plank:7")).allowed


async def test_speaks_openfga(client: AuthzClient, server: Server) -> None:
    await client.check("user:anna", "owner", "plank:7", {"hour": 12})
    path, headers, body = server.requests[0]
    assert path == "/stores/replank/check"
    assert headers["authorization"] == "Bearer token"
    assert body == {
        "tuple_key": {"user": "user:anna", "relation": "owner", "object": "plank:7"},
        "context": {"hour": 12},
    }


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({}),
        JSONResponse({"allowed": "true"}),
        JSONResponse({"allowed": 1}),
        JSONResponse({"allowed": None}),
        JSONResponse([True]),
        PlainTextResponse("true"),
        PlainTextResponse(""),
        JSONResponse({"allowed": True}, status_code=500),
        JSONResponse({"allowed": True}, status_code=503),
        JSONResponse({"allowed": True}, status_code=202),
        Response(status_code=302, headers={"location": "/healthz"}),
        JSONResponse({"allowed": True}, status_code=401),
        JSONResponse({"allowed": True}, status_code=403),
    ],
)
async def test_what_is_no_clear_answer_is_no_yes(client: AuthzClient, server: Server, answer: Response) -> None:
    server.respond = lambda: answer
    with pytest.raises(DependencyUnavailable, match="gives no decision"):
        await client.check("user:anna", "owner", "plank:7")


async def test_a_question_that_the_server_refuses_says_why(client: AuthzClient, server: Server) -> None:
    server.respond = lambda: JSONResponse({"code": "validation_error", "message": "no such relation"}, status_code=400)
    with pytest.raises(AuthzRejected, match="no such relation") as caught:
        await client.check("user:anna", "eats", "plank:7")
    assert caught.value.code == "validation_error"


async def test_a_server_that_is_down_is_unavailable_within_the_deadline() -> None:
    async with unused_address() as address, AuthzClient(f"http://{address}", "token", within=1.0) as client:
        started = time.monotonic()
        with pytest.raises(DependencyUnavailable) as caught:
            await client.check("user:anna", "owner", "plank:7")
        assert time.monotonic() - started < 2
        assert caught.value.dependency == "auth-cache"
        with pytest.raises(DependencyUnavailable):
            await client.ping()


async def test_a_server_that_does_not_answer_is_unavailable_within_the_deadline(
    server: Server, fault_proxy: FaultProxies
) -> None:
    proxy = await fault_proxy(server.address)
    async with AuthzClient(f"http://{proxy.address}", "token", within=0.3) as client:
        await client.ping()
        proxy.stall()
        started = time.monotonic()
        with pytest.raises(DependencyUnavailable, match="no answer in time"):
            await client.check("user:anna", "owner", "plank:7")
        assert time.monotonic() - started < 1.5


async def test_it_is_as_well_as_before_after_an_outage_with_more_callers_than_connections(
    server: Server, fault_proxy: FaultProxies
) -> None:
    proxy = await fault_proxy(server.address)
    server.respond = lambda: JSONResponse({"allowed": True})
    async with AuthzClient(f"http://{proxy.address}", "token", within=0.5) as client:

        async def ask() -> None:
            # During the outage, and while the first of all these are served after it, some are too late.
            with contextlib.suppress(DependencyUnavailable):
                await client.check("user:ada", "read", "doc:1")

        for _ in range(5):
            proxy.stall()
            asking = [asyncio.create_task(ask()) for _ in range(250)]
            await asyncio.wait(asking, timeout=0.4)
            await proxy.heal()
            await asyncio.gather(*asking)

        async def answers() -> bool:
            try:
                return (await client.check("user:ada", "read", "doc:1")).allowed
            except DependencyUnavailable as error:
                raise AssertionError(str(error)) from error

        await eventually(answers, "it answers again", within=10)


async def test_a_connection_that_broke_meanwhile_does_not_fail_a_check(
    server: Server, fault_proxy: FaultProxies
) -> None:
    server.facts.add(("user:anna", "owner", "plank:7"))
    proxy = await fault_proxy(server.address)
    async with AuthzClient(f"http://{proxy.address}", "token") as client:
        for _ in range(3):
            assert (await client.check("user:anna", "owner", "plank:7")).allowed
            proxy.cut()


async def test_a_write_is_not_repeated_once_it_may_have_been_seen(server: Server, fault_proxy: FaultProxies) -> None:
    proxy = await fault_proxy(server.address)
    proxy.cut_after(0, "to_client")
    async with AuthzClient(f"http://{proxy.address}", "token") as client:
        with pytest.raises(DependencyUnavailable):
            await client.write([ANNA_OWNS_7])
    assert len(server.requests) == 1


async def test_a_token_file_is_read_again_when_it_changes(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old\n")
    async with AuthzClient(server.url, path) as client:
        await client.check("user:anna", "owner", "plank:7")
        fresh = tmp_path / "fresh"
        fresh.write_text("new\n")
        fresh.replace(path)
        await client.check("user:anna", "owner", "plank:7")
        assert [headers["authorization"] for _, headers, _ in server.requests] == ["Bearer old", "Bearer new"]
        path.write_text("")
        with pytest.raises(ConfigurationError, match="is empty"):
            await client.check("user:anna", "owner", "plank:7")
        path.unlink()
        with pytest.raises(ConfigurationError, match="cannot be read"):
            await client.check("user:anna", "owner", "plank:7")


# --- routes ---


class Anybody(Authenticator):
    """Takes the token for the caller's name: this is about what a caller may do, not about who it is."""

    def __init__(self) -> None:
        super().__init__(issuer="", audience="", jwks="")

    async def authenticate(self, token: str) -> Principal:
        return Principal(token, {})


def shop(authz: AuthzClient | None) -> FastAPI:
    router = APIRouter()

    @router.get("/planks/{plank_id}")
    async def plank(
        plank_id: str, principal: Annotated[Principal, Depends(require("owner", "plank:{plank_id}"))]
    ) -> dict[str, str]:
        return {"plank": plank_id, "for": principal.user}

    return create_app(
        service="shop", version="1.0", authenticator=Anybody(), readiness=Readiness(), routers=[router], authz=authz
    )


async def get(app: FastAPI, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        return await client.get(path, headers={"authorization": "Bearer anna"})


async def test_a_route_lets_in_who_may_and_names_what_is_missing_otherwise(client: AuthzClient, server: Server) -> None:
    server.facts.add(("user:anna", "owner", "plank:7"))
    assert (await get(shop(client), "/planks/7")).json() == {"plank": "7", "for": "user:anna"}
    refused = await get(shop(client), "/planks/8")
    assert refused.status_code == 403
    document = refused.json()
    assert document["type"] == "urn:replank:problem:forbidden"
    assert (document["subject"], document["relation"], document["object"]) == ("user:anna", "owner", "plank:8")


async def test_a_route_lets_nobody_in_when_nobody_can_tell() -> None:
    async with unused_address() as address, AuthzClient(f"http://{address}", "token", within=0.5) as client:
        answer = await get(shop(client), "/planks/7")
    assert answer.status_code == 503
    assert answer.json()["dependency"] == "auth-cache"


async def test_a_route_of_an_application_without_authorization_lets_nobody_in() -> None:
    assert (await get(shop(None), "/planks/7")).status_code == 500


async def test_a_service_tells_of_every_repeated_attempt_and_whose_it_was(caplog: pytest.LogCaptureFixture) -> None:
    async with unused_address() as address, AuthzClient(f"http://{address}", "very-secret") as client:
        with caplog.at_level("INFO"), pytest.raises(DependencyUnavailable):
            await client.check("user:anna", "owner", "plank:7")
    told = [record for record in caplog.records if record.name in {service.__name__, "stamina"}]
    assert [(record.levelname, record.getMessage()[:16]) for record in told] == [
        ("INFO", "attempt 1 failed"),
        ("INFO", "attempt 2 failed"),
    ]
    assert all(f"auth-cache at http://{address}" in record.getMessage() for record in told)
    assert "very-secret" not in caplog.text
