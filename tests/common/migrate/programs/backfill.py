"""A backfill as a process of its own: mapping, source, target, rows of a chunk."""

from __future__ import annotations

import asyncio
import sys

from replank.migrate.backfill import Backfill, BackfillProgress, BackfillSettings
from replank.migrate.mapping import load


def tell(progress: BackfillProgress) -> None:
    print(f"scanned {progress.scanned} compared {progress.compared}")


async def main(mapping: str, source: str, target: str, chunk_rows: str) -> None:
    settings = BackfillSettings(chunk_rows=int(chunk_rows))
    await Backfill(
        mapping=load(mapping), source=source, target=target, settings=lambda: settings, on_progress=tell
    ).run()
    print("done")


asyncio.run(main(*sys.argv[1:]))
