"""A shop of its own for each test: its databases, and the shop served over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest
import pytest_asyncio
import uvicorn
from starlette.types import ASGIApp

from replank.http.server import listening_socket
from replank.testing import eventually, servers
from replank.testing.services import Issuer, basics, migrate_completely
from replank_storefront.application import compose
from replank_storefront.requester import TokenFile
from replank_storefront.settings import StorefrontSettings


@dataclass(frozen=True)
class Databases:
    """Where a shop keeps what it knows. The tables' database is empty."""

    kv: str
    tables: str


@pytest_asyncio.fixture
async def databases(postgres_dsn: str, postgres_server: str) -> AsyncIterator[Databases]:
    await migrate_completely(postgres_dsn, "replank_storefront")
    async with servers.database(postgres_server) as tables:
        yield Databases(postgres_dsn, tables)


@pytest_asyncio.fixture
async def kv(databases: Databases) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(databases.kv)
    yield conn
    await conn.close()


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest.fixture
def settings(databases: Databases, kafka: str, issuer: Issuer) -> StorefrontSettings:
    given = basics(issuer, dsn=databases.kv, kafka=kafka, name="storefront", authz_url="http://127.0.0.1:9")
    # A name of its own: flags are everybody's who is on this Kafka.
    name = f"t{uuid4().hex[:12]}"
    return StorefrontSettings.model_validate(
        {**given, "authz_url": None, "tables_dsn": databases.tables, "migration": name}
    )


Wrap = Callable[[ASGIApp], ASGIApp]
Serve = Callable[..., AbstractAsyncContextManager[str]]


@asynccontextmanager
async def serving(settings: StorefrontSettings, wrap: Wrap = lambda app: app) -> AsyncIterator[str]:
    """The shop on a free port. ``wrap`` puts something before it."""
    sock = listening_socket("127.0.0.1", 0)
    url = "http://{}:{}".format(*sock.getsockname())
    app = wrap(compose(settings).app())
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="on", log_config=None, access_log=False))
    running = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await eventually(lambda: server.started, "the shop serves")
        async with httpx.AsyncClient() as client:

            async def is_ready() -> bool:
                answer = await client.get(f"{url}/readyz")
                assert answer.status_code == 200, answer.text
                return True

            await eventually(is_ready, "the shop is ready", within=30)
        yield url
    finally:
        server.should_exit = True
        await running


@pytest.fixture
def serve(settings: StorefrontSettings) -> Serve:
    """``async with serve() as url``; see `serving`."""
    return partial(serving, settings)


@pytest.fixture
def auth(issuer: Issuer) -> TokenFile:
    return TokenFile(issuer.token_file("user:shopper"))
