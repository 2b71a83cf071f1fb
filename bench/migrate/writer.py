"""The application of the capture runs, as a process of its own: upserts as fast as one connection can.

Into two databases in turns of a second or so, A B B A, so that what else the machine does falls on both. Every other
row is new; the values are those of the shop's own orders.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from statistics import quantiles
from typing import Any, Final
from uuid import uuid4

import asyncpg

from bench.migrate.shop import connected
from bench.migrate.writing import MULTI_ROWS, SHAPES

# Those that were there first, and not what an earlier round has made of them.
_ORDERS: Final = """
select key, value::text from kv_store
where key >= 'order:' and key < 'order;' and key not like '%/%' order by key limit 5000
"""
_ONE: Final = """
insert into kv_store (key, value) values ($1, $2) on conflict (key) do update set value = excluded.value
"""
_MANY: Final = """
insert into kv_store (key, value) select key, value from unnest($1::text[], $2::text[]::jsonb[]) as given(key, value)
on conflict (key) do update set value = excluded.value
"""
_WARM_UP: Final = 20


@dataclass(slots=True)
class _Side:
    """One of the databases, and what was written to it by shape."""

    connection: asyncpg.Connection[Any]
    next_record: Callable[[], tuple[str, str]]
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHAPES, 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SHAPES, 0.0))
    took_ms: dict[str, list[float]] = field(default_factory=lambda: {shape: [] for shape in SHAPES})
    all_rows: int = 0

    async def statement(self, shape: str) -> int:
        if shape == "multi":
            records = [self.next_record() for _ in range(MULTI_ROWS)]
            await self.connection.execute(_MANY, [key for key, _ in records], [value for _, value in records])
        else:
            records = [self.next_record()]
            await self.connection.execute(_ONE, *records[0])
        self.all_rows += len(records)
        return len(records)

    async def begin(self, shape: str) -> None:
        """Prepare the statement, and the triggers' plans, which happens once in the life of a connection."""
        await self.connection.execute(f"set synchronous_commit = {'off' if shape == 'single, async' else 'on'}")
        for _ in range(_WARM_UP):
            await self.statement(shape)

    async def write(self, shape: str, slice_s: float) -> None:
        begin = now = time.perf_counter()
        while now < begin + slice_s:
            self.rows[shape] += await self.statement(shape)
            before, now = now, time.perf_counter()
            self.took_ms[shape].append((now - before) * 1e3)
        self.seconds[shape] += now - begin

    def said(self) -> dict[str, dict[str, float]]:
        said = {}
        for shape in SHAPES:
            percentiles = quantiles(self.took_ms[shape], n=100, method="inclusive")
            rate = self.rows[shape] / self.seconds[shape]
            said[shape] = {"rows_per_s": rate, "p50_ms": percentiles[49], "p99_ms": percentiles[98]}
        return said


def _records(orders: list[tuple[str, str]]) -> Callable[[], tuple[str, str]]:
    """Records to write: one that is there in another version, and one that is new, in turns."""
    numbers = count()
    run = uuid4().hex[:8]

    def next_record() -> tuple[str, str]:
        number = next(numbers)
        key, value = orders[number // 2 % len(orders)]
        revised = f'{value[:-1]}, "revision": {number}}}'
        return (key, revised) if number % 2 else (f"{key}/{run}.{number}", revised)

    return next_record


async def _write(arguments: argparse.Namespace) -> dict[str, Any]:
    async with connected(arguments.plain) as plain, connected(arguments.captured) as captured:
        orders = [(key, value) for key, value in await plain.fetch(_ORDERS)]
        sides = [_Side(plain, _records(orders)), _Side(captured, _records(orders))]
        for shape in SHAPES:
            for side in sides:
                await side.begin(shape)
            for number in range(arguments.slices):
                for side in sides if number % 2 == 0 else reversed(sides):
                    await side.write(shape, arguments.slice_s)
    return {"plain": sides[0].said(), "captured": sides[1].said(), "captured_rows": sides[1].all_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", required=True)
    parser.add_argument("--captured", required=True)
    parser.add_argument("--slices", type=int, required=True)
    parser.add_argument("--slice-s", type=float, required=True)
    print(json.dumps(asyncio.run(_write(parser.parse_args()))))


if __name__ == "__main__":
    main()
