"""Sending a request until it is answered, and counting how that went."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from replank.errors import ReplankError
from replank_storefront.world import differences

_SHOWN: Final = 20
_TOKEN_FRESH: Final = 10.0
_LONGEST_PAUSE: Final = 1.0
_REMEMBERED: Final = 4


class Doubtful(ReplankError):
    """A write was not answered, or not as it should be: whether it took effect is unknown."""


@dataclass(slots=True)
class Numbers:
    """What happened so far, of all workers together."""

    requests: int = 0
    """Requests that were answered; another attempt at the same is not another request."""
    failures: int = 0
    """Requests that were answered by another status than the right one, or never."""
    wrong: int = 0
    """Answers of the right status that are not true."""
    stale: int = 0
    """Those of the wrong ones that were true before."""
    retries: int = 0
    lost_connections: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)
    """The first failures and wrong answers: request, and what differs from what was expected."""
    milliseconds: dict[str, array[float]] = field(default_factory=dict)
    """How long each request took, its retries included, by endpoint."""

    def took(self, endpoint: str, seconds: float) -> None:
        """A request was answered."""
        self.requests += 1
        self.milliseconds.setdefault(endpoint, array("d")).append(seconds * 1000)

    def failed(self, request: str, what: str) -> None:
        """A request failed."""
        self.failures += 1
        self._show({"request": request, "failure": what})

    def was_wrong(self, request: str, fields: list[dict[str, Any]], *, stale: bool) -> None:
        """An answer is not true."""
        self.wrong += 1
        self.stale += stale
        self._show({"request": request, "stale": stale, "different": fields})

    def latencies(self) -> dict[str, dict[str, float]]:
        """Count, percentiles and maximum (milliseconds) by endpoint."""
        return {name: _summary(values) for name, values in sorted(self.milliseconds.items())}

    def _show(self, entry: dict[str, Any]) -> None:
        if len(self.first) < _SHOWN:
            self.first.append(entry)


def _summary(values: array[float]) -> dict[str, float]:
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"count": len(ordered), "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1.0)}


class TokenFile(httpx.Auth):
    """The bearer token of a file, read again every ten seconds: tokens expire, and are renewed by others."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = ""
        self._read_at = float("-inf")

    async def async_auth_flow(self, request: httpx.Request) -> Any:
        if time.monotonic() - self._read_at > _TOKEN_FRESH:
            self._token = (await asyncio.to_thread(self._path.read_text)).strip()
            self._read_at = time.monotonic()
        request.headers["authorization"] = f"Bearer {self._token}"
        yield request


class Requester:
    """One worker's way to the shop: keeps its token, tries again what may be tried again, checks what comes."""

    def __init__(self, client: httpx.AsyncClient, numbers: Numbers, *, patience: float) -> None:
        self._client = client
        self._numbers = numbers
        self._patience = patience
        self._token: str | None = None
        self._expected_before: dict[str, list[bytes]] = {}
        self.due: float | None = None
        """When the next request should have been sent (`time.monotonic`), if there is a plan: waiting counts."""
        self.connection_was_lost = False
        """Whether the last request lost a connection, so that an earlier attempt may still be at work."""

    async def ask(self, endpoint: str, path: str, expected: Any, *, params: dict[str, str] | None = None) -> None:
        """Read, and hold the answer to what is ``expected``; None: that there is nothing. Raises `Doubtful`."""
        status, got = await self._answer(endpoint, "GET", path, params=params)
        request = f"GET {path}{'?' + str(httpx.QueryParams(params)) if params else ''}"
        if status != (404 if expected is None else 200):
            self._numbers.failed(request, f"answered {status}, expected {404 if expected is None else 200}")
        elif expected is not None:
            self.check(request, expected, got)

    async def tell(
        self, endpoint: str, method: str, path: str, body: Any, status: int, *, key: str | None = None
    ) -> Any:
        """Write; returns the answer's body, None if it has none. Raises `Doubtful` for any answer but ``status``."""
        answered, got = await self._answer(endpoint, method, path, body=body, key=key)
        if answered != status:
            self._numbers.failed(f"{method} {path}", f"answered {answered}, expected {status}: {_detail(got)}")
            raise Doubtful(f"{method} {path} was answered {answered}", fix="see the shop's log")
        return got

    def check(self, request: str, expected: Any, got: Any) -> None:
        """Hold an answer to the truth. One that was the truth before is stale."""
        truth = _digest(expected)
        before = self._expected_before.setdefault(request, [])
        fields = differences(expected, got)
        if fields:
            self._numbers.was_wrong(request, fields, stale=_digest(got) in before)
        if truth not in before:
            before.append(truth)
            del before[:-_REMEMBERED]

    def forget(self) -> None:
        """The worker moves on: what was true before will not be asked again."""
        self._expected_before.clear()

    async def _answer(
        self,
        endpoint: str,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: dict[str, str] | None = None,
        key: str | None = None,
    ) -> tuple[int, Any]:
        headers = {
            **({"x-replank-token": self._token} if self._token else {}),
            **({"idempotency-key": key} if key else {}),
        }
        now = time.monotonic()
        started = now if self.due is None else min(now, self.due)
        give_up = now + self._patience
        self.connection_was_lost = False
        while True:
            pause = random.uniform(0.02, 0.1)  # noqa: S311 - jitter
            try:
                response = await self._client.request(method, path, json=body, params=params, headers=headers)
            except httpx.TransportError as error:
                self._numbers.lost_connections += 1
                self.connection_was_lost = True
                reason = type(error).__name__
            else:
                if response.status_code != 503 or "retry-after" not in response.headers:
                    self._numbers.took(endpoint, time.monotonic() - started)
                    self._token = response.headers.get("x-replank-token", self._token)
                    return response.status_code, _body(response)
                reason = "503"
                pause = min(float(response.headers["retry-after"]), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311
            if time.monotonic() + pause > give_up:
                self._numbers.failed(f"{method} {path}", f"not answered in {self._patience:g} s, at last: {reason}")
                raise Doubtful(f"{method} {path} was not answered", fix="see the shop's log")
            self._numbers.retries += 1
            await asyncio.sleep(pause)


def _body(response: httpx.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError:
        # Whatever it says, it is not what the shop says.
        return f"no JSON, but {response.headers.get('content-type', 'something')}"


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).digest()


def _detail(got: Any) -> str:
    return str(got.get("detail", "")) if isinstance(got, dict) else ""
