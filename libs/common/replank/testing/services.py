"""What a service's tests need around it: an issuer of tokens, somebody to ask for rights, and the events of others.

Needs the extra ``service``. A service is started alone; everybody whom it talks to is played by the test, over the same
wire as in production.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import jwt
import uvicorn
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uuid_utils.compat import uuid7

from replank.connection import Connection
from replank.events import Event, contract
from replank.http.server import listening_socket
from replank.service import Service
from replank.serving import migrate_database
from replank.testing.wait import eventually

E = TypeVar("E", bound=Event)


class Issuer:
    """Signs tokens with an Ed25519 key; the key set is a file in ``folder``."""

    issuer = "https://issuer.example"
    audience = "replank"

    def __init__(self, folder: Path) -> None:
        self.jwks = folder / "jwks.json"
        self._key = Ed25519PrivateKey.generate()
        public = base64.urlsafe_b64encode(self._key.public_key().public_bytes_raw()).rstrip(b"=").decode()
        key = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": "test", "x": public}
        self.jwks.write_text(json.dumps({"keys": [key]}))

    def token(self, subject: str = "user:ada", **claims: Any) -> str:
        """A token that is good for five minutes; ``claims`` replace its own."""
        payload = {"iss": self.issuer, "aud": self.audience, "sub": subject, "exp": int(time.time()) + 300, **claims}
        return jwt.encode(payload, self._key, algorithm="EdDSA", headers={"kid": "test"})

    def token_file(self, subject: str) -> Path:
        """A file with a token, as services have for calling each other."""
        path = self.jwks.with_name(f"{subject.replace(':', '-')}.token")
        path.write_text(self.token(subject))
        return path


class Rights:
    """Plays auth-cache: answers its ``check`` over HTTP from a set of tuples. See `playing_rights`."""

    def __init__(self, *allowed: tuple[str, str, str]) -> None:
        self.url = ""
        self.allowed = set(allowed)
        self.asked: list[tuple[str, str, str]] = []

    async def _check(self, request: Request) -> Response:
        key = (await request.json())["tuple_key"]
        wanted = (key["user"], key["relation"], key["object"])
        self.asked.append(wanted)
        return JSONResponse({"allowed": wanted in self.allowed, "resolution": ""})

    async def _alive(self, _: Request) -> Response:
        return JSONResponse({"alive": True})

    def app(self) -> Starlette:
        """The application to serve."""
        return Starlette(
            routes=[
                Route("/stores/replank/check", self._check, methods=["POST"]),
                Route("/healthz", self._alive),
            ]
        )


@asynccontextmanager
async def playing_rights(*allowed: tuple[str, str, str]) -> AsyncIterator[Rights]:
    """Serve `Rights` that knows these (user, relation, object) on a free port."""
    rights = Rights(*allowed)
    sock = listening_socket("127.0.0.1", 0)
    rights.url = "http://{}:{}".format(*sock.getsockname())
    server = uvicorn.Server(uvicorn.Config(rights.app(), ws="none", lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await eventually(lambda: server.started, "the stand-in for auth-cache serves")
        yield rights
    finally:
        server.should_exit = True
        await serving


def basics(issuer: Issuer, *, dsn: str, kafka: str, name: str, authz_url: str) -> dict[str, Any]:
    """The settings that every service has, for the service of this name."""
    return {
        "dsn": dsn,
        "kafka": kafka,
        "auth_issuer": issuer.issuer,
        "auth_audience": issuer.audience,
        "auth_jwks": str(issuer.jwks),
        "authz_url": authz_url,
        "service_token_file": issuer.token_file(f"service:{name}"),
    }


@asynccontextmanager
async def http_alone(service: Service, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that runs neither its relay nor its consumers."""
    transport = httpx.ASGITransport(service.app(), raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as client:
        yield client
    await service.close()


@asynccontextmanager
async def living(service: Service, token: str, *, ready: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that runs whole. ``ready`` waits until it is."""
    app = service.app()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {token}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as client,
    ):
        if ready:

            async def is_ready() -> bool:
                answer = await client.get("/readyz")
                assert answer.status_code == 200, answer.text
                return True

            await eventually(is_ready, "the service is ready", within=30)
        yield client


async def emit(kafka: str, event: Event, *, key: str, source: str = "test", trace: str | None = None) -> UUID:
    """Send an event as its service's relay would; returns its id. ``trace`` is a ``traceparent``."""
    event_id = uuid7()
    headers = {
        "ce_specversion": "1.0",
        "ce_id": str(event_id),
        "ce_type": event.event_type,
        "ce_source": source,
        "ce_subject": key,
        "ce_time": datetime.now(UTC).isoformat(),
        "content-type": "application/json",
        **({"traceparent": trace} if trace else {}),
    }
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        await producer.send_and_wait(
            event.event_topic,
            event.to_value(),
            key=key.encode(),
            headers=[(name, value.encode()) for name, value in headers.items()],
        )
    finally:
        await producer.stop()
    return event_id


async def events_of(
    kafka: str, of: type[E], wanted: Callable[[E], bool], *, count: int = 1, within: float = 20.0
) -> list[E]:
    """The events ``of`` a contract that are ``wanted``, read from its beginning until there are ``count``.

    Raises `AssertionError` when fewer come in time. More than ``count`` are returned if they are there by then.
    """
    consumer = AIOKafkaConsumer(
        of.event_topic, bootstrap_servers=kafka, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    found: list[E] = []
    try:
        async with asyncio.timeout(within):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        if dict(record.headers).get("ce_type") == of.event_type.encode():
                            event = of.from_value(record.value)
                            if wanted(event):
                                found.append(event)
    except TimeoutError:
        raise AssertionError(f"{len(found)} of {count} wanted {of.__name__} came within {within:g} s") from None
    finally:
        await consumer.stop()
    return found


async def migrate_completely(dsn: str, package: str) -> None:
    """Bring a service's database to where its migrations lead."""
    await migrate_database(dsn, package, "pre")
    await migrate_database(dsn, package, "post")


async def appended(conn: Connection) -> list[tuple[str | None, Event]]:
    """What is in a database's outbox, in the order of its ids: (key, event)."""
    rows = await conn.fetch("select type, key, value from replank_outbox.event order by id")
    return [(row["key"], contract(row["type"]).from_value(row["value"])) for row in rows]
