"""What is refused leaves nothing behind: no row, no event."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
import pytest_asyncio

from replank.testing import eventually
from tests.e2e.system import DRAFT, System

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def untouched(system: System) -> AsyncIterator[System]:
    """The system; afterwards it must have written neither a migration nor an event."""
    before = await system.written()
    yield system
    assert await system.written() == before


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of a refusal; it says what is wrong, and where to look."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:replank:problem:")
    assert problem["detail"]
    assert problem["trace_id"] == answer.headers["x-trace-id"]
    return problem


async def test_without_a_token_nothing_is_answered(untouched: System) -> None:
    answer = await untouched.plan(token="")
    refused(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_token_for_another_audience_is_refused(untouched: System) -> None:
    claims = jwt.decode(untouched.token(), options={"verify_signature": False})
    key = (untouched.stack.secrets.folder / "signing-key.pem").read_bytes()
    kid = jwt.get_unverified_header(untouched.token())["kid"]
    token = jwt.encode({**claims, "aud": "somebody-else"}, key, algorithm="EdDSA", headers={"kid": kid})
    refused(await untouched.plan(token=token), 401)
    # The same claims for the right audience are accepted: it was the audience.
    token = jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": kid})
    async with untouched.client("schema", token=token) as client:
        assert (await client.get("/v1/migrations")).status_code == 200


async def test_who_has_not_the_right_is_refused(untouched: System) -> None:
    problem = refused(await untouched.plan(token=untouched.token("user:eve")), 403)
    assert "user:eve" in problem["detail"]


async def test_an_unknown_field_is_refused_by_name(untouched: System) -> None:
    problem = refused(await untouched.plan({**DRAFT, "urgency": "high"}), 422)
    assert [fault["field"] for fault in problem["errors"]] == ["body.urgency"]


async def test_an_oversized_request_is_refused(untouched: System) -> None:
    refused(await untouched.plan({**DRAFT, "mapping": {"padding": "x" * 2_000_000}}), 413)


async def test_a_key_of_another_request_is_refused(system: System) -> None:
    key = str(uuid4())
    accepted = await system.plan(key=key)
    assert accepted.status_code == 201
    await system.ready(accepted.json()["id"])
    before = await system.written()
    refused(await system.plan({**DRAFT, "target": "elsewhere"}, key=key), 422)
    assert await system.written() == before


async def test_without_auth_cache_nobody_may_and_once_it_is_back_the_same_request_is_served(system: System) -> None:
    key, before = str(uuid4()), await system.written()
    await system.stack.kill("auth-cache")
    try:
        answer = await system.plan(key=key)
        problem = refused(answer, 503)
        assert problem["dependency"] == "auth-cache"
        assert int(answer.headers["retry-after"]) >= 1
        assert await system.written() == before
        # What does not need it goes on.
        async with system.client("schema", token="") as client:
            assert (await client.get("/readyz")).status_code == 200
    finally:
        await system.stack.start("auth-cache")

    async def served() -> httpx.Response:
        again = await system.plan(key=key)
        assert again.status_code == 201, again.text
        return again

    answer = await eventually(served, "the request is served", within=30, interval=0.2)
    await system.ready(answer.json()["id"])


async def test_a_source_that_does_not_exist_is_said_and_stops_nothing(system: System) -> None:
    answer = await system.plan({**DRAFT, "source": "nowhere"})
    assert answer.status_code == 201, answer.text
    migration_id = answer.json()["id"]

    async def failed() -> Any:
        found = await system.get("schema", f"/v1/migrations/{migration_id}")
        states = {line["item"]: line for line in found["readiness"]}
        assert states["baseline"]["state"] == "failed", states
        assert {states["access"]["state"], states["archive"]["state"]} == {"met"}, states
        return found

    found = await eventually(failed, "the checklist says that the baseline failed", within=30)
    assert not found["ready"]
    for service in ("benchmark", "schema"):
        (row,) = await system.fetch(service, "select count(*) as letters from replank_inbox.dead_letter")
        assert row["letters"] == 0
