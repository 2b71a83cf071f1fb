"""Asking services over HTTP, and waiting for what they say: bounded, and clear about what was waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from uuid import uuid4

import httpx

from replank.errors import DependencyUnavailable, ReplankError

# Often at first, for what takes a moment; then seldom: an answer of the schema service costs it some 30 ms, which are
# the shop's to use.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 0.5

T = TypeVar("T")


class Calls:
    """A client of the services beside schema (`replank_cli.migrate.service` is schema's), and of the shop.

    Raises `DependencyUnavailable` for a server that does not answer, `ReplankError` for an error that it answers.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def get(self, url: str) -> Any:
        """The answer's body."""
        return (await self._send("GET", url)).json()

    async def time(self, url: str) -> float:
        """How many seconds a GET takes, until the last byte of the answer."""
        began = time.monotonic()
        await self._send("GET", url)
        return time.monotonic() - began

    async def post(self, url: str, body: Any, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """One POST, with an Idempotency-Key of its own."""
        return await self._send("POST", url, json=body, headers={"idempotency-key": str(uuid4()), **(headers or {})})

    async def _send(self, method: str, url: str, **how: Any) -> httpx.Response:
        try:
            response = await self._client.request(method, url, **how)
        except httpx.HTTPError as error:
            raise DependencyUnavailable(
                "stack", f"{url} does not answer: {type(error).__name__}: {error}", fix="`make status` tells which"
            ) from error
        if response.is_error:
            raise ReplankError(f"{method} {url} answered {response.status_code}: {response.text}")
        return response


async def until(
    ask: Callable[[], Awaitable[T]],
    satisfied: Callable[[T], object],
    *,
    what: str,
    within: float,
    so_far: Callable[[T], str] = lambda _: "",
) -> T:
    """What ``ask`` answers, once that satisfies. ``so_far`` says for an error how it stood in the end."""
    deadline = time.monotonic() + within
    pause = _FIRST_PAUSE
    while not satisfied(answer := await ask()):
        if time.monotonic() > deadline:
            state = so_far(answer)
            raise ReplankError(
                f"waited {within:g} s for {what}{f'; {state}' if state else ''}",
                fix="`make status` and `make logs` tell why",
            )
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, _LONGEST_PAUSE)
    return answer
