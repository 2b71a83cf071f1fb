"""The service as operators meet it: a process with an environment, output, signals and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest
import pytest_asyncio

from replank.testing import eventually, servers
from replank.testing.processes import Process
from replank.testing.services import Issuer, basics

# Starting Python with all of a service's libraries takes seconds where many tests share a machine.
PATIENCE = 60.0


@pytest_asyncio.fixture
async def postgres_dsn(postgres_server: str) -> AsyncIterator[str]:
    """The DSN of a database in which there is nothing yet."""
    async with servers.database(postgres_server) as dsn:
        yield dsn


@pytest.fixture
def environment(tmp_path: Path, postgres_dsn: str, kafka: str) -> dict[str, str]:
    issuer = Issuer(tmp_path)
    given = basics(issuer, dsn=postgres_dsn, kafka=kafka, name="schema", authz_url="http://127.0.0.1:1")
    return {f"REPLANK_SCHEMA_{name.upper()}": str(value) for name, value in given.items()}


async def test_it_migrates_serves_becomes_ready_and_stops_when_asked(
    environment: dict[str, str], pool: asyncpg.Pool
) -> None:
    for phase in ("pre", "post"):
        async with Process("replank_schema", "migrate", phase, env=environment) as migrating:
            assert await migrating.exit_code(within=PATIENCE) == 0, migrating.output
    assert await pool.fetchval("select count(*) from migration") == 0
    async with Process("replank_schema", env=environment) as serving, httpx.AsyncClient() as client:
        listening = json.loads(await serving.line_with("listening on", within=PATIENCE))
        url = "http://" + listening["message"].removeprefix("listening on ")

        async def is_ready() -> bool:
            return (await client.get(f"{url}/readyz")).status_code == 200

        await eventually(is_ready, "it is ready", within=PATIENCE)
        assert "replank_outbox" in (await client.get(f"{url}/metrics")).text
        serving.terminate()
        assert await serving.exit_code(within=PATIENCE) == 0, serving.output
        lines = [json.loads(line) for line in serving.output.splitlines()]
    assert "\\u001b[" not in serving.output, "colours"
    assert "Topic creation is skipped" not in serving.output
    assert {line["service"] for line in lines} == {"schema"}
    assert not [line for line in lines if line["level"] in {"error", "critical"}], serving.output


def test_migrating_imports_nothing_that_only_serving_needs() -> None:
    command = "import replank_schema.__main__, sys; print(*sorted(name.split('.')[0] for name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    imported = set(found.stdout.split())
    assert "asyncpg" in imported
    assert not imported & {"aiokafka", "fastapi", "faststream", "httpx", "minio", "starlette", "structlog", "uvicorn"}


async def test_a_wrong_environment_and_a_dead_database_are_said_in_one_line(environment: dict[str, str]) -> None:
    wrong = {**environment, "REPLANK_SCHEMA_KAFKA": "not an address", "REPLANK_SCHEMA_AUTHZ_URL": ""}
    async with Process("replank_schema", env=wrong) as refusing:
        assert await refusing.exit_code(within=PATIENCE) == 1
        (line,) = refusing.output.splitlines()
    assert "REPLANK_SCHEMA_KAFKA" in line
    assert "REPLANK_SCHEMA_AUTHZ_URL is not set" in line
    dead = {**environment, "REPLANK_SCHEMA_DSN": "postgresql://postgres:hidden@127.0.0.1:1/none"}
    async with Process("replank_schema", "migrate", "pre", env=dead) as failing:
        assert await failing.exit_code(within=PATIENCE) == 1
        (line,) = failing.output.splitlines()
    assert "the database cannot be reached" in line
    assert "hidden" not in line
