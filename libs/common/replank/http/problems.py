"""Errors as problem documents (RFC 9457), one shape for all of them.

``type`` is stable (``urn:replank:problem:<slug>``): clients branch on it, never on the text. ``detail`` names the thing
that is wrong, ``fix`` what to do, ``trace_id`` where to look. No document repeats a value that the client sent: it
could be a secret, and the document may be logged.
"""

from __future__ import annotations

import http
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from replank.errors import DependencyUnavailable, ReplankError
from replank.http.tracing import trace_id_of
from replank.postgres.pools import PoolExhausted

_log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
_URN: Final = "urn:replank:problem:"
# A body full of mistakes is answered with the first ones: an answer should not outgrow its request.
_MAX_FAULTS: Final = 20
_MAX_FIELD: Final = 200

_SLUGS: Final = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    415: "unsupported-media-type",
}


class Problem(ReplankError):
    """An error with an HTTP answer of its own: raise it from a route or a use case of the HTTP side.

    ``slug`` ends the stable type, ``title`` says what kind of problem it is, ``message`` what it is this time.
    ``extensions`` become members of the document.
    """

    def __init__(
        self,
        status: int,
        slug: str,
        message: str,
        *,
        title: str = "",
        fix: str = "",
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, fix=fix)
        self.status = status
        self.slug = slug
        self.title = title or slug.replace("-", " ").capitalize()
        self.headers = dict(headers or {})
        self.extensions = dict(extensions or {})


class ProblemDocument(BaseModel):
    """What a client gets for every error."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    trace_id: str
    fix: str | None = None


@dataclass(frozen=True)
class ProblemKind:
    """How an error of a service's own is answered: its message becomes the detail."""

    status: int
    slug: str
    headers: Mapping[str, str] = field(default_factory=dict)


def problem_of(error: Exception, kinds: Mapping[type[Exception], ProblemKind]) -> Problem:
    """The problem that an exception is answered with.

    ``kinds`` adds a service's own errors; the most derived class wins. What nobody expected is logged with its stack
    and answered without a word about it.
    """
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _invalid(error.errors())
        case HTTPException():
            return _http(error)
        case _:
            return _own(error, kinds) or _of_a_server(error) or _unexpected(error)


def response_to(problem: Problem, scope: Scope) -> Response:
    """The answer that carries a problem."""
    document = {
        **problem.extensions,
        "type": _URN + problem.slug,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.message,
        "instance": scope["path"],
        "trace_id": trace_id_of(scope),
        **({"fix": problem.fix} if problem.fix else {}),
    }
    return Response(
        # ASCII escapes everything, lone surrogates of a decoded path included.
        json.dumps(document).encode(),
        status_code=problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


def openapi_responses() -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says about errors, the same for every operation."""
    content = {MEDIA_TYPE: {"schema": ProblemDocument.model_json_schema()}}
    return {
        "4XX": {"description": "The request cannot be served as it is.", "content": content},
        "5XX": {"description": "The service or something that it needs is in trouble.", "content": content},
    }


def _own(error: Exception, kinds: Mapping[type[Exception], ProblemKind]) -> Problem | None:
    for cls in type(error).__mro__:
        kind = kinds.get(cls)
        if kind is not None:
            message, fix = (error.message, error.fix) if isinstance(error, ReplankError) else (str(error), "")
            return Problem(kind.status, kind.slug, message, fix=fix, headers=kind.headers)
    return None


def _of_a_server(error: Exception) -> Problem | None:
    # The errors' own texts name hosts and roles: they are for the log.
    match error:
        case PoolExhausted():
            _log.warning("%s", error)
            return _unavailable(
                "overloaded", "all database connections for this kind of request are in use", error.dependency
            )
        case DependencyUnavailable():
            _log.warning("%s is not available: %s", error.dependency, error)
            return _unavailable("dependency-unavailable", f"{error.dependency} does not answer", error.dependency)
        case asyncpg.QueryCanceledError():
            _log.warning("a statement took too long", exc_info=error)
            return _unavailable("timeout", "postgres did not finish in time", "postgres")
        case TimeoutError():
            _log.warning("something took too long", exc_info=error)
            return _unavailable("timeout", "a server that this request needs did not finish in time", None)
        case _:
            return None


def _unavailable(slug: str, detail: str, dependency: str | None) -> Problem:
    return Problem(
        503,
        slug,
        detail,
        fix="retry later; a request with an Idempotency-Key may be repeated safely",
        headers={"retry-after": "2"},
        extensions={"dependency": dependency} if dependency else {},
    )


def _unexpected(error: Exception) -> Problem:
    _log.error("unexpected error", exc_info=error)
    return Problem(
        500,
        "internal",
        "something unexpected happened",
        title="Internal error",
        fix="report the trace id; it finds the cause in traces and logs",
    )


def _http(error: HTTPException) -> Problem:
    phrase = http.HTTPStatus(error.status_code).phrase
    fixes = {404: "check the path", 405: "use a method of the allow header"}
    # The framework's own texts say nothing that the phrase does not, except for methods that are allowed.
    return Problem(
        error.status_code,
        _SLUGS.get(error.status_code, phrase.lower().replace(" ", "-")),
        error.detail or phrase,
        title=phrase,
        fix=fixes.get(error.status_code, ""),
        headers=error.headers,
    )


def _invalid(errors: Sequence[Any]) -> Problem:
    if any(fault["type"] == "json_invalid" and fault["loc"][0] == "body" for fault in errors):
        return Problem(400, "malformed-json", "the body is not valid JSON", title="Malformed JSON")
    faults = [
        {
            "field": ".".join(str(part) for part in fault["loc"])[:_MAX_FIELD],
            "problem": fault["msg"].removeprefix("Value error, "),
        }
        for fault in errors[:_MAX_FAULTS]
    ]
    return Problem(
        422,
        "invalid-request",
        f"{len(errors)} field{'s' if len(errors) != 1 else ''} of the request cannot be accepted",
        title="Invalid request",
        fix="correct the fields under errors",
        extensions={"errors": faults},
    )
