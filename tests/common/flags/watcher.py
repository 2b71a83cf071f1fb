"""A process with a flag provider that says when each change of one flag holds in it.

Arguments: DSN of its database, Kafka's bootstrap servers, flag. Prints ``ready``, then ``<version> <monotonic ns>``.
"""

from __future__ import annotations

import asyncio
import sys
import time

import asyncpg
from openfeature import api
from openfeature.event import EventDetails, ProviderEvent

from replank.flags.provider import FlagProvider


async def main(dsn: str, kafka: str, name: str) -> None:
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
    async with pool, FlagProvider(pool, kafka) as provider:
        api.set_provider_and_wait(provider)

        def say(details: EventDetails) -> None:
            if name in (details.flags_changed or ()):
                now = time.monotonic_ns()
                print(provider.resolve_integer_details(name, -1).value, now, flush=True)

        api.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, say)
        print("ready" if provider.stale is None else provider.stale, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
