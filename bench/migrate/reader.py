"""The application of the flag runs, as a process of its own: reads through a router, about a thousand times a second.

Prints, each time when a read is answered by another store than the one before: ``<number> <monotonic ns>``.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Final

import asyncpg
from openfeature import api

from replank.flags.provider import FlagProvider
from replank.migrate.client import ReadRouter

_PAUSE_S: Final = 0.001


async def _kv() -> str:
    return "kv"


async def _tables() -> str:
    return "tables"


async def _read(arguments: argparse.Namespace) -> None:
    async with (
        asyncpg.create_pool(arguments.dsn, min_size=1, max_size=2) as pool,
        FlagProvider(pool, arguments.kafka) as provider,
    ):
        await asyncio.to_thread(api.set_provider_and_wait, provider)
        async with ReadRouter(arguments.name, source=pool, target=pool, flags=api.get_client()) as router:
            print("ready")
            number, before = 0, "kv"
            while True:
                store = await router.read("bench", kv=_kv, tables=_tables)
                if store != before:
                    print(number, time.monotonic_ns())
                    number, before = number + 1, store
                await asyncio.sleep(_PAUSE_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--name", required=True)
    asyncio.run(_read(parser.parse_args()))


if __name__ == "__main__":
    main()
