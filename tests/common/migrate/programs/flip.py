"""A flip as a process of its own, which stands still after one step: name, source, target, Kafka, way, step."""

from __future__ import annotations

import asyncio
import sys

from replank.migrate import flip
from replank.migrate.flip import Step, Stores


async def main(stores: Stores, way: str, last: str) -> None:
    async def stand_still(step: Step) -> None:
        print(f"after {step}")
        if step == last:
            await asyncio.Event().wait()

    move = flip.to_tables if way == "to_tables" else flip.to_key_value
    await move(stores, within=30, on_step=stand_still)


name, source, target, kafka, way, last = sys.argv[1:]
asyncio.run(main(Stores(name, source, target, kafka), way, last))
