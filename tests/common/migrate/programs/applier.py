"""An applier as a process of its own: mapping, source, target, Kafka."""

from __future__ import annotations

import asyncio
import sys

from replank.migrate.applier import Applier, ApplierSettings
from replank.migrate.mapping import load


async def main(mapping: str, source: str, target: str, kafka: str) -> None:
    applier = Applier(
        mapping=load(mapping),
        kafka=kafka,
        source=source,
        target=target,
        direction="forward",
        settings=ApplierSettings(batch_rows=20, session_timeout=6.0),
    )
    print("started")
    await applier.run(asyncio.Event())


asyncio.run(main(*sys.argv[1:]))
