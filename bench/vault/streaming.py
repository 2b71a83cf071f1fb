"""A content that is much larger than the memory it may take: sent, read, and read from the middle."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Final
from uuid import uuid4

import httpx
import psutil

from bench.procs import Child
from bench.runs import Void, in_time
from bench.vault.samples import MIB, Large
from bench.vault.stand import JSON_CONTENT, Door, answered

_SAMPLE_S: Final = 0.05
_JOB_S: Final = 300.0
_RANGES: Final = 20


@dataclass(slots=True)
class Memory:
    """The resident memory of a process, in bytes: when the watch began, and the most that was seen since."""

    before: int
    peak: int

    @property
    def growth_mib(self) -> float:
        return (self.peak - self.before) / MIB


@contextmanager
def watched(process: Child) -> Iterator[Memory]:
    """Look at the memory of a process twenty times a second, for as long as the block lasts."""
    stats = psutil.Process(process.pid)
    now = stats.memory_info().rss
    memory, ended = Memory(now, now), threading.Event()

    def look() -> None:
        while not ended.wait(_SAMPLE_S):
            memory.peak = max(memory.peak, stats.memory_info().rss)

    # A thread: the event loop is busy with what is watched.
    watching = threading.Thread(target=look, name="memory", daemon=True)
    watching.start()
    try:
        yield memory
    finally:
        ended.set()
        watching.join()


@dataclass(frozen=True, slots=True)
class Streamed:
    """A content of ``mib`` MiB. Rates are of the content, not of what is stored."""

    mib: int
    received_mb_s: float
    """Until it was answered that it is received (202)."""
    published_mb_s: float
    """Until its job was done."""
    read_mb_s: float
    range_ms: float
    """A MiB from anywhere in it, to its last byte."""
    send_growth_mib: float
    """By how much the service's memory grew at most while it was sent and published, and while it was read."""
    read_growth_mib: float
    peak_mib: float


async def stream(door: Door, process: Child, *, mib: int) -> Streamed:
    """Send a content of so many MiB, wait until it is published, read it back. Raises `Void` if it is not the same."""
    large = Large(mib)
    # What a process needs only once is no growth by the content.
    await _publish(door, Large(8))
    with watched(process) as sending:
        sent = await _publish(door, large)
    with watched(process) as reading:
        began = time.perf_counter()
        digest = await _read(door, sent.schema_id)
        read_s = time.perf_counter() - began
        if digest != large.sha256():
            raise Void("the content that was read is not the one that was sent")
        range_ms = await _read_ranges(door, sent.schema_id, large)
    mb = large.size / 1e6
    return Streamed(
        mib,
        received_mb_s=mb / sent.received_s,
        published_mb_s=mb / sent.published_s,
        read_mb_s=mb / read_s,
        range_ms=range_ms,
        send_growth_mib=sending.growth_mib,
        read_growth_mib=reading.growth_mib,
        peak_mib=max(sending.peak, reading.peak) / MIB,
    )


@dataclass(frozen=True, slots=True)
class _Publication:
    schema_id: str
    received_s: float
    published_s: float


async def _publish(door: Door, large: Large) -> _Publication:
    began = time.perf_counter()
    answer = await door.client.post(
        f"{door.prefix}/upload", params={"name": f"large/{uuid4()}"}, content=large.blocks(), headers=JSON_CONTENT
    )
    received_s = time.perf_counter() - began
    job = answered(answer, 202).json()

    async def ended() -> bool:
        nonlocal job
        job = answered(await door.client.get(f"{door.prefix}/jobs/{job['id']}"), 200).json()
        return job["state"] not in {"queued", "running"}

    await in_time(ended, "the large content is published", within=_JOB_S, interval=0.05)
    if job["state"] != "done":
        raise Void(f"the large content was not published: {job['problem']}")
    return _Publication(job["result"]["schema_id"], received_s, time.perf_counter() - began)


def _content(door: Door, schema_id: str, **headers: str) -> AbstractAsyncContextManager[httpx.Response]:
    # As it was sent: a client that takes zstd is spared the decompression, and so is the service.
    identity = {"accept-encoding": "identity", **headers}
    return door.client.stream("GET", f"{door.prefix}/{schema_id}/content", headers=identity)


async def _read(door: Door, schema_id: str) -> str:
    """Read the whole content; returns its digest."""
    digest = hashlib.sha256()
    async with _content(door, schema_id) as answer:
        answered(answer, 200)
        async for chunk in answer.aiter_raw():
            digest.update(chunk)
    return digest.hexdigest()


async def _read_ranges(door: Door, schema_id: str, large: Large) -> float:
    """Read a MiB from here and there, beginning anywhere; returns the median of the milliseconds."""
    random = Random(large.mib)
    took_ms = []
    for _ in range(_RANGES):
        first = random.randrange(large.size - MIB)
        began = time.perf_counter()
        async with _content(door, schema_id, range=f"bytes={first}-{first + MIB - 1}") as answer:
            part = await answer.aread()
        took_ms.append((time.perf_counter() - began) * 1e3)
        number, skip = divmod(first, MIB)
        both = large.block(number) + (large.block(number + 1) if skip else b"")
        if answer.status_code != 206 or part != both[skip : skip + MIB]:
            raise Void(f"the range from {first} is not that part of the content")
    return median(took_ms)
