"""How late the tables are under a steady load of captured writes, and what carrying one costs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from bench.migrate.shop import Move, Shop, installed
from bench.postgres import Server
from bench.procs import module, running
from bench.runs import Void
from bench.waits import Waits
from replank.migrate import topics
from replank.migrate.backfill import Backfill
from replank.migrate.comparison import Comparison, Findings
from replank.migrate.comparison import Progress as Compared

PARTITIONS: Final = 6

_READY_S: Final = 60.0
_SETTLED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Lag:
    """From just after a write's commit returned to its being seen applied."""

    waits: Waits
    late_ms: float
    """By how much the writer was at worst behind its schedule: if large, the machine was slow, not only the applier."""
    carry_cpu_us: float
    """CPU time of the process of relay and applier per write, at this rate, idle polling included."""


@asynccontextmanager
async def moved(server: Server, shop: Shop, kafka: str) -> AsyncIterator[Move]:
    """A migration whose backfill is done, with its topics; nobody carries changes yet."""
    async with installed(server, shop) as move:
        await topics.ensure_topics(kafka, move.mapping.name, PARTITIONS)
        try:
            await Backfill(mapping=move.mapping, source=shop.dsn, target=move.target).run()
            yield move
        finally:
            await topics.remove_topics(kafka, move.mapping.name)


async def compare(move: Move) -> None:
    """Hold everything in both stores against each other. Raises `Void` where they differ."""

    async def nothing(progress: Compared, findings: Findings) -> None:
        """What is said at the end is enough."""

    done = await Comparison(move.shop.dsn, move.target, move.mapping, report=nothing).run()
    if done.different or done.unsettled:
        raise Void(f"after all writes {done.different} records differ, and {done.unsettled} did not settle")


async def lag(server: Server, shop: Shop, kafka: str, *, rate: float, warm_up: int, writes: int) -> Lag:
    """Write at a steady rate, and see when each write is applied. Raises `Void`."""
    async with moved(server, shop, kafka) as move:
        places = ("--source", shop.dsn, "--target", move.target)
        carrier = module("bench.migrate.carrier", "--name", move.mapping.name, *places, "--kafka", kafka)
        async with running(carrier) as carrying:
            await carrying.ready(_READY_S)
            await server.checkpoint()
            writer = module(
                "bench.migrate.dual",
                *("--name", move.mapping.name, *places),
                *("--rate", str(rate), "--warm-up", str(warm_up), "--writes", str(writes)),
            )
            async with running(writer) as writing:
                # It has seen a change arrive by then.
                await writing.ready(_READY_S)
                cpu_before = carrying.usage().cpu_s
                said = json.loads(await writing.finish((warm_up + writes) / rate + _SETTLED_S))
            cpu_s = carrying.usage().cpu_s - cpu_before
        await compare(move)
    return Lag(waits=Waits.of(said["waits_ms"]), late_ms=said["late_ms"], carry_cpu_us=cpu_s / (warm_up + writes) * 1e6)
