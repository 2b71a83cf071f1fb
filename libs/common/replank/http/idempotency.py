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

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from replank.connection import Connection
from replank.errors import ReplankError
from replank.http.auth import current_principal
from replank.http.problems import Problem
from replank.postgres.idempotency import Answer, Identity, find, keep, lock
from replank.telemetry import metrics

HEADER: Final = "idempotency-key"
REPLAYED: Final = "idempotency-replayed"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


class IdempotencyMisuse(ReplankError):
    """`idempotent` was used outside of a transaction, or its block ended without an answer."""


class Call:
    """One request under one key. ``replay`` is the stored answer, if there is one; else give one with `answer`."""

    def __init__(self, conn: Connection, identity: Identity | None, request_hash: bytes) -> None:
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
            await keep(self._conn, self._identity, Answer(self._request_hash, status, headers, body))
            metrics.HTTP_IDEMPOTENT.labels(outcome="executed").inc()
        return Response(body, status_code=status, headers=headers, media_type="application/json")


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
    identity = Identity(current_principal(request).subject, f"{request.method} {request.url.path}", keys[0])
    request_hash = hashlib.sha256(request.scope["query_string"] + b"\n" + await request.body()).digest()
    if not await lock(conn, identity):
        metrics.HTTP_IDEMPOTENT.labels(outcome="in_progress").inc()
        raise Problem(
            409,
            "request-in-progress",
            "a request with this Idempotency-Key is being served",
            fix="send it again a little later to get its answer",
            headers={"retry-after": "1"},
        )
    call = Call(conn, identity, request_hash)
    stored = await find(conn, identity)
    if stored is None:
        yield call
        if not call._answered:
            raise IdempotencyMisuse("the block of idempotent() ended without call.answer()")
        return
    if stored.request_hash != request_hash:
        metrics.HTTP_IDEMPOTENT.labels(outcome="conflict").inc()
        raise Problem(
            422,
            "idempotency-key-reused",
            "this Idempotency-Key was used for another request",
            fix="use a new key for a new request",
        )
    metrics.HTTP_IDEMPOTENT.labels(outcome="replayed").inc()
    call.replay = Response(
        stored.body,
        status_code=stored.status,
        headers={**stored.headers, REPLAYED: "true"},
        media_type="application/json",
    )
    yield call
