"""Many real schemas sent over several connections: when they are new, and when they are known."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import uuid4

from bench.runs import Void
from bench.vault.samples import real
from bench.vault.stand import Door, answered

CONNECTIONS: Final = (8, 32, 1)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Sent:
    """So many schemas, and how many seconds that took."""

    schemas: int
    mib: float
    """Of their contents together."""
    new_s: float
    again_s: float
    """The same contents under other names: their digests are told, and no content is sent."""

    @property
    def new_per_s(self) -> float:
        return self.schemas / self.new_s

    @property
    def new_mib_s(self) -> float:
        return self.mib / self.new_s

    @property
    def known_per_s(self) -> float:
        return self.schemas / self.again_s


async def send(door: Door, *, schemas: int, connections: int) -> Sent:
    """Upload them all, and then once more as whoever knows their digests does it. Raises `Void`."""
    run = uuid4()
    contents = [real(number, f"{run} {number}") for number in range(schemas)]
    digests = [hashlib.sha256(text).hexdigest() for _, text in contents]

    async def upload(number: int) -> None:
        name, text = contents[number]
        await door.upload(f"sent/{run}/{name}/{number}", text)

    async def refer(number: int) -> None:
        name, _ = contents[number]
        given = {"name": f"again/{run}/{name}/{number}", "sha256": digests[number]}
        answered(await door.client.post(door.prefix, json=given), 201)

    if len(await _missing(door, digests)) != schemas:
        raise Void("contents that were to be new are known")
    new_s = await _all(range(schemas), upload, connections)
    began = time.perf_counter()
    if missing := await _missing(door, digests):
        raise Void(f"{len(missing)} contents that were sent are not known")
    asked_s = time.perf_counter() - began
    again_s = asked_s + await _all(range(schemas), refer, connections)
    return Sent(schemas, sum(len(text) for _, text in contents) / (1 << 20), new_s, again_s)


async def _missing(door: Door, digests: Sequence[str]) -> Sequence[str]:
    asked = answered(await door.client.post(f"{door.prefix}/blobs/missing", json={"sha256": digests}), 200)
    missing: Sequence[str] = asked.json()["missing"]
    return missing


async def _all(items: Sequence[Item], work: Callable[[Item], Awaitable[Any]], at_once: int) -> float:
    """Work on all of them, so many at once; returns how many seconds that took."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(at_once):
            workers.create_task(worker())
    return time.perf_counter() - began
