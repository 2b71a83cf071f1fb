"""``replank demo``: the story as far as it exists, told on the running stack, with proof of each step."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from uuid import uuid4

import httpx
import typer

from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError
from replank.telemetry.jaeger import Jaeger, Trace, TraceNotFound, waterfall
from replank_cli.console import output, print_table

_SERVICES: Final = ("schema", "auth-cache", "benchmark", "archiver")
_OWNER: Final = "user:ada"
# What is planned: moving the schema service's own list of plans, a real table of a database that benchmark may read.
_SOURCE: Final = {"target": "schema", "table": "migration"}
_PLAN: Final = {
    "entities": {"order": {"keys": "order:*", "table": "orders", "columns": {"id": "$.id", "total": "$.total"}}}
}
_EFFECTS_WITHIN: Final = 60.0
_TRACE_WITHIN: Final = 20.0

Result = TypeVar("Result")


app = typer.Typer(add_completion=False)


@app.command()
def demo() -> None:
    """Plan a migration, and watch it go through all four services in one trace. Needs a running stack (`make up`)."""
    asyncio.run(_tell())


async def _tell() -> None:
    urls = {service: _needed(f"REPLANK_{service.upper().replace('-', '_')}_URL") for service in _SERVICES}
    headers = {"authorization": f"Bearer {_needed('REPLANK_TOKEN')}"}
    jaeger = os.environ.get("REPLANK_JAEGER_URL") or None
    async with httpx.AsyncClient(headers=headers, timeout=20.0) as client:
        _heading("1", "A request to schema becomes a row and an event, in one transaction")
        started = time.monotonic()
        migration, trace_id = await _plan(client, urls["schema"])
        output.print(f"migration {migration['id']} ({migration['name']}) is {migration['phase']}", highlight=False)
        output.print(f"plan sha256 {migration['plan_sha256']}; trace {trace_id}", highlight=False)

        _heading("2", "Three services handle the event, and schema hears of each effect")
        ready = await _until(
            lambda: _get(client, f"{urls['schema']}/v1/migrations/{migration['id']}"),
            lambda view: view["phase"] == "ready" or any(item["state"] == "failed" for item in view["readiness"]),
            what=f"the migration {migration['id']} to be ready",
        )
        took = time.monotonic() - started
        print_table(
            ("needed", "state", "detail", "by event"),
            ((item["item"], item["state"], item["detail"], item["event_id"]) for item in ready["readiness"]),
        )
        output.print(f"{ready['phase']} {took:.2f} s after the request", highlight=False)

        _heading("3", "Each effect, asked of the service that owns it")
        print_table(("service", "effect"), await _effects(client, urls, migration))

        _heading("4", "One trace ties them together")
        whole = await _trace(jaeger, trace_id)
    if ready["phase"] != "ready" or not whole:
        raise typer.Exit(1)
    output.print('\nThe stack stays up: `eval "$(make env)"` tells your shell where it is, `make down` stops it.')


async def _plan(client: httpx.AsyncClient, schema: str) -> tuple[dict[str, Any], str]:
    response = await _send(
        client.post(
            f"{schema}/v1/migrations",
            headers={"idempotency-key": str(uuid4())},
            json={"name": "storefront orders", "owner": _OWNER, "source": _SOURCE, "plan": _PLAN},
        )
    )
    return response.json(), response.headers["x-trace-id"]


async def _effects(client: httpx.AsyncClient, urls: dict[str, str], migration: dict[str, Any]) -> list[tuple[str, str]]:
    identifier = migration["id"]
    key = {"user": _OWNER, "relation": "owner", "object": f"migration:{identifier}"}
    check = await _send(client.post(f"{urls['auth-cache']}/stores/replank/check", json={"tuple_key": key}))
    baseline = await _get(client, f"{urls['benchmark']}/v1/baselines/{identifier}")
    manifest = await _get(client, f"{urls['archiver']}/v1/manifests/{identifier}")
    return [
        ("auth-cache", f"{_OWNER} is owner of the migration: {check.json()['allowed']}"),
        (
            "benchmark",
            f"baseline {baseline['status']}: " + _facts(baseline, "rows_estimated", "bytes_total", "plan_cost"),
        ),
        ("archiver", f"plan kept and read back: {manifest['bucket']}/{manifest['object_key']}"),
        ("", f"sha256 {manifest['sha256']}, the plan's own: {manifest['sha256'] == migration['plan_sha256']}"),
    ]


def _facts(view: dict[str, Any], *names: str) -> str:
    return ", ".join(f"{name} {view[name]}" for name in names if view.get(name) is not None) or str(view.get("reason"))


async def _trace(url: str | None, trace_id: str) -> bool:
    """Draw the trace; false if it did not come whole. That there is no Jaeger is said, and is no failure."""
    if url is None:
        output.print("[yellow]Jaeger does not run[/]: the flow worked, but nobody keeps its trace.")
        output.print("It is built in the background where Go is installed; `make status` tells, then run this again.")
        return True

    def is_whole(trace: Trace) -> bool:
        waits = len(trace.find("outbox wait"))
        return trace.services >= set(_SERVICES) and waits >= len(_SERVICES) and len(trace.roots) == 1

    async with Jaeger(url) as jaeger:
        try:
            trace = await jaeger.trace(trace_id, until=is_whole, within=_TRACE_WITHIN)
        except TraceNotFound as error:
            output.print(error.message, markup=False, highlight=False)
            return False
    output.print(waterfall(trace, width=max(output.width, 100)), markup=False, highlight=False)
    output.print(f"\n{url}/api/traces/{trace_id} has it as JSON; `replank trace show {trace_id}` draws it again.")
    return True


async def _get(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    found: dict[str, Any] = (await _send(client.get(url))).json()
    return found


async def _send(request: Awaitable[httpx.Response]) -> httpx.Response:
    try:
        response = await request
    except httpx.HTTPError as error:
        raise DependencyUnavailable(
            "stack", f"a service does not answer: {type(error).__name__}: {error}", fix="`make status` tells which"
        ) from error
    if response.is_error:
        raise ReplankError(
            f"{response.request.method} {response.request.url} answered {response.status_code}: {response.text}"
        )
    return response


async def _until(ask: Callable[[], Awaitable[Result]], satisfied: Callable[[Result], bool], *, what: str) -> Result:
    deadline = time.monotonic() + _EFFECTS_WITHIN
    while not satisfied(answer := await ask()):
        if time.monotonic() > deadline:
            raise ReplankError(f"waited {_EFFECTS_WITHIN:g} s for {what}", fix="`make status` and `make logs` tell why")
        await asyncio.sleep(0.05)
    return answer


def _needed(variable: str) -> str:
    if found := os.environ.get(variable):
        return found
    raise ConfigurationError(f"{variable} is not set", fix='run `make demo`, or eval "$(make env)" with the stack up')


def _heading(number: str, text: str) -> None:
    output.print(f"\n[bold]{number}. {text}[/]")
