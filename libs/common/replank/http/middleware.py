"""What happens to every request before and after its route. From the outside in: `Finish`, `Guard`, `Authenticate`."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replank.http.auth import PRINCIPAL, Authenticator, bearer_token
from replank.http.problems import Problem, ProblemKind, problem_of, response_to
from replank.http.tracing import trace_id_of
from replank.telemetry import metrics

_access_log: Final = logging.getLogger("replank.http.access")

TRACE_HEADER: Final = "x-trace-id"
# nginx's status for a client that went away before it was answered; it appears in logs and metrics only.
_CLIENT_GONE: Final = 499
_STOPPING: Final = Problem(
    503,
    "stopping",
    "the service is stopping and gave up on this request",
    fix="send it again; a request with an Idempotency-Key may be repeated safely",
    headers={"retry-after": "2"},
)


class Finish:
    """Answers errors with problem documents, adds the trace id to every answer, logs and measures every request."""

    def __init__(self, app: ASGIApp, *, kinds: Mapping[type[Exception], ProblemKind], quiet: frozenset[str]) -> None:
        self._app = app
        self._kinds = kinds
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status: int | None = None

        async def send_with_trace(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"])[TRACE_HEADER] = trace_id_of(scope)
            await send(message)

        trace_id_of(scope)
        try:
            await self._app(scope, receive, send_with_trace)
        except ClientDisconnect:
            status = _CLIENT_GONE
        except asyncio.CancelledError:
            # The server gives up on requests that do not end when it stops.
            if status is None:
                await response_to(_STOPPING, scope)(scope, receive, send_with_trace)
            raise
        except Exception as error:
            if status is not None:
                raise  # half an answer is out: all that is left is to break the connection, which the server does
            await response_to(problem_of(error, self._kinds), scope)(scope, receive, send_with_trace)
        finally:
            self._report(scope, status, time.perf_counter() - started)

    def _report(self, scope: Scope, status: int | None, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        answered = str(status) if status is not None else "none"
        metrics.HTTP_REQUEST.labels(method=_method(scope), route=route, status=answered).observe(seconds)
        if scope["path"] in self._quiet and status == 200:
            return
        principal = scope.get("state", {}).get(PRINCIPAL)
        _access_log.info(
            "%s %s %s",
            scope["method"],
            route,
            answered,
            extra={
                "http_method": scope["method"],
                "http_route": route,
                "http_path": scope["path"],
                "http_status": status,
                "duration_ms": round(seconds * 1000, 2),
                "subject": principal.subject if principal is not None else None,
                "request_trace_id": trace_id_of(scope),
            },
        )


class Guard:
    """Refuses bodies that are too large or not JSON, and NUL in the address, before anything reads them.

    ``streamed`` says of a path how large a body may be there, where a route does not hold it as a whole.
    """

    def __init__(self, app: ASGIApp, *, max_body: int, streamed: Mapping[re.Pattern[str], int]) -> None:
        self._app = app
        self._max_body = max_body
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            raise Problem(400, "bad-request", "the address contains a NUL character")
        headers = Headers(scope=scope)
        length = int(headers.get("content-length", "0"))
        most = self._most(scope)
        if length > most:
            raise _too_large(most)
        if length or "transfer-encoding" in headers:
            _check_media_type(headers)
        await self._app(scope, _counting(receive, most), send)

    def _most(self, scope: Scope) -> int:
        for path, most in self._streamed.items():
            if path.fullmatch(scope["path"]):
                return most
        return self._max_body


def _counting(receive: Receive, most: int) -> Receive:
    # A chunked body does not say how long it is.
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > most:
                # FastAPI turns any other exception in the middle of a body into its own 400.
                raise HTTPException(413, detail=_too_large(most).message)
        return message

    return counted


def _too_large(most: int) -> Problem:
    return Problem(413, "body-too-large", f"the body is larger than {most} bytes", title="Body too large")


class Authenticate:
    """Lets nobody past without a valid bearer token, whatever the path, except to the ``public`` ones."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator, public: frozenset[str]) -> None:
        self._app = app
        self._authenticator = authenticator
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            raise RuntimeError("websockets are not authenticated here, so there must be none")
        if scope["type"] == "http" and scope["path"] not in self._public:
            principal = await self._authenticator.authenticate(bearer_token(Headers(scope=scope)))
            scope.setdefault("state", {})[PRINCIPAL] = principal
        await self._app(scope, receive, send)


def _check_media_type(headers: Headers) -> None:
    media_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise Problem(
            415, "unsupported-media-type", "the body is not application/json", fix="send content-type: application/json"
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported-media-type", "the body is compressed", fix="send it without content-encoding")


def _method(scope: Scope) -> str:
    # A client may invent methods; each would be a new series.
    method: str = scope["method"]
    return method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} else "other"
