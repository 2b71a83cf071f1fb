"""A server that answers the command as a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from replank.http.server import listening_socket
from replank.testing import eventually

Answering = Callable[[Request], Awaitable[Response]]


@asynccontextmanager
async def answering(answer: Answering) -> AsyncIterator[dict[str, str]]:
    """The environment that leads the command to a server that answers everything in one way."""
    sock = listening_socket("127.0.0.1", 0)
    url = "http://{}:{}".format(*sock.getsockname())
    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST", "PUT"])])
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await eventually(lambda: server.started, "the server serves")
        yield {"REPLANK_SCHEMA_URL": url, "REPLANK_TOKEN": "a-token"}
    finally:
        server.should_exit = True
        await serving


def problem(status: int, slug: str, detail: str, **members: object) -> JSONResponse:
    document = {"type": f"urn:replank:problem:{slug}", "status": status, "detail": detail, **members}
    return JSONResponse(document, status_code=status, media_type="application/problem+json")
