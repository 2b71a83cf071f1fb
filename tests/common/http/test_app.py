"""Every error has the same shape, every request a trace, and nothing is open but probes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query
from prometheus_client import REGISTRY
from starlette.responses import StreamingResponse

from replank.errors import DependencyUnavailable, ReplankError
from replank.http import (
    Authenticator,
    CurrentPrincipal,
    Keyset,
    Page,
    PageQuery,
    Problem,
    Readiness,
    RequestModel,
    create_app,
)
from replank.http.problems import ProblemKind
from replank.postgres import PoolExhausted
from replank.testing.spans import Spans
from tests.common.http.conftest import Caller, Issuer


class Sold(ReplankError):
    """A plank that is gone."""


class NewPlank(RequestModel):
    name: str
    length: int = 1
    extra: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    pin: str | None = None


FAILURES: dict[str, Callable[[], Exception]] = {
    "bug": lambda: RuntimeError("password=hunter2"),
    "unmapped": lambda: ReplankError("hunter2"),
    "sold": lambda: Sold("the plank 7 is sold", fix="take another"),
    "down": lambda: DependencyUnavailable("kafka", "kafka at 10.0.0.1 refuses hunter2"),
    "full": lambda: PoolExhausted("general_primary", max_size=10, waited=5),
    "slow": TimeoutError,
    "cancelled": lambda: asyncpg.QueryCanceledError("statement timeout"),
    "teapot": lambda: Problem(418, "teapot", "no coffee here", extensions={"pot": "small"}),
}

PLANKS = [(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=n // 2), UUID(int=n)) for n in range(10)]
_by_age = Keyset("planks", tuple[datetime, UUID])
_by_name = Keyset("names", tuple[datetime, UUID])


class PlankView(RequestModel):
    id: UUID


router = APIRouter()


@router.post("/planks", status_code=201)
async def create(plank: NewPlank, principal: CurrentPrincipal) -> dict[str, Any]:
    return {"name": plank.name, "by": principal.user}


@router.get("/planks")
async def planks(page: Annotated[PageQuery, Query()]) -> Page[PlankView]:
    after = _by_age.after(page)
    rows = [plank for plank in PLANKS if after is None or plank > after][: page.limit + 1]
    return _by_age.page(rows, page, key=lambda row: row, view=lambda row: PlankView(id=row[1]))


@router.get("/planks/{plank_id}")
async def plank(plank_id: UUID) -> dict[str, str]:
    return {"id": str(plank_id)}


@router.get("/fail/{how}")
async def fail(how: str) -> None:
    raise FAILURES[how]()  # noqa: RSE102 - it makes the error


@router.get("/half")
async def half() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("broken in the middle")

    return StreamingResponse(body())


@pytest.fixture
def readiness() -> Readiness:
    return Readiness(within=0.2)


@pytest.fixture
def app(authenticator: Authenticator, readiness: Readiness) -> FastAPI:
    return create_app(
        service="shop",
        version="1.0",
        authenticator=authenticator,
        readiness=readiness,
        routers=[router],
        problems={Sold: ProblemKind(409, "plank-sold")},
        max_body=2000,
    )


@pytest.fixture
async def client(app: FastAPI, calling: Caller) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(app) as opened:
        yield opened


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The document of an answer that must be this problem."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:replank:problem:{slug}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["instance"] == answer.request.url.path
    assert document["trace_id"] == answer.headers["x-trace-id"]
    assert len(document["trace_id"]) == 32
    assert "hunter2" not in answer.text
    return document


# --- who may enter ---


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/planks"), ("POST", "/planks"), ("GET", "/nowhere"), ("GET", "/openapi.json")]
)
async def test_every_path_needs_a_token_known_or_not(app: FastAPI, calling: Caller, method: str, path: str) -> None:
    async with calling(app, token=None) as client:
        answer = await client.request(method, path)
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer realm="replank"'


@pytest.mark.parametrize("header", ["hunter2", "Basic aHVudGVyMg==", "Bearer", "Bearer ", "Bearer a b"])
async def test_an_authorization_that_is_no_bearer_token_is_refused(app: FastAPI, calling: Caller, header: str) -> None:
    async with calling(app, token=None) as client:
        problem(await client.get("/planks", headers={"authorization": header}), 401, "unauthorized")


async def test_two_tokens_are_refused(app: FastAPI, calling: Caller, issuer: Issuer) -> None:
    async with calling(app, token=None) as client:
        good = ("authorization", f"Bearer {issuer.token()}")
        problem(await client.get("/planks", headers=[good, good]), 401, "unauthorized")


async def test_the_body_of_a_stranger_is_not_read(app: FastAPI, calling: Caller) -> None:
    async with calling(app, token=None) as client:
        problem(await client.post("/planks", json={"unknown": 1}), 401, "unauthorized")


async def test_the_route_knows_who_calls(client: httpx.AsyncClient) -> None:
    assert (await client.post("/planks", json={"name": "oak"})).json() == {"name": "oak", "by": "user:anna"}


# --- what is wrong with a request ---


async def test_an_unknown_path_is_a_problem(client: httpx.AsyncClient) -> None:
    problem(await client.get("/nowhere"), 404, "not-found")


async def test_a_wrong_method_says_which_are_right(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/planks")
    problem(answer, 405, "method-not-allowed")
    assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["body.name"]),
        ({"name": 7}, ["body.name"]),
        ({"name": "oak", "length": "hunter2"}, ["body.length"]),
        ({"name": "oak", "colour": "hunter2"}, ["body.colour"]),
        ({"name": {"hunter2": 1}, "length": []}, ["body.name", "body.length"]),
        ([], ["body"]),
        ("hunter2", ["body"]),
        (None, ["body"]),
    ],
)
async def test_wrong_fields_are_named_and_their_values_are_not_repeated(
    client: httpx.AsyncClient, body: object, fields: list[str]
) -> None:
    answer = await client.post("/planks", content=json.dumps(body), headers={"content-type": "application/json"})
    document = problem(answer, 422, "invalid-request")
    assert [fault["field"] for fault in document["errors"]] == fields
    assert all(fault["problem"] for fault in document["errors"])


@pytest.mark.parametrize(
    "body",
    [
        rb'{"name": "a\u0000b"}',
        rb'{"name": "oak", "extra": {"deep": ["\u0000"]}}',
        rb'{"name": "oak", "extra": {"\u0000": 1}}',
        rb'{"name": "oak", "extra": {"deep": "\ud800"}}',
        rb'{"name": "oak", "extra": {"deep": NaN}}',
        rb'{"name": "oak", "extra": {"deep": 1e999}}',
        b'{"name": "oak", "length": 9223372036854775808}',
        b'{"name": "oak", "extra": {"deep": ' + b"9" * 1900 + b"}}",
    ],
)
async def test_what_postgres_cannot_store_is_a_fault_of_the_request(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/planks", content=body, headers={"content-type": "application/json"})
    problem(answer, 422, "invalid-request")


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b'{"name": "oak"', b"[" * 1900, b'{"name": ' + b"9" * 1900 + b"x}", b"\x00"]
)
async def test_what_is_no_json_is_a_bad_request(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/planks", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_plain_json_is_refused(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    problem(await client.post("/planks", content=b'{"name": "oak"}', headers=headers), 415, "unsupported-media-type")


async def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(client: httpx.AsyncClient) -> None:
    problem(await client.post("/planks", json={"name": "x" * 3000}), 413, "body-too-large")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b'{"name": "' + b"x" * 100

    answer = await client.post("/planks", content=endless(), headers={"content-type": "application/json"})
    problem(answer, 413, "body-too-large")


@pytest.mark.parametrize("path", ["/planks/%00", "/planks?cursor=%00"])
async def test_nul_in_the_address_is_refused(client: httpx.AsyncClient, path: str) -> None:
    problem(await client.get(path), 400, "bad-request")


async def test_a_path_parameter_of_the_wrong_type_is_named(client: httpx.AsyncClient) -> None:
    document = problem(await client.get("/planks/seven"), 422, "invalid-request")
    assert [fault["field"] for fault in document["errors"]] == ["path.plank_id"]


async def test_a_body_of_many_mistakes_gets_a_short_answer(client: httpx.AsyncClient) -> None:
    body = {"name": "oak", **{f"x{n}": 1 for n in range(150)}}
    document = problem(await client.post("/planks", json=body), 422, "invalid-request")
    assert document["detail"].startswith("150 fields")
    assert len(document["errors"]) == 20


# --- what goes wrong here ---


@pytest.mark.parametrize(
    ("how", "status", "slug"),
    [
        ("bug", 500, "internal"),
        ("unmapped", 500, "internal"),
        ("sold", 409, "plank-sold"),
        ("down", 503, "dependency-unavailable"),
        ("full", 503, "overloaded"),
        ("slow", 503, "timeout"),
        ("cancelled", 503, "timeout"),
        ("teapot", 418, "teapot"),
    ],
)
async def test_every_failure_is_a_problem(
    client: httpx.AsyncClient, how: str, status: int, slug: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.get(f"/fail/{how}")
    document = problem(answer, status, slug)
    if status == 503:
        assert int(answer.headers["retry-after"]) > 0
        assert document["fix"]
    if how == "bug":
        assert "RuntimeError" in caplog.text, "the log has what the answer must not have"
    if how == "sold":
        assert (document["detail"], document["fix"]) == ("the plank 7 is sold", "take another")
    if how == "down":
        assert document["dependency"] == "kafka"
    if how == "teapot":
        assert document["pot"] == "small"


async def test_half_an_answer_is_not_completed_with_a_problem(client: httpx.AsyncClient) -> None:
    answer = await client.get("/half")
    assert answer.content == b"half"


# --- paging ---


async def test_pages_follow_each_other_without_gap_or_repetition(client: httpx.AsyncClient) -> None:
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = (await client.get("/planks", params={"limit": 3, **({"cursor": cursor} if cursor else {})})).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == [str(plank_id) for _, plank_id in PLANKS]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "offset=3"])
async def test_a_wrong_page_is_refused(client: httpx.AsyncClient, query: str) -> None:
    problem(await client.get(f"/planks?{query}"), 422, "invalid-request")


async def test_a_cursor_that_was_changed_or_is_of_another_listing_is_refused(client: httpx.AsyncClient) -> None:
    good = (await client.get("/planks", params={"limit": 3})).json()["next"]
    foreign = _by_name.page(PLANKS[:2], PageQuery(limit=1), key=lambda row: row, view=lambda row: row).next
    for cursor in (good[:-2], "A" + good[1:], good + "A", "", "!", "\N{LATIN SMALL LETTER E WITH ACUTE}", foreign):
        problem(await client.get("/planks", params={"cursor": cursor}), 400, "invalid-cursor")


# --- probes ---


async def test_probes_need_no_token(app: FastAPI, calling: Caller) -> None:
    async with calling(app, token=None) as client:
        assert (await client.get("/healthz")).json() == {"alive": True}
        assert (await client.get("/readyz")).json()["ready"] is True
        assert "replank_http_request_seconds" in (await client.get("/metrics")).text


async def test_metrics_can_be_closed(authenticator: Authenticator, calling: Caller) -> None:
    app = create_app(
        service="shop", version="1.0", authenticator=authenticator, readiness=Readiness(), metrics_open=False
    )
    async with calling(app, token=None) as client:
        problem(await client.get("/metrics"), 401, "unauthorized")
        assert (await client.get("/healthz")).status_code == 200


async def test_readiness_names_each_dependency_with_its_reason(client: httpx.AsyncClient, readiness: Readiness) -> None:
    async def fine() -> None: ...

    async def hangs() -> None:
        await asyncio.Event().wait()

    async def down() -> None:
        raise DependencyUnavailable("kafka", "kafka does not answer", fix="start it")

    async def broken() -> None:
        raise KeyError("a bug in the check")

    readiness.add("postgres", fine)
    readiness.add("object store", hangs)
    readiness.add("kafka", down)
    readiness.add("relay", broken)
    readiness.add("cache", down, required=False)
    document = problem(await client.get("/readyz"), 503, "not-ready")
    assert document["detail"] == "not ready: object store, kafka, relay"
    reasons = {name: health.get("reason") for name, health in document["dependencies"].items()}
    assert reasons == {
        "postgres": None,
        "object store": "no answer within 0.2 s",
        "kafka": "kafka does not answer (start it)",
        "relay": "KeyError: 'a bug in the check'",
        "cache": "kafka does not answer (start it)",
    }


async def test_an_optional_dependency_does_not_make_the_service_unready(
    client: httpx.AsyncClient, readiness: Readiness
) -> None:
    async def down() -> None:
        raise DependencyUnavailable("cache", "no answer")

    readiness.add("cache", down, required=False)
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["dependencies"]["cache"]["ready"] is False


async def test_many_probes_ask_a_dependency_once(client: httpx.AsyncClient, readiness: Readiness) -> None:
    asked = 0

    async def count() -> None:
        nonlocal asked
        asked += 1

    readiness.add("postgres", count)
    await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
    assert asked == 1


# --- what is left behind ---


async def test_a_request_is_one_span_in_the_callers_trace(client: httpx.AsyncClient, spans: Spans) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    answer = await client.get(
        "/planks/00000000-0000-0000-0000-000000000007", headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    )
    assert answer.headers["x-trace-id"] == trace_id
    [span] = spans.all()
    assert span.name == "GET /planks/{plank_id}"
    assert format(span.context.trace_id, "032x") == trace_id


async def test_probes_are_not_traced(client: httpx.AsyncClient, spans: Spans) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        await client.get(path)
    assert spans.all() == ()


async def test_a_request_is_logged_once_without_its_query_or_body(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="replank.http.access"):
        await client.post("/planks?key=hunter2", json={"name": "hunter2"})
        await client.get("/healthz")
    [record] = [record for record in caplog.records if record.name == "replank.http.access"]
    assert record.__dict__["http_route"] == "/planks"
    assert record.__dict__["http_status"] == 201
    assert record.__dict__["subject"] == "user:anna"
    assert "hunter2" not in str(record.__dict__)


async def test_requests_are_measured_by_route_not_by_address(client: httpx.AsyncClient) -> None:
    labels = {"method": "GET", "route": "/planks/{plank_id}", "status": "200"}
    before = REGISTRY.get_sample_value("replank_http_request_seconds_count", labels) or 0
    await client.get("/planks/00000000-0000-0000-0000-000000000007")
    assert REGISTRY.get_sample_value("replank_http_request_seconds_count", labels) == before + 1


async def test_the_openapi_document_describes_problems_and_tokens(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/planks"]["post"]
    assert set(operation["responses"]) == {"201", "4XX", "5XX"}
    assert "application/problem+json" in operation["responses"]["4XX"]["content"]
    assert operation["security"] == [{"HTTPBearer": []}]
    assert "/healthz" not in document["paths"]
