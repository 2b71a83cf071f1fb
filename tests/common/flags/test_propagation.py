from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg

from replank import flags
from replank.outbox.relay import Relay
from replank.testing.processes import Process
from replank.testing.servers import fresh_name

CHANGES = 200
ROOT = Path(__file__).parents[3]


async def test_a_change_holds_in_three_processes_in_under_a_second(
    database: asyncpg.Pool, postgres_dsn: str, kafka: str
) -> None:
    name = fresh_name()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Relay(dsn=postgres_dsn, kafka=kafka))
        watchers = [
            await stack.enter_async_context(
                Process("tests.common.flags.watcher", postgres_dsn, kafka, name, cwd=str(ROOT))
            )
            for _ in range(3)
        ]
        for watcher in watchers:
            await watcher.line_with("ready")
        latencies = []
        for number in range(CHANGES):
            async with database.acquire() as conn:
                await flags.set(conn, name, number, by="user:ada")
            committed = time.monotonic_ns()
            # One change at a time: each is seen by all before the next, so every one of them is measured.
            for watcher in watchers:
                line = await watcher.line_with(f"{number} ")
                latencies.append((int(line.split()[1]) - committed) / 1e9)
        async with database.acquire() as conn:
            await flags.delete(conn, name, by="user:ada")
    latencies.sort()
    p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
    print(f"propagation of {CHANGES} changes to 3 processes: p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")
    assert len(latencies) == 3 * CHANGES
    assert p99 < 1.0
