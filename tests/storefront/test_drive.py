"""The driver's word can be relied on: an untrue answer never passes, and a true one never fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replank.testing import eventually
from replank.testing.processes import Process
from replank.testing.services import Issuer
from replank_storefront.audit import audit, read_truth
from replank_storefront.drive import Drive, Limits
from replank_storefront.requester import TokenFile

from .conftest import Databases, Serve

LIMITS = Limits(workers=4, requests=500, products=6, patience=20)


Spoil = Callable[[ASGIApp, Scope, Receive, Send], Awaitable[bool]]


class Saboteur:
    """Stands before the shop, and hands what ``matches`` to ``spoil`` until that says that it has spoilt an answer."""

    def __init__(self, app: ASGIApp, matches: Callable[[Scope], bool], spoil: Spoil) -> None:
        self._app = app
        self._matches = matches
        self._spoil = spoil
        self._done = False
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._one_at_a_time:
            if scope["type"] == "http" and not self._done and self._matches(scope):
                self._done = await self._spoil(self._app, scope, receive, send)
                return
        await self._app(scope, receive, send)


async def answered(app: ASGIApp, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    """The answer of the shop, kept back."""
    start: Message = {}
    body = b""

    async def keep(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start":
            start = message
        else:
            body += message.get("body", b"")

    await app(scope, receive, keep)
    return start, body


def replaying(request: Message) -> Receive:
    """The body of a request, once more."""

    async def receive() -> Message:
        return request

    return receive


def lists_products(scope: Scope) -> bool:
    return bool(scope["method"] == "GET" and scope["path"].startswith("/v1/catalogs/"))


async def give(send: Send, start: Message, body: bytes) -> None:
    headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
    await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


async def test_everything_that_the_shop_says_is_true_and_the_store_agrees(
    serve: Serve, auth: TokenFile, kv: asyncpg.Connection
) -> None:
    async with serve() as url:
        result = await Drive(url, auth, LIMITS).run()
    assert result.clean, result.as_json()
    endpoints = result.as_json()["ms"]
    assert {"product.list", "product.search", "client.report", "order.place", "site.offer", "event.counts"} <= set(
        endpoints
    )
    assert sum(each["count"] for each in endpoints.values()) == result.numbers.requests >= LIMITS.requests  # type: ignore[operator]
    found = await audit(kv, "kv", result.truth)
    assert (found.wrong, found.doubtful) == (0, 0), found.first
    assert found.compared > 50


async def test_one_wrong_field_in_one_answer_is_found(serve: Serve, auth: TokenFile) -> None:
    async def spoil(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> bool:
        start, body = await answered(app, scope, receive)
        products = json.loads(body)
        if not products:
            await give(send, start, body)
            return False
        products[0]["stock"] += 1
        await give(send, start, json.dumps(products).encode())
        return True

    async with serve(lambda app: Saboteur(app, lists_products, spoil)) as url:
        result = await Drive(url, auth, LIMITS).run()
    assert (result.numbers.wrong, result.numbers.failures) == (1, 0), result.as_json()
    (first,) = result.numbers.first
    (field,) = first["different"]
    assert field["path"].endswith(".stock")
    assert field["got"] == field["expected"] + 1


async def test_a_lost_write_is_found_by_reading_or_by_the_audit(
    serve: Serve, auth: TokenFile, kv: asyncpg.Connection
) -> None:
    orders: list[str] = []

    async def spoil(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> bool:
        """Says that the status is changed, and changes nothing."""
        request = await receive()
        path = scope["path"].removesuffix("/status")
        start, answer = await answered(
            app, {**scope, "method": "GET", "path": path, "raw_path": path.encode()}, receive
        )
        order = json.loads(answer)
        wanted = json.loads(request["body"])
        if order["status"] == wanted["status"]:
            await app(scope, replaying(request), send)
            return False
        orders.append(order["id"])
        await give(send, start, json.dumps({**order, **wanted}).encode())
        return True

    def changes_a_status(scope: Scope) -> bool:
        return bool(scope["method"] == "PUT" and scope["path"].endswith("/status"))

    async with serve(lambda app: Saboteur(app, changes_a_status, spoil)) as url:
        result = await Drive(url, auth, LIMITS).run()
    (order,) = orders
    found = await audit(kv, "kv", result.truth)
    assert result.numbers.failures == 0
    assert result.numbers.wrong or found.wrong
    shown = json.dumps([result.numbers.first, found.first])
    assert order in shown or "by_status" in shown


async def test_a_stale_read_is_found_and_called_so(serve: Serve, auth: TokenFile) -> None:
    before: dict[str, tuple[Message, bytes]] = {}

    async def spoil(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answers what was the answer before, once that is not the answer any more."""
        now = await answered(app, scope, receive)
        first = before.setdefault(scope["path"], now)
        await give(send, *first)
        return first[1] != now[1]

    async with serve(lambda app: Saboteur(app, lists_products, spoil)) as url:
        result = await Drive(url, auth, LIMITS).run()
    assert (result.numbers.wrong, result.numbers.stale, result.numbers.failures) == (1, 1, 0), result.as_json()


