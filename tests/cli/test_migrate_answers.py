"""What the command makes of answers that only a server in trouble, or another server, gives."""

from __future__ import annotations

import json

import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from tests.cli.answers import answering, problem
from tests.cli.command import replank


async def test_every_unmet_condition_is_shown_with_what_to_do_about_it() -> None:
    async def refuse(_: Request) -> Response:
        conditions = [
            {"name": "compared", "met": False, "detail": "nothing was compared", "fix": "ask for a comparison"},
            {"name": "indexes", "met": False, "detail": "[bold]not[/] all built", "fix": "wait"},
        ]
        detail = "advance is refused in the phase verifying: compared: nothing was compared; indexes: not all built"
        return problem(409, "transition-refused", detail, conditions=conditions, fix="ask for a comparison. wait")

    async with answering(refuse) as there:
        refused = await replank("migrate", "list", **there)
    assert refused.code == 1
    assert refused.error.splitlines() == [
        "error: advance is refused in the phase verifying",
        "  compared: nothing was compared",
        "    what to do: ask for a comparison",
        "  indexes: [bold]not[/] all built",
        "    what to do: wait",
    ]
    assert refused.out == ""


async def test_another_server_at_the_address_is_said_to_be_one() -> None:
    async def page(_: Request) -> Response:
        return HTMLResponse("<h1>It works!</h1>", status_code=404)

    async with answering(page) as there:
        lost = await replank("migrate", "list", **there)
    assert lost.code == 1
    assert "answered 404, and not as the schema service does" in lost.error
    assert "REPLANK_SCHEMA_URL" in lost.error
    assert "<h1>" not in lost.error


async def test_a_request_is_sent_again_under_its_key_until_it_is_answered() -> None:
    keys: list[str | None] = []

    async def late(request: Request) -> Response:
        if request.method == "GET":
            return problem(404, "migration-not-found", "there is no migration")
        keys.append(request.headers.get("idempotency-key"))
        if len(keys) < 3:
            return problem(503, "dependency-unavailable", "postgres does not answer")
        return problem(409, "phase-changed", "it is in another phase", fix="look again")

    arguments = ("migrate", "plan", "--source", "a", "--target", "b", "--owner", "user:ada", "/dev/null")
    async with answering(late) as there:
        answered = await replank(*arguments, **there)
    assert answered.code == 1
    assert answered.error.splitlines() == ["error: it is in another phase", "  what to do: look again"]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert keys[0]


async def test_a_service_that_stays_away_is_said_once_with_what_to_do() -> None:
    nobody = {"REPLANK_SCHEMA_URL": "http://127.0.0.1:1", "REPLANK_TOKEN": "hush"}
    away = await replank("migrate", "list", **nobody)
    assert away.code == 1
    assert "error: the schema service does not answer at http://127.0.0.1:1" in away.error
    assert "what to do:" in away.error
    assert "hush" not in away.error
    assert away.out == "", "what is retried is nobody's result"
    assert "Traceback" not in away.error


async def test_a_whole_listing_is_read_page_by_page() -> None:
    async def pages(request: Request) -> Response:
        cursor = int(request.query_params.get("cursor", "0"))
        size = int(request.query_params["limit"])
        items = [{"number": number} for number in range(cursor, min(cursor + size, 450))]
        following = cursor + size
        return JSONResponse({"items": items, "next": str(following) if following < 450 else None})

    async with answering(pages) as there:
        some = await replank("migrate", "list", "--limit", "250", "--json", **there)
        all_ = await replank("migrate", "list", "--limit", "1000", "--json", **there)
    assert [item["number"] for item in json.loads(some.out)] == list(range(250))
    assert [item["number"] for item in json.loads(all_.out)] == list(range(450))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list",), "no schema service is named"),
        (("list", "--url", "http://127.0.0.1:1"), "there is no token"),
        (("list", "--url", "127.0.0.1:8000", "--token", "t"), "is not the URL of a service"),
        (("list", "--url", "http://", "--token", "t"), "is not the URL of a service"),
        (("list", "--url", "http://127.0.0.1:1", "--token", "zwölf"), "the token cannot be sent"),
        (("start", "shop"), "no reason is given"),
        (("start", "shop", "--reason", "  "), "no reason is given"),
        (("set", "shop", "fast", "--reason", "r"), "'fast' is not key=value"),
        (("reads", "shop", "product.list"), "an endpoint needs a mode"),
        (("rejects", "retry", "shop", "--reason", "r"), "say which records"),
        (("rejects", "accept", "shop", "order:1", "--all", "--reason", "r"), "say which records"),
        (("sql", "/no/such/mapping.yaml"), "cannot read /no/such/mapping.yaml"),
        (("status", "shop", "--watch", "--json"), "do not go together"),
    ],
)
async def test_what_is_missing_is_said_before_anybody_is_asked(arguments: tuple[str, ...], said: str) -> None:
    refused = await replank("migrate", *arguments)
    assert refused.code == 1
    assert said in refused.error
    assert "what to do:" in refused.error
    assert "Traceback" not in refused.error
