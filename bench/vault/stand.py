"""A schema service with a vault, as it runs in production: processes with a database and buckets of their own.

Its mode ``standard`` keeps contents as the vault does. Its mode ``pro`` is left in the pattern that one migrates from,
whole contents in rows: the same process answers for both, through the same routes, from the same database.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any, Final

import asyncpg
import httpx
from pydantic import SecretStr

from bench.postgres import Server
from bench.procs import Child, Command, module, running
from bench.runs import Void
from replank.contracts.schema import VaultMode
from replank.testing import servers
from replank.testing.services import Issuer, basics, migrate_completely
from replank.testing.wait import eventually
from replank_schema.vault import grants
from replank_schema.vault.model import MODES
from replank_schema.vault.settings import VaultModeSettings

NEW: Final[VaultMode] = "standard"
OLD: Final[VaultMode] = "pro"
PREFIXES: Final[Mapping[VaultMode, str]] = {NEW: "/schemavault", OLD: "/pro/schemas"}
USER: Final = "user:bench"
RIGHTS: Final = tuple((USER, relation, f"vault:{mode}") for mode in MODES for relation in ("view", "publish"))
"""What the caller may: what who publishes schemas may, no more."""

JSON_CONTENT: Final = {"content-type": "application/json"}

_READY_S: Final = 60.0
_HOURS: Final = 2 * 3600
_LONGEST_ANSWER_S: Final = 300.0

_KEEP_WHOLE_CONTENTS: Final = f"insert into vault_{OLD}.pattern (phase, changed_by) values ('planned', 'system:bench')"


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are, and what makes databases on them."""

    postgres: Server
    kafka: str
    valkey: str
    s3: tuple[str, str, str]
    """URL, access key and secret key of the store's administrator."""


@dataclass(frozen=True, slots=True)
class Place:
    """A migrated database of the service, and for each mode the role, the account and the bucket that are its own."""

    dsn: str
    s3_url: str
    modes: Mapping[VaultMode, VaultModeSettings]


@asynccontextmanager
async def placed(postgres: Server, s3: tuple[str, str, str]) -> AsyncIterator[Place]:
    """A new place, gone afterwards."""
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(postgres.database())
        await migrate_completely(dsn, "replank_schema")
        modes: dict[VaultMode, VaultModeSettings] = {}
        for mode in MODES:
            account = await stack.enter_async_context(servers.account(*s3))
            modes[mode] = VaultModeSettings(
                dsn=SecretStr(await stack.enter_async_context(servers.role(dsn))),
                s3_access_key=SecretStr(account.access_key),
                s3_secret_key=SecretStr(account.secret_key),
                s3_bucket=account.bucket,
            )
        connection = await asyncpg.connect(dsn)
        try:
            await grants.grant(connection, {mode: settings.role for mode, settings in modes.items()})
            await connection.execute(_KEEP_WHOLE_CONTENTS)
        finally:
            await connection.close()
        yield Place(dsn, s3[0], modes)


@dataclass(frozen=True, slots=True)
class Door:
    """One mode as its callers see it."""

    client: httpx.AsyncClient
    prefix: str

    async def page(self, **query: Any) -> httpx.Response:
        """A page of the listing."""
        return answered(await self.client.get(self.prefix, params=query), 200)

    async def upload(self, name: str, content: bytes) -> httpx.Response:
        """Publish a content that is not there yet under a new name."""
        return answered(
            await self.client.post(
                f"{self.prefix}/upload", params={"name": name}, content=content, headers=JSON_CONTENT
            ),
            201,
        )


def answered(answer: httpx.Response, *statuses: int) -> httpx.Response:
    """An answer that has to be one of these. Raises `Void`."""
    if answer.status_code not in statuses:
        request = answer.request
        raise Void(f"{request.method} {request.url.path} answered {answer.status_code}: {answer.text[:500]}")
    return answer


@dataclass(frozen=True, slots=True)
class Service:
    """The running service."""

    place: Place
    process: Child
    url: str
    token: str

    @asynccontextmanager
    async def client(self, connections: int = 1) -> AsyncIterator[httpx.AsyncClient]:
        """A client with at most so many connections, that it keeps."""
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        async with httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {self.token}"},
            limits=limits,
            timeout=_LONGEST_ANSWER_S,
            verify=False,  # there is no TLS, and reading the system's certificates takes long
        ) as client:
            yield client


@asynccontextmanager
async def running_service(at: Servers) -> AsyncIterator[Service]:
    """The service with its defaults, and auth-cache, of which it asks every right: processes of their own, ready."""
    with TemporaryDirectory(prefix="replank-bench-") as folder:
        issuer = Issuer(Path(folder))
        async with placed(at.postgres, at.s3) as place, at.postgres.database() as auth_dsn:
            await migrate_completely(auth_dsn, "replank_auth_cache")
            given = partial(_settings, issuer, kafka=at.kafka)
            tuples = [{"user": user, "relation": relation, "object": thing} for user, relation, thing in RIGHTS]
            of_auth = {
                **given("auth-cache", auth_dsn, authz_url=None),
                "valkey_url": at.valkey,
                "bootstrap_tuples": json.dumps(tuples),
            }
            async with _serving("replank_auth_cache", "REPLANK_AUTH_CACHE_", of_auth) as (_, authz_url):
                of_schema = {
                    **given("schema", place.dsn, authz_url=authz_url),
                    "s3_url": place.s3_url,
                    "vault": json.dumps({mode: _revealed(settings) for mode, settings in place.modes.items()}),
                }
                async with _serving("replank_schema", "REPLANK_SCHEMA_", of_schema) as (process, url):
                    yield Service(place, process, url, issuer.token(USER, exp=int(time()) + _HOURS))


def _settings(issuer: Issuer, name: str, dsn: str, *, kafka: str, authz_url: str | None) -> dict[str, str]:
    given = basics(issuer, dsn=dsn, kafka=kafka, name=name, authz_url=authz_url or "")
    # Good for longer than the benchmark takes.
    given["service_token_file"].write_text(issuer.token(f"service:{name}", exp=int(time()) + _HOURS))
    return {key: str(value) for key, value in given.items() if value}


def _revealed(settings: VaultModeSettings) -> dict[str, str]:
    return {
        "dsn": settings.dsn.get_secret_value(),
        "s3_access_key": settings.s3_access_key.get_secret_value(),
        "s3_secret_key": settings.s3_secret_key.get_secret_value(),
        "s3_bucket": settings.s3_bucket,
    }


@asynccontextmanager
async def _serving(package: str, prefix: str, settings: Mapping[str, str]) -> AsyncIterator[tuple[Child, str]]:
    environment = {f"{prefix}{name.upper()}": value for name, value in settings.items()}
    command = module(package, ready="listening on")
    async with running(Command(command.name, command.args, command.ready, environment)) as process:
        await process.ready(_READY_S)
        url = "http://" + str(json.loads(process.ready_line)["message"]).removeprefix("listening on ")
        async with httpx.AsyncClient(base_url=url, verify=False) as client:

            async def is_ready() -> bool:
                await process.check()
                answer = await client.get("/readyz")
                assert answer.status_code == 200, answer.text
                return True

            await eventually(is_ready, f"{package} is ready", within=_READY_S)
        yield process, url
