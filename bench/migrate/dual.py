"""The application of the dual writing runs, as a process of its own: writes at a steady rate, and looks for each write.

Open-loop: a write is due at its time whatever became of those before, so that a slow server makes writes late instead
of making the load lighter. The tables' side is asked as a client asks that wants to read its own writes: by the key,
in ``applied``, every two milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from bench.migrate.shop import connected
from bench.runs import in_time
from replank.migrate.sql import schema_of

WRITERS: Final = 4
_LOOK_S: Final = 0.002
_WITHIN_S: Final = 30.0

_REJECTED: Final = "select key from {schema}.reject"
# Each of them is written once: an entry in `applied`, which a backfill leaves none in, is then that of this write.
_SOUND: Final = """
select key from kv_store
 where (key >= 'event:' and key < 'event;' or key >= 'order:' and key < 'order;') and key <> all($1::text[])
 order by md5(key) limit $2
"""
_WRITE: Final = "update kv_store set value = value || jsonb_build_object('seen', $2::bigint) where key = $1"
_APPLIED: Final = "select key from {schema}.applied where key = any($1::text[])"


async def sound_keys(name: str, source: str, target: str, wanted: int) -> list[str]:
    """Keys of orders and events that could be converted, in no order."""
    async with connected(source) as kv, connected(target) as tables:
        rejected = [row["key"] for row in await tables.fetch(_REJECTED.format(schema=schema_of(name)))]
        return [row["key"] for row in await kv.fetch(_SOUND, rejected, wanted)]


async def write(connection: asyncpg.Connection[Any], key: str, number: int) -> None:
    """One write of the application, in a transaction of its own."""
    await connection.execute(_WRITE, key, number)


class _Watch:
    """Sees when what was written is applied."""

    def __init__(self, tables: asyncpg.Connection[Any], name: str) -> None:
        self._tables = tables
        self._statement = _APPLIED.format(schema=schema_of(name))
        self._committed_ns: dict[str, int] = {}
        self.waits_ms: dict[str, float] = {}

    def committed(self, key: str) -> None:
        self._committed_ns[key] = time.monotonic_ns()

    async def look(self) -> None:
        if not self._committed_ns:
            return
        rows = await self._tables.fetch(self._statement, list(self._committed_ns))
        now_ns = time.monotonic_ns()
        for (key,) in rows:
            self.waits_ms[key] = (now_ns - self._committed_ns.pop(key)) / 1e6

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_S)


async def _write_all(arguments: argparse.Namespace) -> dict[str, Any]:
    total = arguments.warm_up + arguments.writes
    probe, *keys = await sound_keys(arguments.name, arguments.source, arguments.target, 1 + total)
    if len(keys) < total:
        raise SystemExit(f"the shop has {len(keys)} sound records, and {total} are to be written")
    late_ms = [0.0] * WRITERS
    async with connected(arguments.target) as tables:
        watch = _Watch(tables, arguments.name)
        watching = asyncio.create_task(watch.run())
        try:
            async with connected(arguments.source) as kv:
                await write(kv, probe, -1)
            watch.committed(probe)
            await in_time(lambda: probe in watch.waits_ms, "the first change is applied", within=_WITHIN_S)
            print("ready")
            begin = time.monotonic()

            async def work(worker: int) -> None:
                async with connected(arguments.source) as kv:
                    for number in range(worker, total, WRITERS):
                        due = begin + number / arguments.rate
                        if (ahead := due - time.monotonic()) > 0:
                            await asyncio.sleep(ahead)
                        late_ms[worker] = max(late_ms[worker], (time.monotonic() - due) * 1e3)
                        await write(kv, keys[number], number)
                        watch.committed(keys[number])

            async with asyncio.TaskGroup() as workers:
                for worker in range(WRITERS):
                    workers.create_task(work(worker))
            await in_time(lambda: len(watch.waits_ms) == 1 + total, "every write is applied", within=_WITHIN_S)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    counted: Sequence[str] = keys[arguments.warm_up :]
    return {"waits_ms": [watch.waits_ms[key] for key in counted], "late_ms": max(late_ms)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--writes", type=int, required=True)
    print(json.dumps(asyncio.run(_write_all(parser.parse_args()))))


if __name__ == "__main__":
    main()
