"""A served authorization server with OpenFGA's API, whose answers the test decides."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.common.http.serving import serving


class Server:
    """Allows what is in ``facts``; ``respond`` overrides every answer."""

    def __init__(self) -> None:
        self.facts: set[tuple[str, str, str]] = set()
        self.respond: Callable[[], Response] | None = None
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    async def check(self, request: Request) -> Response:
        body = await self._seen(request)
        if self.respond is not None:
            return self.respond()
        key = body["tuple_key"]
        return JSONResponse({"allowed": (key["user"], key["relation"], key["object"]) in self.facts})

    async def write(self, request: Request) -> Response:
        body = await self._seen(request)
        if self.respond is not None:
            return self.respond()
        for key in body.get("deletes", {}).get("tuple_keys", []):
            self.facts.discard((key["user"], key["relation"], key["object"]))
        for key in body.get("writes", {}).get("tuple_keys", []):
            self.facts.add((key["user"], key["relation"], key["object"]))
        return JSONResponse({})

    async def healthz(self, _: Request) -> Response:
        return self.respond() if self.respond is not None else JSONResponse({})

    async def _seen(self, request: Request) -> Any:
        body = json.loads(await request.body())
        self.requests.append((request.url.path, dict(request.headers), body))
        return body


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    answering = Server()
    app = Starlette(
        routes=[
            Route("/stores/replank/check", answering.check, methods=["POST"]),
            Route("/stores/replank/write", answering.write, methods=["POST"]),
            Route("/healthz", answering.healthz),
        ]
    )
    async with serving(app) as url:
        answering.url = url
        yield answering
