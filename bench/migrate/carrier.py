"""The schema service's part in dual writing, as a process of its own: the source's relay, and the applier."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.migrate.shop import described
from replank.migrate.applier import Applier
from replank.outbox.relay import Relay


@asynccontextmanager
async def carrying(name: str, source: str, target: str, kafka: str) -> AsyncIterator[None]:
    """Carry the captured changes of the migration ``name`` for as long as the block lasts."""
    stop = asyncio.Event()
    relay = Relay(source, kafka)
    applier = Applier(mapping=described(name), kafka=kafka, source=source, target=target, direction="forward")
    async with asyncio.TaskGroup() as carriers:
        carriers.create_task(relay.run(stop))
        carriers.create_task(applier.run(stop))
        try:
            yield
        finally:
            stop.set()


async def _carry(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with carrying(arguments.name, arguments.source, arguments.target, arguments.kafka):
        print("ready")
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--kafka", required=True)
    asyncio.run(_carry(parser.parse_args()))


if __name__ == "__main__":
    main()
