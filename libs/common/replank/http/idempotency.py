"""``Idempotency-Key``: a creating POST that is sent twice creates once, and answers the same twice.

    @router.post("/v1/policies", status_code=201)
    async def create(request: Request, body: NewPolicy) -> Response:
        async with pools.write_heavy.acquire() as conn, conn.transaction(), idempotent(request, conn) as call:
            if call.replay is not None:
                return call.replay
            policy = await service.create(conn, body)
            return await call.answer(201, PolicyView.of(policy))

The answer is stored in the transaction that creates: either both exist or neither. An error stores nothing, so that the
same key may be tried again. A key belongs to one caller and one path, and is kept for a day.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from replank.connection import Connection
from replank.errors import ReplankError
from replank.http.auth import current_principal
from replank.http.problems import Problem
from replank.telemetry import metrics

HEADER: Final = "idempotency-key"
REPLAYED: Final = "idempotency-replayed"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

_INSTALL: Final = """
create schema if not exists replank_http;
create table if not exists replank_http.idempotency (
    caller text not null,
    route text not null,
    key text not null,
    request_hash bytea not null,
    status smallint not null,
    headers text[] not null,
    body bytea not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (caller, route, key)
);
create index if not exists idempotency_created_at on replank_http.idempotency (created_at);
"""
_INSTALL_LOCK: Final = "select pg_advisory_xact_lock(hashtextextended('replank_http.install', 0))"
_LOCK: Final = (
    "select pg_try_advisory_xact_lock(hashtextextended(jsonb_build_array($1::text, $2::text, $3::text)::text, 0))"
)
_FIND: Final = """
select request_hash, status, headers, body
from replank_http.idempotency
where caller = $1 and route = $2 and key = $3 and created_at > clock_timestamp() - interval '1 day'
"""
_STORE: Final = """
insert into replank_http.idempotency (caller, route, key, request_hash, status, headers, body)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (caller, route, key) do update
set request_hash = excluded.request_hash, status = excluded.status, headers = excluded.headers,
    body = excluded.body, created_at = excluded.created_at
"""
# Every answer that is stored takes a few expired ones away, so that the table needs nobody to clean it.
_EXPIRE: Final = """
delete from replank_http.idempotency
where (caller, route, key) in (
    select caller, route, key
    from replank_http.idempotency
    where created_at <= clock_timestamp() - interval '1 day'
    order by created_at
    limit 20
    for update skip locked
)
"""


class IdempotencyMisuse(ReplankError):
    """`idempotent` was used outside of a transaction, or its block ended without an answer."""


class Call:
    """One request under one key. ``replay`` is the stored answer, if there is one; else give one with `answer`."""

    def __init__(self, conn: Connection, identity: tuple[str, str, str] | None, request_hash: bytes) -> None:
        self._conn = conn
        self._identity = identity
        self._request_hash = request_hash
        self._answered = False
        self.replay: Response | None = None

    async def answer(self, status: int, content: BaseModel, *, headers: Mapping[str, str] | None = None) -> Response:
        """The answer, stored under the key where the request has one."""
        body = content.model_dump_json().encode()
        headers = dict(headers or {})
        self._answered = True
        if self._identity is not None:
            flat = [text for pair in headers.items() for text in pair]
            await self._conn.execute(_STORE, *self._identity, self._request_hash, status, flat, body)
            await self._conn.execute(_EXPIRE)
            metrics.HTTP_IDEMPOTENT.labels(outcome="executed").inc()
        return Response(body, status_code=status, headers=headers, media_type="application/json")


async def install(conn: asyncpg.Connection[asyncpg.Record] | Connection) -> None:
    """Create schema ``replank_http`` with its table, if it is not there. A service does so when it migrates."""
    async with conn.transaction():
        await conn.execute(_INSTALL_LOCK)
        await conn.execute(_INSTALL)


@asynccontextmanager
async def idempotent(request: Request, conn: Connection, *, required: bool = False) -> AsyncIterator[Call]:
    """Serve a request at most once per ``Idempotency-Key``; see the module's text for how.

    ``conn`` must be in the transaction that does the work. A request without the header is served as usual, or, with
    ``required``, refused (400). The same key with another body or query is refused (422), and so is a request while one
    with its key is still being served (409, ``Retry-After``).
    """
    if not conn.is_in_transaction():
        raise IdempotencyMisuse("idempotent() needs a transaction", fix="open one on the connection first")
    keys = request.headers.getlist(HEADER)
    if not keys:
        if required:
            raise Problem(
                400,
                "idempotency-key-missing",
                "the request has no Idempotency-Key",
                fix="send one that is new for each thing to create, and the same when you try again",
            )
        yield Call(conn, None, b"")
        return
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise Problem(
            400,
            "idempotency-key-malformed",
            "the Idempotency-Key is not 1 to 255 visible ASCII characters",
            fix="use a UUID",
        )
    identity = (current_principal(request).subject, f"{request.method} {request.url.path}", keys[0])
    request_hash = hashlib.sha256(request.scope["query_string"] + b"\n" + await request.body()).digest()
    if not await conn.fetchval(_LOCK, *identity):
        metrics.HTTP_IDEMPOTENT.labels(outcome="in_progress").inc()
        raise Problem(
            409,
            "request-in-progress",
            "a request with this Idempotency-Key is being served",
            fix="send it again a little later to get its answer",
            headers={"retry-after": "1"},
        )
    call = Call(conn, identity, request_hash)
    stored = await conn.fetchrow(_FIND, *identity)
    if stored is None:
        yield call
        if not call._answered:
            raise IdempotencyMisuse("the block of idempotent() ended without call.answer()")
        return
    if stored["request_hash"] != request_hash:
        metrics.HTTP_IDEMPOTENT.labels(outcome="conflict").inc()
        raise Problem(
            422,
            "idempotency-key-reused",
            "this Idempotency-Key was used for another request",
            fix="use a new key for a new request",
        )
    metrics.HTTP_IDEMPOTENT.labels(outcome="replayed").inc()
    flat = iter(stored["headers"])
    call.replay = Response(
        stored["body"],
        status_code=stored["status"],
        headers={**dict(zip(flat, flat, strict=True)), REPLAYED: "true"},
        media_type="application/json",
    )
    yield call
