"""Large uploads: answered with a job that survives who took it in, in constant memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
import uvicorn

from replank.contracts.schema import SchemaVersionPublished
from replank.http.server import listening_socket
from replank.telemetry import metrics
from replank.testing import eventually
from replank.testing.services import Issuer, appended, http_alone
from replank_schema.application import compose
from replank_schema.vault import collector, job_store, uploads
from replank_schema.vault.jobs import Jobs, Work
from replank_schema.vault.model import INCOMING
from replank_schema.vault.vault import Vault, open_vault
from tests.schema.vault.conftest import Configure
from tests.schema.vault.served import ADA, problem, publish, sha256_of, upload

SMALL = 4096
LARGE = json.dumps([f"item {number}" for number in range(5_000)]).encode()


@pytest.fixture
def small(configure: Configure) -> dict[str, Any]:
    """Limits under which `LARGE` is large."""
    return {"inline_bytes": SMALL, "job_lease": 1.0, "grace_seconds": 1}


@asynccontextmanager
async def vault_of(configure: Configure, **limits: Any) -> AsyncIterator[Vault]:
    """The standard mode, as a process of the service has it."""
    settings = configure(**limits)
    assert settings.s3_url is not None
    vault = open_vault("standard", settings.vault["standard"], s3_url=settings.s3_url, limits=settings.vault_limits)
    try:
        yield vault
    finally:
        await vault.close()


@asynccontextmanager
async def working(vault: Vault) -> AsyncIterator[Jobs]:
    """The work of jobs of one process."""
    jobs, stop = Jobs(vault, [{uploads.KIND: uploads.handle}]), asyncio.Event()
    task = asyncio.create_task(jobs.run(stop))
    try:
        yield jobs
    finally:
        stop.set()
        await task


async def ended(client: httpx.AsyncClient, answer: httpx.Response, state: str = "done") -> dict[str, Any]:
    """The job of an answer, once it has ended so."""
    assert answer.status_code == 202, answer.text

    async def job() -> dict[str, Any]:
        shown: dict[str, Any] = (await client.get(answer.headers["location"])).json()
        assert shown["state"] == state, shown
        return shown

    return await eventually(job, f"the job is {state}", within=20)


async def objects_of(vault: Vault) -> list[str]:
    return [info.key async for info in vault.objects.list() if not info.key.startswith(".replank-probe")]


async def test_a_large_upload_becomes_a_job_that_publishes_it(
    configure: Configure, small: dict[str, Any], issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with (
        http_alone(compose(configure(**small)), issuer_of_tokens.token(ADA)) as client,
        vault_of(configure, **small) as vault,
        working(vault),
    ):
        ended_before = metrics.VAULT_JOBS.labels(mode="standard", kind="upload", outcome="done")._value.get()
        answer = await upload(client, "large", LARGE, tag=["t"])
        job = await ended(client, answer)
        await eventually(
            lambda: (
                metrics.VAULT_JOBS.labels(mode="standard", kind="upload", outcome="done")._value.get() > ended_before
            ),
            "the job is counted",
        )
        assert (job["done"], job["result"]["sha256"], job["result"]["version"]) == (job["total"], sha256_of(LARGE), 1)
        shown = (await client.get(f"/schemavault/{job['result']['schema_id']}")).json()
        assert (shown["name"], shown["size"], shown["tags"], shown["created_by"]) == ("large", len(LARGE), ["t"], ADA)
        assert (await client.get(f"/schemavault/{shown['id']}/content")).content == LARGE
        assert await objects_of(vault) == [f"{shown['sha256'][:2]}/{shown['sha256']}"]

        more = json.dumps([*json.loads(LARGE), "one more"]).encode()
        job = await ended(client, await publish(client, shown, more))
        assert job["result"]["version"] == 2
        # The same once more is known by its digest: no job.
        again = await client.put(
            f"/schemavault/blobs/{sha256_of(more)}", content=b"", headers={"content-type": "application/json"}
        )
        assert again.status_code == 200
        refused = await ended(client, await publish(client, shown, json.dumps(["x" * 9000]).encode()), "failed")
        assert "revision" in refused["problem"]
        async with database.acquire() as conn:
            events = [event for _, event in await appended(conn) if isinstance(event, SchemaVersionPublished)]
        assert [event.version for event in events] == [1, 2]


async def test_a_job_whose_process_died_is_done_by_another_and_once(
    configure: Configure, small: dict[str, Any], issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with (
        http_alone(compose(configure(**small)), issuer_of_tokens.token(ADA)) as client,
        vault_of(configure, **small) as vault,
    ):
        answer = await upload(client, "large", LARGE)
        # Killed at its worst: everything is published, and the job does not say so yet.
        async with vault.pool.acquire() as conn:
            job = await job_store.claim(conn, [uploads.KIND], timedelta(seconds=1))
        assert job is not None
        died = asyncio.Event()

        class Dying(Work):
            async def end(self, *_: Any) -> None:
                died.set()
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await uploads.handle(Dying(vault, job))
        assert died.is_set()
        assert await database.fetchval("select count(*) from vault_standard.schema") == 1
        async with working(vault):
            shown = await ended(client, answer)
        assert (shown["attempts"], shown["result"]["version"]) == (2, 1)
        assert await database.fetchval("select count(*) from replank_outbox.event") == 1
        assert not [key for key in await objects_of(vault) if key.startswith(INCOMING)]


async def test_what_was_received_is_proven_before_it_is_published(
    configure: Configure, small: dict[str, Any], issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with (
        http_alone(compose(configure(**small)), issuer_of_tokens.token(ADA)) as client,
        vault_of(configure, **small) as vault,
    ):
        answer = await upload(client, "large", LARGE)
        job_id = UUID(answer.json()["id"])
        stored = bytearray(await vault.objects.read(f"{INCOMING}{job_id}"))
        stored[len(stored) // 2] ^= 1
        await vault.objects.put(f"{INCOMING}{job_id}", bytes(stored))
        async with working(vault):
            await ended(client, answer, "failed")
        assert await database.fetchval("select count(*) from vault_standard.schema") == 0
        assert [key for key in await objects_of(vault) if not key.startswith(INCOMING)] == []


async def test_a_queued_job_is_cancelled_and_its_upload_collected(
    configure: Configure, small: dict[str, Any], issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with (
        http_alone(compose(configure(**small)), issuer_of_tokens.token(ADA)) as client,
        vault_of(configure, **small) as vault,
    ):
        answer = await upload(client, "large", LARGE)
        url = answer.headers["location"]
        assert (await client.post(f"{url}/cancel")).json()["state"] == "cancelled"
        problem(await client.post(f"{url}/cancel"), 409, "job-ended")

        async def nothing_left() -> bool:
            await collector.collect(vault)
            assert await objects_of(vault) == []
            assert await database.fetchval("select count(*) from vault_standard.blob") == 0
            return True

        await eventually(nothing_left, "the upload is collected", within=10)


@pytest.mark.parametrize("inline", [SMALL, 1_000_000])
async def test_a_sender_who_goes_away_in_the_middle_leaves_nothing(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool, inline: int
) -> None:
    service = compose(configure(inline_bytes=inline))
    sock = listening_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(service.app(), ws="none", lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await eventually(lambda: server.started, "the service serves")
        _, writer = await asyncio.open_connection(*sock.getsockname())
        head = (
            "POST /schemavault/upload?name=a HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {issuer_of_tokens.token(ADA)}\r\ncontent-length: {len(LARGE)}\r\n\r\n"
        )
        writer.write(head.encode() + LARGE[:40_000])
        await writer.drain()
        await eventually(lambda: server.server_state.tasks, "the request has begun", within=10)
        writer.close()
        await writer.wait_closed()

        await eventually(lambda: not server.server_state.tasks, "the service has let the request go", within=10)
        async with vault_of(configure) as vault:
            assert await objects_of(vault) == []
        assert await database.fetchval("select count(*) from vault_standard.blob") == 0
    finally:
        server.should_exit = True
        await serving
        await service.close()
