"""The service of the benchmark, as a process of its own: commits transactions that append events.

As fast as it can, to build a backlog; or open-loop at a fixed rate, where a transaction is due at its time whatever
became of those before, so that a slow server makes events late instead of making the load lighter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from array import array
from pathlib import Path

import asyncpg

from bench.outbox.subjects import Append, Target, subject
from bench.outbox.workload import CONNECTIONS, ROWS, Transactions


async def write(
    target: Target,
    append: Append,
    *,
    transactions: range,
    sampled: float,
    rate: float | None = None,
    committed_ns: array[int] | None = None,
) -> float:
    """Commit the transactions with these indexes; ``rate`` is in events a second, None is as fast as possible.

    ``committed_ns[index]`` becomes the monotonic time just after the transaction's commit has returned. Returns by how
    many seconds the latest transaction began behind its time.
    """
    begin = time.monotonic()
    late = [0.0] * CONNECTIONS

    async def work(connection_number: int) -> None:
        connection = await asyncpg.connect(target.dsn)
        try:
            source = Transactions(connection=connection_number, sampled=sampled)
            for index, rows in source.between(transactions.start, transactions.stop):
                if rate is not None:
                    due = begin + (index - transactions.start) * ROWS / rate
                    if (ahead := due - time.monotonic()) > 0:
                        await asyncio.sleep(ahead)
                    late[connection_number] = max(late[connection_number], time.monotonic() - due)
                async with connection.transaction():
                    await append(connection, rows)
                if committed_ns is not None:
                    committed_ns[index] = time.monotonic_ns()
        finally:
            await connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(work(number))
    return max(late)


def _run(arguments: argparse.Namespace) -> None:
    target = Target(dsn=arguments.dsn, kafka="", topic=arguments.topic)
    append = subject(arguments.subject).append(target)
    total = arguments.events // ROWS
    committed_ns = array("q", bytes(8 * total))
    begin = time.monotonic()
    late_s = asyncio.run(
        write(
            target,
            append,
            transactions=range(total),
            sampled=arguments.sampled,
            rate=arguments.rate,
            committed_ns=committed_ns,
        )
    )
    took_s = time.monotonic() - begin
    if arguments.stamps:
        Path(arguments.stamps).write_bytes(committed_ns.tobytes())
    print(json.dumps({"took_s": took_s, "late_s": late_s}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", required=True)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--sampled", type=float, required=True)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--stamps", help="file for the commit times, one 64-bit integer a transaction")
    _run(parser.parse_args())


if __name__ == "__main__":
    main()
