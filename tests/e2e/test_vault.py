"""The vault in the running system: a trace from the upload to the owner's right, and old rows for the archiver."""

from __future__ import annotations

import json
from typing import Any, Final

import asyncpg
import httpx
import pytest

from replank import flags
from replank.telemetry.jaeger import Jaeger, Trace
from replank.testing import eventually
from replank_local.services import SERVICES
from tests.e2e.system import OWNER, System

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="session")]

_JSON: Final = {"content-type": "application/json"}
_LARGE: Final = json.dumps(list(range(900_000))).encode()
_OLD: Final = 12


async def ended(client: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    """What the job of an answer did."""
    assert answer.status_code == 202, answer.text

    async def done() -> dict[str, Any]:
        shown: dict[str, Any] = (await client.get(answer.headers["location"])).json()
        assert shown["state"] == "done", shown
        return shown

    return await eventually(done, "the job is done", within=30)


def complete(trace: Trace) -> bool:
    """Whether the last hop has come, which is what auth-cache says of the owner, and what all of it is below."""
    told = trace.paths("auth-cache: process replank.schema", "auth-cache: publish replank.auth-cache")
    return bool(told) and len(trace.roots) == 1


async def test_a_large_upload_is_one_trace_to_the_right_of_its_owner(system: System) -> None:
    async with system.client("schema") as client:
        answer = await client.post(
            "/schemavault/upload", params={"name": "e2e/large", "owner": OWNER}, content=_LARGE, headers=_JSON
        )
        schema_id = (await ended(client, answer))["result"]["schema_id"]
    async with Jaeger(system.stack.endpoints.jaeger) as jaeger:
        trace = await jaeger.trace(answer.headers["x-trace-id"], until=complete, within=60)
    (root,) = trace.roots
    assert str(root) == "schema: POST /schemavault/upload"
    assert not [str(span) for span in trace.spans if span.failed]
    trace.assert_path(
        "schema: POST /schemavault/upload",
        "schema: vault job upload",
        "schema: outbox wait",
        "schema: publish replank.schema",
        "auth-cache: process replank.schema",
        "auth-cache: outbox wait",
        "auth-cache: publish replank.auth-cache",
    )
    trace.assert_path(
        "schema: POST /schemavault/upload", "schema: vault receive", "schema: s3 put replank-vault-standard"
    )
    trace.assert_path("schema: vault job upload", "schema: s3 put replank-vault-standard")

    async with system.client("schema", token=system.token(OWNER)) as owner:

        async def may_change() -> bool:
            changed = await owner.patch(
                f"/schemavault/{schema_id}", json={"tags": ["mine"]}, headers={"if-match": '"1"'}
            )
            assert changed.status_code == 200, changed.text
            return True

        await eventually(may_change, "the owner may change it", within=20)
        assert (await owner.get("/schemavault")).status_code == 403, "and no more than that"


async def test_the_contracts_of_all_services_are_in_the_vault(system: System) -> None:
    async with system.client("schema") as client:

        async def are_there() -> bool:
            items = (await client.get("/schemavault", params={"tag": "event-contract", "limit": 200})).json()["items"]
            assert {item["metadata"]["service"] for item in items} == set(SERVICES), items
            return True

        await eventually(are_there, "every service has declared its contracts", within=60)


async def test_no_mode_reaches_the_other_as_the_stack_sets_them_up(system: System) -> None:
    async with system.client("schema") as client:
        shown = (await client.post("/v1/vault/verify-isolation")).json()
    assert shown["isolated"], [attempt for attempt in shown["attempts"] if not attempt["as_it_should_be"]]
    assert shown["crossing"] == shown["refused"] > 100


async def test_old_rows_are_moved_and_deleted_when_the_archiver_has_proven_its_copy(system: System) -> None:
    conn = await asyncpg.connect(system.stack.endpoints.postgres(database=SERVICES["schema"].database))
    try:
        # Nobody has written to this mode yet.
        await flags.set(conn, "USE_OPTIMIZED_SCHEMAS", False, by="user:ada", reason="an installation of old")
        async with system.client("schema") as client:

            async def is_old() -> bool:
                return (await client.get("/pro/schemas/pattern")).json()["optimized"] is False

            await eventually(is_old, "the flag has arrived", within=20)
            for number in range(_OLD):
                answer = await client.post(
                    "/pro/schemas/upload",
                    params={"name": f"old/{number}"},
                    content=b'{"n": %d}' % number,
                    headers=_JSON,
                )
                assert answer.status_code == 201, answer.text
            assert (await client.get("/pro/schemas/pattern")).json()["phase"] == "planned"
            assert await conn.fetchval("select count(*) from vault_pro.inline_schema") == _OLD
            assert await conn.fetchval("select count(*) from vault_pro.schema") == 0

            await ended(client, await client.post("/pro/schemas/pattern/migrate"))
            await flags.set(conn, "USE_OPTIMIZED_SCHEMAS", True, by="user:ada", reason="the move")

            async def advanced() -> bool:
                answer = await client.post("/pro/schemas/pattern/advance")
                assert answer.status_code == 200, answer.text
                return True

            await eventually(advanced, "it reads without fallback", within=20)
            await eventually(advanced, "it is completed", within=20)
            await ended(client, await client.post("/pro/schemas/pattern/archive-old"))

            async def archived() -> dict[str, Any]:
                shown: dict[str, Any] = (await client.get("/pro/schemas/pattern")).json()
                assert shown["phase"] == "archived", shown
                return shown

            shown = await eventually(archived, "the archiver has the old rows", within=60)
            assert (shown["archive"]["rows"], shown["archive"]["deleted"], shown["old_rows"]) == (_OLD, _OLD, 0)
            for number in range(_OLD):
                content = await client.get(f"/pro/schemas/by-name/old/{number}/content")
                assert content.json() == {"n": number}
        (manifest,) = await system.fetch("archiver", "select * from schemas_manifest")
        assert manifest["sha256"] == shown["archive"]["sha256"]
    finally:
        await conn.close()
