"""The brake: while the flag ``schema.accept-plans`` is false, schema registers no plan, in any of its processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from replank import flags
from replank.flags.store import keep_copy
from replank.testing import eventually
from replank.testing.faults import unused_address
from replank.testing.processes import Process
from replank.testing.services import Issuer, basics, http_alone, playing_rights
from replank_schema.api import ACCEPT_PLANS
from replank_schema.application import compose
from replank_schema.settings import SchemaSettings

PATIENCE = 60.0
# The topic of the flags is shared with whoever else uses this Kafka: hold back one caller, who is nobody else's.
ROLLOUT = 0.01
CALLERS = (f"user:caller-{number}" for number in itertools.count())
CALLER = next(caller for caller in CALLERS if flags.bucket(ACCEPT_PLANS, caller) < ROLLOUT)
ORDERS = {
    "owner": CALLER,
    "source": "shop",
    "target": "tables",
    "mapping": {
        "mapping": 1,
        "name": "orders",
        "source": {"table": "kv", "key": "key", "value": "value"},
        "entities": {
            "order": {
                "key": "order:{id}",
                "table": "orders",
                "columns": {"id": {"key": "id", "type": "text"}},
                "primary_key": ["id"],
                "rest": "rest",
            }
        },
    },
}


async def post(client: httpx.AsyncClient, key: str | None = None) -> httpx.Response:
    return await client.post("/v1/migrations", json=ORDERS, headers={"idempotency-key": key or str(uuid4())})


async def replank(*arguments: str) -> None:
    async with Process("replank_cli", *arguments) as command:
        assert await command.exit_code(within=PATIENCE) == 0, command.output


@asynccontextmanager
async def replica(environment: dict[str, str], token: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a process of the service that listens."""
    async with Process("replank_schema", env=environment) as process:
        listening = json.loads(await process.line_with("listening on", within=PATIENCE))
        url = "http://" + listening["message"].removeprefix("listening on ")
        async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=10) as client:
            yield client


async def ready(client: httpx.AsyncClient) -> bool:
    """Whether it is ready and follows the flags, without which it would be ready too."""
    answer = await client.get("/readyz")
    return answer.status_code == 200 and bool(answer.json()["dependencies"]["flags"]["ready"])


async def first(client: httpx.AsyncClient, status: int) -> tuple[float, httpx.Response]:
    """Ask again and again until it is answered so: when that answer was there (seconds since 1970), and the answer."""

    async def answered() -> tuple[float, httpx.Response]:
        answer = await post(client)
        assert answer.status_code == status, answer.text
        return time.time(), answer

    return await eventually(answered, f"it answers {status}", within=PATIENCE, interval=0.1)


def environment_of(settings: dict[str, Any]) -> dict[str, str]:
    return {f"REPLANK_SCHEMA_{name.upper()}": str(value) for name, value in settings.items()}


@pytest.mark.timeout(240)
async def test_the_brake_holds_in_all_processes_within_a_second_and_after_a_restart_without_kafka(
    tmp_path: Path, database: asyncpg.Pool, postgres_dsn: str, kafka: str
) -> None:
    issuer = Issuer(tmp_path)
    token = issuer.token(CALLER)
    async with playing_rights((CALLER, "plan", "system:replank")) as rights, contextlib.AsyncExitStack() as running:
        given = basics(issuer, dsn=postgres_dsn, kafka=kafka, name="schema", authz_url=rights.url)
        replicas = [
            await running.enter_async_context(replica(environment_of({**given, "run_relay": relay}), token))
            for relay in (True, False)
        ]
        for client in replicas:
            await eventually(partial(ready, client), "it is ready", within=PATIENCE)
            assert (await post(client)).status_code == 201

        watching = [asyncio.create_task(first(client, 503)) for client in replicas]
        await replank(
            "flags", "set", ACCEPT_PLANS, "false", "--rollout", f"{ROLLOUT}", "--reason", "test", "--dsn", postgres_dsn
        )
        refusals = await asyncio.gather(*watching)
        async with database.acquire() as conn:
            flag = await flags.get(conn, ACCEPT_PLANS)
        assert flag is not None
        took = [at - flag.updated_at.timestamp() for at, _ in refusals]
        print("from the change to the first refusal: " + ", ".join(f"{seconds * 1000:.0f} ms" for seconds in took))
        assert max(took) < 1.0
        for _, refusal in refusals:
            assert refusal.json()["type"] == "urn:replank:problem:planning-paused"
            assert int(refusal.headers["retry-after"]) > 0

        async def is_kept() -> bool:
            return bool(await database.fetchval("select count(*) from replank_flags.copy where name = $1", flag.name))

        await eventually(is_kept, "the change is in the database's own copy")
        planned = await database.fetchval("select count(*) from migration")
        async with unused_address() as nowhere, replica(environment_of({**given, "kafka": nowhere}), token) as alone:
            assert (await post(alone)).json()["type"] == "urn:replank:problem:planning-paused"
            reported = (await alone.get("/readyz")).json()["dependencies"]
            assert (reported["kafka"]["ready"], reported["flags"]["ready"]) == (False, False)
            assert not reported["flags"]["required"]
        assert await database.fetchval("select count(*) from migration") == planned

        await replank("flags", "delete", ACCEPT_PLANS, "--dsn", postgres_dsn)
        for client in replicas:
            await first(client, 201)


async def test_a_process_starts_with_the_brake_that_it_knew_and_replays_what_was_accepted_before(
    tmp_path: Path, database: asyncpg.Pool, postgres_dsn: str, kafka: str
) -> None:
    issuer = Issuer(tmp_path)
    async with playing_rights((CALLER, "plan", "system:replank")) as rights:
        given = basics(issuer, dsn=postgres_dsn, kafka=kafka, name="schema", authz_url=rights.url)
        settings = SchemaSettings.model_validate(given)
        async with http_alone(compose(settings), issuer.token(CALLER)) as before:
            accepted = await post(before, key="accepted")
            assert accepted.status_code == 201
        async with database.acquire() as conn:
            flag = await flags.set(conn, ACCEPT_PLANS, False, by="user:ada")
        # What the provider of an earlier process would have kept; no relay runs, so nobody else hears of it.
        await keep_copy(database, [flag])
        async with http_alone(compose(settings), issuer.token(CALLER)) as after:
            assert (await post(after)).json()["type"] == "urn:replank:problem:planning-paused"
            again = await post(after, key="accepted")
            assert (again.status_code, again.json()) == (201, accepted.json())
    assert await database.fetchval("select count(*) from migration") == 1
