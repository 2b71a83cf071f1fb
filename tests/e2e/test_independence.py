"""A service runs without any other service: neither its code, nor its database, nor its process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from replank.testing import eventually
from replank.testing.processes import Process
from replank.testing.servers import Bucket
from replank.testing.services import Issuer
from replank_local import ports
from replank_local.places import CHECKOUT
from replank_local.services import SERVICES, Service


@pytest.fixture(params=sorted(SERVICES))
def service(request: pytest.FixtureRequest) -> Service:
    """Each service in turn."""
    return SERVICES[request.param]


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest.fixture
def port() -> int:
    return ports.free_port()


@pytest.fixture
def servers(postgres_dsn: str, kafka: str, s3: Bucket, valkey_url: str) -> dict[str, str]:
    """The servers of the service: a database and a bucket of its own."""
    return {
        "DSN": postgres_dsn,
        "KAFKA": kafka,
        "VALKEY_URL": valkey_url,
        "S3_URL": s3.url,
        "S3_ACCESS_KEY": s3.access_key,
        "S3_SECRET_KEY": s3.secret_key,
        "S3_BUCKET": s3.bucket,
    }


@pytest.fixture
def environment(service: Service, servers: dict[str, str], issuer: Issuer, port: int) -> dict[str, str]:
    """What the service is told. Where it says how to reach auth-cache, nobody answers."""
    told = {
        **servers,
        "HTTP_PORT": str(port),
        "AUTH_ISSUER": issuer.issuer,
        "AUTH_AUDIENCE": issuer.audience,
        "AUTH_JWKS": str(issuer.jwks),
        "AUTHZ_URL": "http://127.0.0.1:1",
        "SERVICE_TOKEN_FILE": str(issuer.token_file(f"service:{service.name}")),
    }
    return {f"{service.prefix}_{name}": value for name, value in told.items()}


@pytest_asyncio.fixture
async def process(service: Service, environment: dict[str, str]) -> AsyncIterator[Process]:
    """The service, migrated and started, in a process that knows no other one."""

    def alone(*arguments: str) -> Process:
        return Process("tests.e2e.alone", service.module, *arguments, env=environment, cwd=str(CHECKOUT))

    async with alone("migrate", "pre") as migration:
        assert await migration.exit_code(within=60) == 0, migration.output
    async with alone("serve") as serving:
        yield serving


async def test_a_service_runs_without_any_other_services_code_or_database(
    service: Service, process: Process, port: int
) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

        async def ready() -> bool:
            try:
                answer = await client.get("/readyz")
            except httpx.TransportError as error:
                raise AssertionError(f"it does not answer: {error!r}; its output:\n{process.output}") from error
            assert answer.status_code == 200, json.dumps(answer.json(), indent=1)
            return True

        await eventually(ready, f"{service.name} is ready", within=60, interval=0.2)
        assert (await client.get("/v1/nothing")).status_code == 401
        process.terminate()
        assert await process.exit_code(within=30) == 0, process.output