async def test_a_refusal_is_a_failure_and_a_request_to_come_again_is_not(serve: Serve, auth: TokenFile) -> None:
    turn = 0

    async def spoil(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> bool:
        nonlocal turn
        turn += 1
        headers = [(b"content-type", b"application/json"), *([(b"retry-after", b"0")] if turn <= 3 else [])]
        await give(send, {"type": "http.response.start", "status": 503, "headers": headers}, b"{}")
        return turn > 3

    async with serve(lambda app: Saboteur(app, lists_products, spoil)) as url:
        result = await Drive(url, auth, LIMITS).run()
    assert (result.numbers.failures, result.numbers.wrong, result.numbers.retries) == (1, 0, 3), result.as_json()


async def test_an_order_whose_answer_is_lost_is_placed_once(
    serve: Serve, auth: TokenFile, kv: asyncpg.Connection
) -> None:
    async def spoil(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> bool:
        start, _ = await answered(app, scope, receive)
        assert start["status"] == 201
        # Half an answer, after which there is nothing for the server to do but to close the connection.
        await send(start)
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise ConnectionResetError

    lost = 0

    def places_an_order(scope: Scope) -> bool:
        nonlocal lost
        if scope["method"] == "POST" and scope["path"].endswith("/orders") and lost < 3:
            lost += 1
            return True
        return False

    async with serve(lambda app: Saboteur(app, places_an_order, spoil)) as url:
        result = await Drive(url, auth, LIMITS).run()
    assert result.clean, result.as_json()
    assert lost == 3
    assert result.numbers.retries >= 3
    assert (await audit(kv, "kv", result.truth)).wrong == 0
    known = sum(len(world.orders) for world in result.truth.worlds)
    assert await kv.fetchval("select count(*) from kv_store where key like 'order:%'") == known


async def test_an_open_loop_keeps_its_rate_and_counts_waiting_as_latency(serve: Serve, auth: TokenFile) -> None:
    async def spoil(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> bool:
        held = asyncio.Event()
        asyncio.get_running_loop().call_later(2.0, held.set)
        await held.wait()
        await app(scope, receive, send)
        return True

    async with serve(lambda app: Saboteur(app, lists_products, spoil)) as url:
        result = await Drive(url, auth, Limits(workers=1, rate=5, seconds=8, products=3)).run()
    assert result.clean, result.as_json()
    # One request took two seconds, and ten were late because of it; all the same they were sent. A few turns of the
    # plan ask for nothing, as long as there are no orders to ask for.
    assert result.numbers.requests >= 25
    late = sum(value > 500 for values in result.numbers.milliseconds.values() for value in values)
    assert late >= 4


async def test_the_command_drives_until_it_is_told_to_stop_and_its_model_can_be_audited(
    serve: Serve, issuer: Issuer, databases: Databases, kv: asyncpg.Connection, tmp_path: Path
) -> None:
    model = tmp_path / "model.json"
    tokens = str(issuer.token_file("user:shopper"))
    async with serve() as url:
        arguments = [
            "drive",
            "--url",
            url,
            "--token-file",
            tokens,
            "--workers",
            "2",
            "--live",
            "0.2",
            "--products",
            "3",
        ]
        async with Process("replank_storefront", *arguments, "--model", str(model)) as driver:

            async def has_ordered() -> bool:
                return bool(await kv.fetchval("select count(*) > 20 from kv_store where key like 'order:%'"))

            await eventually(has_ordered, "orders are placed", within=30)
            await driver.line_with('"live"')
            driver.terminate()
            assert await driver.exit_code() == 0, driver.output
            summary = json.loads(driver.output.splitlines()[-1])
    assert summary["requests"] > 50
    assert summary["failures"] == summary["wrong"] == 0

    async def audited(*models: Path) -> tuple[int, dict[str, Any]]:
        environment = {"REPLANK_STOREFRONT_DSN": databases.kv}
        options = [option for path in models for option in ("--model", str(path))]
        async with Process("replank_storefront", "audit", "--store", "kv", *options, env=environment) as run:
            return await run.exit_code(), json.loads(run.output)

    code, found = await audited(model)
    assert (code, found["wrong"]) == (0, 0), found
    _, twice = await audited(model, model)
    assert (twice["compared"], twice["wrong"]) == (2 * found["compared"], 0)
    order = next(order for world in (await read_truth([model])).worlds for order in world.orders.values())
    await kv.execute("delete from kv_store where key = $1", f"order:{order.client_id}:{order.id}")
    code, found = await audited(model)
    assert code == 1
    assert any(order.id in each["question"] for each in found["first"])
