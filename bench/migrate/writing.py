"""What capture costs a writer: the same upserts into two databases in turns, of which one is captured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.migrate.shop import Shop, connected, installed
from bench.postgres import Server
from bench.procs import module, running
from bench.runs import Void

SHAPES: Final = ("single", "single, async", "multi")
"""One row a statement; the same without waiting for the disk at commit; `MULTI_ROWS` rows a statement."""
MULTI_ROWS: Final = 100

_TIMEOUT_S: Final = 120.0

_EVENTS: Final = "select count(*) from replank_outbox.event where topic = $1"


@dataclass(frozen=True, slots=True)
class Writes:
    """The writes of one shape into one database."""

    rows_per_s: float
    p50_ms: float
    """Of a statement with its commit."""
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Written:
    """By shape: without capture, and with it."""

    plain: Mapping[str, Writes]
    captured: Mapping[str, Writes]

    def ratio(self, shape: str) -> float:
        """How many times faster the writer is without capture."""
        return self.plain[shape].rows_per_s / self.captured[shape].rows_per_s


async def write(server: Server, plain: Shop, captured: Shop, *, slices: int, slice_s: float) -> Written:
    """Write into both, in turns. Raises `Void` when a write was not captured."""
    async with installed(server, captured) as move:
        await server.checkpoint()
        command = module(
            "bench.migrate.writer",
            *("--plain", plain.dsn, "--captured", captured.dsn),
            *("--slices", str(slices), "--slice-s", str(slice_s)),
        )
        async with running(command) as writer:
            said = json.loads(await writer.finish(_TIMEOUT_S))
        async with connected(captured.dsn) as connection:
            events = await connection.fetchval(_EVENTS, move.mapping.change_topic)
    if events != said["captured_rows"]:
        raise Void(f"{said['captured_rows']} rows were written, and {events} events captured")
    return Written(*({shape: Writes(**said[side][shape]) for shape in SHAPES} for side in ("plain", "captured")))
