"""The backfill as a process of its own, with its defaults; prints how it went as one line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import time

from bench.migrate.shop import described
from replank.migrate.backfill import Backfill, BackfillProgress


async def _move(name: str, source: str, target: str) -> None:
    marks: list[tuple[float, int]] = []

    def mark(progress: BackfillProgress) -> None:
        if not marks or progress.scanned > marks[-1][1]:
            marks.append((time.monotonic(), progress.scanned))

    backfill = Backfill(mapping=described(name), source=source, target=target, on_progress=mark)
    print("ready")
    began, cpu_before = time.monotonic(), time.process_time()
    done = await backfill.run()
    ended, cpu_after = time.monotonic(), time.process_time()
    print(
        json.dumps(
            {
                "seconds": ended - began,
                "cpu_s": cpu_after - cpu_before,
                "marks": [(at - began, scanned) for at, scanned in marks],
                "scanned": done.scanned,
                "filled": done.filled,
                "kept": done.kept,
                "rejected": done.rejected,
                "compared": done.compared,
                "different": done.different,
                "unsettled": done.unsettled,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    arguments = parser.parse_args()
    asyncio.run(_move(arguments.name, arguments.source, arguments.target))


if __name__ == "__main__":
    main()
