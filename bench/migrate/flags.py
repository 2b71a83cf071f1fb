"""From the commit of a flag's change to the first read that another process routes by it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

from bench.migrate.shop import connected
from bench.outbox.subjects import Target, subject
from bench.postgres import Server
from bench.procs import Child, module, running
from bench.runs import in_time
from bench.waits import Waits
from replank import flags, outbox
from replank.contracts.flags import TOPIC
from replank.flags.store import delete_flag, set_flag
from replank.testing.servers import fresh_name

_AUTHOR: Final = "service:bench"
_READY_S: Final = 60.0
_WITHIN_S: Final = 10.0
_LONGEST_PAUSE_S: Final = 0.05
"""Changes come at any moment of the polls on their way, not always at the same one."""


async def change(server: Server, kafka: str, *, pairs: int) -> Waits:
    """Change a flag back and forth so many times, each change when the one before was seen. Raises `Void`."""
    name = fresh_name()
    flag = f"migrate.{name}.reads.bench"
    waits_ms = []
    async with (
        server.database() as authority,
        server.database() as readers,
        connected(authority) as connection,
        connected(readers) as other,
    ):
        await outbox.install(connection)
        await flags.install(connection)
        await flags.install(other)
        relay = subject("replank").relay(Target(dsn=authority, kafka=kafka, topic=TOPIC))
        reader = module("bench.migrate.reader", "--dsn", readers, "--kafka", kafka, "--name", name)
        async with running(relay) as publishing, running(reader) as reading:
            await asyncio.gather(publishing.ready(_READY_S), reading.ready(_READY_S))
            # The first change is not counted: it waits for what happens once, such as the relay's taking its lease.
            for number in range(2 * pairs + 1):
                await set_flag(connection, flag, "new" if number % 2 == 0 else "kv", by=_AUTHOR)
                committed_ns = time.monotonic_ns()
                waited_ms = (await _routed(reading, number) - committed_ns) / 1e6
                if number > 0:
                    waits_ms.append(waited_ms)
                await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_S))
            # The flag is at "new": that it is gone is seen, too, and then it is on the topic.
            await delete_flag(connection, flag, by=_AUTHOR)
            await _routed(reading, 2 * pairs + 1)
    return Waits.of(waits_ms)


async def _routed(reading: Child, number: int) -> int:
    """When the reader was routed otherwise for the ``number``-th time, from 0."""
    await in_time(
        lambda: reading.last_line.startswith(f"{number} "),
        f"change {number} of the flag has its effect",
        within=_WITHIN_S,
        interval=0.002,
    )
    return int(reading.last_line.split()[1])
