"""A network between the application and its database, as a process of its own: a proxy that lets everything wait.

Prints ``ready <DSN>``: the same database, farther away.
"""

from __future__ import annotations

import argparse
import asyncio

from replank.testing.faults import FaultProxy


async def _serve(dsn: str, delay_s: float) -> None:
    async with FaultProxy(dsn) as proxy:
        proxy.slow(delay=delay_s)
        print("ready", proxy.in_front_of(dsn))
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--delay-s", type=float, required=True, help="in either direction")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.dsn, arguments.delay_s))


if __name__ == "__main__":
    main()
