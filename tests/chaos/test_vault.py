"""The vault while its process, its database and its object store are killed: what was acknowledged is there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import httpx
import pytest

from replank.testing import eventually
from tests.chaos import recoveries
from tests.chaos.flow import RECOVERS_WITHIN
from tests.e2e.system import System, running

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

_SENDERS: Final = 3
_PAUSE: Final = 0.2
# Above what is published before it is answered, so that there is a job to be killed.
_LARGE_ITEMS: Final = 300_000


def content(number: int) -> bytes:
    """A content of its own for each number; every fifth is large."""
    items = [number, *range(_LARGE_ITEMS)] if number % 5 == 0 else [number]
    return json.dumps({"number": number, "items": items}).encode()


class Senders:
    """People who publish, each of whom sends the same again until told that it is in the vault."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._numbers = iter(range(1_000_000))
        self.published: dict[str, str] = {}
        """The digest of what was acknowledged, by name."""

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(_SENDERS):
                group.create_task(self._send_on(stop))
            try:
                yield
            finally:
                stop.set()

    async def more(self, number: int) -> None:
        """Wait until so many more are published."""
        wanted = len(self.published) + number
        await eventually(
            lambda: len(self.published) >= wanted, f"{number} more are published", within=2 * RECOVERS_WITHIN
        )

    async def _send_on(self, stop: asyncio.Event) -> None:
        async with self._system.client("schema") as client:
            while not stop.is_set():
                number = next(self._numbers)
                name, body = f"chaos/{number}", content(number)
                await eventually(
                    partial(self._is_published, client, name, body),
                    f"{name} is published",
                    within=3 * RECOVERS_WITHIN,
                    interval=0.3,
                )
                self.published[name] = hashlib.sha256(body).hexdigest()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PAUSE):
                        await stop.wait()

    async def _is_published(self, client: httpx.AsyncClient, name: str, body: bytes) -> bool:
        try:
            answer = await client.post(
                "/schemavault/upload",
                params={"name": name},
                content=body,
                headers={"content-type": "application/json"},
            )
            if answer.status_code == 202:
                return await self._job_is_done(client, answer.headers["location"])
        except httpx.TransportError as error:
            raise AssertionError(f"schema does not answer: {error!r}") from error
        assert answer.status_code in {200, 201}, answer.text
        return True

    async def _job_is_done(self, client: httpx.AsyncClient, url: str) -> bool:
        async def ended() -> str:
            try:
                shown = (await client.get(url)).json()
            except httpx.TransportError as error:
                raise AssertionError(f"schema does not answer: {error!r}") from error
            state: str = shown.get("state", "")
            assert state in {"done", "failed", "cancelled"}, shown
            assert state != "failed", shown
            return state

        return await eventually(ended, "the job has ended", within=2 * RECOVERS_WITHIN, interval=0.3) == "done"


async def test_whatever_dies_all_that_was_acknowledged_is_whole_and_nothing_is_there_twice(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with running(tmp_path_factory.mktemp("chaos-vault")) as system:
        senders = Senders(system)
        async with senders.at_work():
            await senders.more(5)
            rounds: list[tuple[str, ...]] = [
                ("schema",),
                ("s3",),
                ("schema", "s3"),
                ("postgres",),
                ("schema", "postgres"),
            ]
            random.shuffle(rounds)
            for victims in rounds:
                await asyncio.sleep(random.uniform(0, 0.5))  # any moment of an upload or a job
                await asyncio.gather(*(system.stack.kill(victim) for victim in victims))
                began = time.monotonic()
                await system.stack.start(*victims)
                started = time.monotonic()
                await senders.more(4)
                name = "vault: " + ", ".join(victims)
                recoveries.note(name, start=started - began, caught_up=time.monotonic() - started)
        await check(system, senders.published)


async def check(system: System, published: dict[str, str]) -> None:
    rows = await system.fetch(
        "schema", "select name, version, sha256 from vault_standard.schema where name like 'chaos/%'"
    )
    assert {row["name"]: row["sha256"] for row in rows} == published
    assert {row["version"] for row in rows} == {1}
    (told,) = await system.fetch(
        "schema",
        "select count(*) as events, count(distinct subject) as schemas from replank_outbox.event"
        " where type = 'replank.schema.version.published.v1' and convert_from(value, 'UTF8') like '%chaos/%'",
    )
    assert (told["events"], told["schemas"]) == (len(published), len(published))
    async with system.client("schema") as client:
        for name, sha256 in published.items():
            digest = hashlib.sha256()
            async with client.stream("GET", f"/schemavault/by-name/{name}/content") as answer:
                assert answer.status_code == 200
                async for chunk in answer.aiter_bytes():
                    digest.update(chunk)
            assert digest.hexdigest() == sha256, name
        findings = await consistency(client)
    assert findings == [], "no content is missing, corrupt or otherwise than its row says"


async def consistency(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """What a check that reads every content finds. Uploads that were given up are younger than the grace."""
    job = (await client.post("/schemavault/consistency/check", json={"deep": True})).headers["location"]

    async def done() -> bool:
        shown = (await client.get(job)).json()
        assert shown["state"] == "done", shown
        return True

    await eventually(done, "everything is checked", within=60)
    found: list[dict[str, Any]] = (await client.get("/schemavault/consistency/findings")).json()["items"]
    return found
