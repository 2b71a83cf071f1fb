"""Keeping rows that the schema service gives away: it is played by the test, the object store is real."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
import uvicorn
import zstandard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from replank.contracts.archiver import SchemasArchived
from replank.contracts.schema import SchemaArchiveOldRequested
from replank.errors import DependencyUnavailable
from replank.http.server import listening_socket
from replank.objects import ObjectStore
from replank.testing import eventually
from replank.testing.faults import unused_address
from replank.testing.servers import Bucket
from replank.testing.services import Issuer, Rights, appended, basics, emit, events_of, living, playing_rights
from replank_archiver.application import compose
from replank_archiver.schemas import service, store
from replank_archiver.schemas.exports import Exports
from replank_archiver.schemas.model import ExportGone, NotTheExport, export_key
from replank_archiver.settings import ArchiverSettings
from tests.archiver.test_manifests import store_settings

LINES = b"".join(b'{"id": %d, "content": "%s"}\n' % (number, b"x" * 5000) for number in range(1000))
# Several frames, and something to be skipped at the end, as the schema service has it.
STORED = zstandard.compress(LINES[:300_000]) + zstandard.compress(LINES[300_000:]) + b"\x5e\x2a\x4d\x18\x02\0\0\0ab"


@dataclass
class SchemaService:
    """What the schema service answers at any path, and whom it has heard."""

    body: bytes = STORED
    status: int = 200
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        self.asked.append((request.url.path, request.headers["authorization"]))
        return Response(self.body, status_code=self.status, media_type="application/zstd")


@pytest_asyncio.fixture
async def schema_service() -> AsyncIterator[SchemaService]:
    playing = SchemaService()
    sock = listening_socket("127.0.0.1", 0)
    playing.url = "http://{}:{}".format(*sock.getsockname())
    app = Starlette(routes=[Route("/{path:path}", playing.answer)])
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    await eventually(lambda: server.started, "the stand-in for the schema service serves")
    yield playing
    server.should_exit = True
    await serving


@pytest_asyncio.fixture
async def objects(s3: Bucket) -> AsyncIterator[ObjectStore]:
    async with ObjectStore(store_settings(s3)) as opened:
        yield opened


@asynccontextmanager
async def exports_at(url: str, token: Path) -> AsyncIterator[Exports]:
    exports = Exports(url, token)
    yield exports
    await exports.close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("secret\n")
    return path


def asked(**changes: Any) -> SchemaArchiveOldRequested:
    request_id = uuid4()
    return SchemaArchiveOldRequested(
        mode="pro",
        request_id=request_id,
        rows=1000,
        sha256=hashlib.sha256(LINES).hexdigest(),
        path=f"/pro/schemas/pattern/export/{request_id}",
        requested_by="user:ada",
        requested_at=datetime.now(UTC),
    ).model_copy(update=changes)


async def kept_keys(objects: ObjectStore) -> list[str]:
    return [info.key async for info in objects.list("schemas/")]


async def test_rows_are_kept_read_back_recorded_and_said_once(
    database: asyncpg.Pool, objects: ObjectStore, schema_service: SchemaService, token: Path
) -> None:
    event = asked()
    async with exports_at(schema_service.url, token) as exports, database.acquire() as conn:
        async with conn.transaction():
            manifest = await service.keep_rows(conn, objects, exports, event)
        async with conn.transaction():
            assert await service.keep_rows(conn, objects, exports, event) == manifest
        assert await store.get(conn, event.request_id) == manifest
        ((key, said),) = await appended(conn)
    assert schema_service.asked == [(event.path, "Bearer secret")]
    assert key == str(event.request_id)
    assert isinstance(said, SchemasArchived)
    assert (said.mode, said.rows, said.sha256, said.size) == ("pro", 1000, event.sha256, len(STORED))
    assert said.object_key == export_key("pro", event.request_id, event.sha256)
    assert await objects.read(said.object_key) == STORED


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        (STORED, {"sha256": "0" * 64}),
        (STORED, {"rows": 999}),
        (STORED[:-5000], {}),
        (LINES, {}),
        (b"", {}),
        (zstandard.compress(LINES[:-1]), {"sha256": hashlib.sha256(LINES[:-1]).hexdigest()}),
    ],
    ids=["another digest", "another count", "cut off", "not compressed", "empty", "cut line"],
)
async def test_what_is_not_what_was_offered_is_not_said_to_be_archived(  # noqa: PLR0917 - fixtures
    database: asyncpg.Pool,
    objects: ObjectStore,
    schema_service: SchemaService,
    token: Path,
    body: bytes,
    changes: dict[str, Any],
) -> None:
    event = asked(**changes)
    schema_service.body = body
    async with exports_at(schema_service.url, token) as exports, database.acquire() as conn, conn.transaction():
        with pytest.raises(NotTheExport):
            await service.keep_rows(conn, objects, exports, event)
        assert await store.get(conn, event.request_id) is None
        assert await appended(conn) == []


class Tampering(ObjectStore):
    """A store in which somebody changes the object as soon as it is there."""

    async def put(self, key: str, *args: Any, **kwargs: Any) -> Any:
        await super().put(key, *args, **kwargs)
        return await super().put(key, zstandard.compress(LINES.replace(b"x", b"y", 1)))


async def test_rows_that_are_not_read_back_as_they_were_fetched_are_not_said_to_be_archived(
    database: asyncpg.Pool, s3: Bucket, schema_service: SchemaService, token: Path
) -> None:
    async with (
        Tampering(store_settings(s3)) as objects,
        exports_at(schema_service.url, token) as exports,
        database.acquire() as conn,
        conn.transaction(),
    ):
        with pytest.raises(NotTheExport, match="1000 rows"):
            await service.keep_rows(conn, objects, exports, asked())
        assert await kept_keys(objects) == []


async def test_after_a_lost_transaction_the_same_again_is_harmless(
    database: asyncpg.Pool, objects: ObjectStore, schema_service: SchemaService, token: Path
) -> None:
    event = asked()
    async with exports_at(schema_service.url, token) as exports, database.acquire() as conn:
        lost = conn.transaction()
        await lost.start()
        await service.keep_rows(conn, objects, exports, event)
        await lost.rollback()
        async with conn.transaction():
            await service.keep_rows(conn, objects, exports, event)
        assert len(await appended(conn)) == 1
    assert await kept_keys(objects) == [export_key("pro", event.request_id, event.sha256)]


async def test_what_is_not_offered_any_more_and_what_does_not_answer_are_told_apart(
    database: asyncpg.Pool, objects: ObjectStore, schema_service: SchemaService, token: Path
) -> None:
    async with (
        unused_address() as address,
        exports_at(schema_service.url, token) as exports,
        exports_at(f"http://{address}", token) as dead,
        database.acquire() as conn,
        conn.transaction(),
    ):
        schema_service.status = 404
        with pytest.raises(ExportGone):
            await service.keep_rows(conn, objects, exports, asked())
        for status in (403, 500, 503):
            schema_service.status = status
            with pytest.raises(DependencyUnavailable, match=str(status)):
                await service.keep_rows(conn, objects, exports, asked())
        with pytest.raises(DependencyUnavailable, match=address):
            await service.keep_rows(conn, objects, dead, asked())
    assert await kept_keys(objects) == []


# --- the service ---


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest_asyncio.fixture
async def rights() -> AsyncIterator[Rights]:
    async with playing_rights() as playing:
        yield playing


async def test_the_service_archives_what_is_offered_and_refuses_what_is_not_what_it_should_be(  # noqa: PLR0917
    database: asyncpg.Pool,
    postgres_dsn: str,
    kafka: str,
    issuer: Issuer,
    rights: Rights,
    s3: Bucket,
    schema_service: SchemaService,
) -> None:
    settings = ArchiverSettings.model_validate(
        {
            **basics(issuer, dsn=postgres_dsn, kafka=kafka, name="archiver", authz_url=rights.url),
            "s3_url": s3.url,
            "s3_access_key": s3.access_key,
            "s3_secret_key": s3.secret_key,
            "s3_bucket": s3.bucket,
            "schema_url": schema_service.url,
        }
    )
    good, forged = asked(), asked(sha256="0" * 64)
    schema_service.status = 503
    async with living(compose(settings), issuer.token()):
        for event in (forged, good):
            await emit(kafka, event, key=str(event.request_id))
        await eventually(lambda: len(schema_service.asked) > 2, "it asks again and again", within=30)
        schema_service.status = 200
        (said,) = await events_of(kafka, SchemasArchived, of_request(good.request_id), within=40)

        async def is_dead() -> bool:
            return bool(await database.fetchval("select count(*) from replank_inbox.dead_letter"))

        await eventually(is_dead, "the forged request is a dead letter", within=30)
    assert (said.rows, said.sha256) == (good.rows, good.sha256)
    assert await database.fetchval("select array_agg(request_id) from schemas_manifest") == [good.request_id]


def of_request(request_id: UUID) -> Callable[[SchemasArchived], bool]:
    return lambda event: event.request_id == request_id
