"""The HTTP application of a service, with everything that all services share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from replank.authz import AuthzClient
from replank.http.auth import Authenticator
from replank.http.health import Readiness, as_json
from replank.http.middleware import Authenticate, Finish, Guard
from replank.http.problems import Problem, ProblemKind, openapi_responses, problem_of, response_to
from replank.telemetry.registry import render_metrics

_NO_KINDS: Final[Mapping[type[Exception], ProblemKind]] = {}
_NOTHING_STREAMED: Final[Mapping[re.Pattern[str], int]] = {}


def create_app(
    *,
    service: str,
    version: str,
    authenticator: Authenticator,
    readiness: Readiness,
    routers: Sequence[APIRouter] = (),
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[Any]] | None = None,
    problems: Mapping[type[Exception], ProblemKind] = _NO_KINDS,
    max_body: int = 1024 * 1024,
    streamed: Mapping[re.Pattern[str], int] = _NOTHING_STREAMED,
    metrics_open: bool = True,
    authz: AuthzClient | None = None,
) -> FastAPI:
    """A FastAPI application on which nothing is open but ``/healthz``, ``/readyz`` and, if so wished, ``/metrics``.

    Every other request needs a bearer token that ``authenticator`` accepts, an unknown path included. Every error is a
    problem document; ``problems`` says how a service's own errors are answered. Request bodies are JSON of at most
    ``max_body`` bytes; ``streamed`` has the paths of routes that stream theirs, with how large those may be. The
    OpenAPI document is at ``/openapi.json``. ``authz`` is what `replank.authz.routes.require` asks; opening and closing
    it is the lifespan's business.

    A span is made for every request but those of probes; its trace id is in the header ``x-trace-id`` of every answer.
    """
    probes = frozenset({"/healthz", "/readyz", "/metrics"})
    public = probes if metrics_open else probes - {"/metrics"}

    def is_probe(scope: Scope) -> bool:
        return scope.get("path") in probes

    async def http_error(request: Request, error: Exception) -> Response:
        return response_to(problem_of(error, problems), request.scope)

    app = FastAPI(
        title=f"Replank {service}",
        version=version,
        lifespan=lifespan,
        # The interactive pages load scripts from elsewhere, and would need a token themselves.
        docs_url=None,
        redoc_url=None,
        responses=openapi_responses(),
        # `Authenticate` does the work; this writes it into the OpenAPI document.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        exception_handlers={HTTPException: http_error, RequestValidationError: http_error},
        middleware=[
            Middleware(Finish, kinds=problems, quiet=probes),
            Middleware(Guard, max_body=max_body, streamed=streamed),
            Middleware(Authenticate, authenticator=authenticator, public=public),
        ],
        routes=[
            Route("/healthz", _healthz),
            Route("/readyz", _readyz(readiness)),
            Route("/metrics", _metrics),
        ],
        # FastAPI's own spans know the route; one a request is enough.
        telemetry={"metrics": False, "logs": False, "operation_spans": False, "exclude": is_probe},
    )
    app.state.authz = authz
    for router in routers:
        app.include_router(router)
    return app


async def _healthz(_: Request) -> Response:
    return JSONResponse({"alive": True})


def _readyz(readiness: Readiness) -> Callable[[Request], Any]:
    async def readyz(request: Request) -> Response:
        healths = await readiness.ask()
        failing = [name for name, health in healths.items() if health.required and not health.ready]
        if not failing:
            return JSONResponse({"ready": True, "dependencies": as_json(healths)})
        problem = Problem(
            503,
            "not-ready",
            f"not ready: {', '.join(failing)}",
            fix="the reason stands by each dependency; the service recovers by itself once they answer",
            headers={"retry-after": "2"},
            extensions={"ready": False, "dependencies": as_json(healths)},
        )
        return response_to(problem, request.scope)

    return readyz


async def _metrics(_: Request) -> Response:
    body, content_type = render_metrics()
    return Response(body, headers={"content-type": content_type})
