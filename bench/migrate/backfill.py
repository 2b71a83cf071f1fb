"""How fast a backfill moves a shop, whether that falls with size, and what a record costs in each part."""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import psutil

from bench.migrate.shop import Move, connected
from bench.postgres import Server, churn
from bench.procs import module, running
from bench.runs import Void
from replank.migrate.session import APPLICATION_PREFIX
from replank_storefront.generate import Verdict

_READY_S: Final = 60.0
_TIMEOUT_S: Final = 300.0
_LOOK_S: Final = 0.1
"""Between two looks at the backends: what they use after the last one is not seen."""

_BACKENDS: Final = """
select pid, datname from pg_stat_activity where datname = any($1) and starts_with(application_name, $2)
"""
# The keys are in the order of bytes: what comes before a prefix was moved before it.
_BEFORE: Final = "select count(*) from kv_store where key < $1"
_ROWS: Final = """
select sum(n_tup_ins)::bigint from pg_stat_user_tables where schemaname = 'public'
"""


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What moving a shop took. Figures per record are per record of the key-value store."""

    records_per_s: float
    """All records over the time of the whole backfill, from its first connection to its last statement."""
    table_rows_per_s: float
    """Rows that it made in the tables, those of arrays included, over the same time."""
    quarters: tuple[float, float, float, float]
    """Records a second in each quarter of the records, in the order of keys."""
    orders_last_to_first: float
    """The rate over the last quarter of the orders to that over their first: the same kind of record both times."""
    python_cpu_us: float
    source_cpu_us: float | None
    """CPU time of the source's backends per record; None where the server is not on this machine."""
    target_cpu_us: float | None
    statements: float
    """Top-level statements in both databases, per record."""
    wal: float
    """WAL bytes of the statements in the target, per record."""
    dead_tuples: int
    """Row versions that were updated or deleted in the tables."""


async def backfill(server: Server, move: Move) -> Backfilled:
    """Move everything once, and see that all of it arrived and was compared. Raises `Void`."""
    dsns = (move.shop.dsn, move.target)
    await server.checkpoint()
    before = [await server.counters(dsn) for dsn in dsns]
    command = module(
        "bench.migrate.mover", "--name", move.mapping.name, "--source", move.shop.dsn, "--target", move.target
    )
    async with _watching(move) as backends, running(command) as mover:
        await mover.ready(_READY_S)
        said = json.loads(await mover.finish(_TIMEOUT_S))
    source, target = [await server.counters(dsn) - one for dsn, one in zip(dsns, before, strict=True)]
    records = move.shop.sizes.total
    _check(said, records, move)
    async with connected(move.shop.dsn) as connection:
        first, last = [await connection.fetchval(_BEFORE, prefix) for prefix in ("order:", "order;")]
    async with connected(move.target) as connection:
        rows = await connection.fetchval(_ROWS)
    marks = [(0.0, 0), *said["marks"]]
    orders = _rates(marks, first, last)
    return Backfilled(
        records_per_s=records / said["seconds"],
        table_rows_per_s=rows / said["seconds"],
        quarters=_rates(marks, 0, records),
        orders_last_to_first=orders[3] / orders[0],
        python_cpu_us=said["cpu_s"] / records * 1e6,
        source_cpu_us=backends.per(records, dsns[0]),
        target_cpu_us=backends.per(records, dsns[1]),
        statements=(source.statements + target.statements) / records,
        wal=target.statement_wal / records,
        dead_tuples=(await churn(move.target, "public", "%")).named,
    )


def _check(said: dict[str, Any], records: int, move: Move) -> None:
    rejected = len(move.shop.planted.of(Verdict.REJECTED))
    wanted = {
        "scanned": records,
        "compared": records,
        "kept": 0,
        "rejected": rejected,
        "different": 0,
        "unsettled": 0,
    }
    found = {name: said[name] for name in wanted}
    if found != wanted:
        raise Void(f"the backfill says {found}, and should say {wanted}")


def _rates(marks: Sequence[tuple[float, int]], first: int, last: int) -> tuple[float, float, float, float]:
    """Records a second in each quarter of the records ``first`` to ``last``; between two marks it was even."""
    edges = [first + (last - first) * quarter / 4 for quarter in range(5)]
    times = [_when(marks, edge) for edge in edges]
    one, two, three, four = [
        (b - a) / (then - at) for (a, b), (at, then) in zip(pairwise(edges), pairwise(times), strict=True)
    ]
    return one, two, three, four


def _when(marks: Sequence[tuple[float, int]], scanned: float) -> float:
    place = max(1, bisect_left(marks, scanned, key=lambda mark: mark[1]))
    (at, before), (then, after) = marks[place - 1], marks[place]
    return at + (then - at) * (scanned - before) / (after - before)


@dataclass(slots=True)
class _Backends:
    """CPU seconds of the backends that were seen, by database; empty where they are on another machine."""

    cpu_s: dict[tuple[str, int], float] = field(default_factory=dict)

    async def look(self, observer: asyncpg.Connection[Any], databases: Sequence[str]) -> None:
        for pid, database in await observer.fetch(_BACKENDS, databases, APPLICATION_PREFIX):
            try:
                process = psutil.Process(pid)
                if process.name().startswith("postgres"):
                    times = process.cpu_times()
                    self.cpu_s[database, pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue

    def per(self, records: int, dsn: str) -> float | None:
        used = [cpu_s for (database, _), cpu_s in self.cpu_s.items() if database == _database(dsn)]
        return sum(used) / records * 1e6 if used else None


@asynccontextmanager
async def _watching(move: Move) -> AsyncIterator[_Backends]:
    backends = _Backends()

    async def watch(observer: asyncpg.Connection[Any]) -> None:
        while True:
            await backends.look(observer, [_database(move.shop.dsn), _database(move.target)])
            await asyncio.sleep(_LOOK_S)

    # In neither database, so that looking is not counted.
    observing = urlsplit(move.target)._replace(path="/postgres").geturl()
    async with connected(observing) as observer:
        watching = asyncio.create_task(watch(observer))
        try:
            yield backends
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def _database(dsn: str) -> str:
    return urlsplit(dsn).path.lstrip("/")
