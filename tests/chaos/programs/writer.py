"""The writer: at a fixed rate, whatever becomes of the one before, a transaction on a few of the accounts.

Each moves its accounts by one, keeps that in the ledger, and appends an event of it, all in one transaction. Some are
rolled back, wholly or to a savepoint, and some take their time. So the ledger is the truth about what was committed,
even where the answer to a commit was lost.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Final

import asyncpg

from replank import outbox
from replank.inbox.outcome import is_transient
from replank.outbox import Message
from tests.chaos.programs.contracts import Moved
from tests.chaos.programs.lifetime import until_told

ACCOUNTS: Final = [f"account-{number:02}" for number in range(40)]
_MOST_IN_FLIGHT: Final = 50

_MOVE: Final = """
    insert into account (key, sequence) values ($1, 1)
        on conflict (key) do update set sequence = account.sequence + 1
    returning sequence
"""
_KEEP: Final = "insert into ledger (key, sequence) values ($1, $2)"


class ChangedItsMind(Exception):
    """Rolls back."""


class Writer:
    """Transactions on random accounts."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._random = random.Random()
        self.committed = self.rolled_back = self.failed = 0

    async def write(self) -> None:
        """One transaction. That the server is away is counted and not tried again: a client gave up."""
        try:
            await self._write()
        except ChangedItsMind:
            self.rolled_back += 1
        except Exception as error:
            if not is_transient(error):
                raise
            self.failed += 1
        else:
            self.committed += 1

    async def _write(self) -> None:
        keys = sorted(self._random.sample(ACCOUNTS, k=self._random.choice((1, 1, 1, 2, 3))))
        async with self._pool.acquire() as conn, conn.transaction():
            if self._random.random() < 0.1:
                await self._in_vain(conn, keys)
            moves = []
            for key in keys:  # sorted, so that two writers never wait for each other
                sequence = await conn.fetchval(_MOVE, key)
                await conn.execute(_KEEP, key, sequence)
                moves.append(Message(Moved(key=key, sequence=sequence), key=key))
            if len(moves) == 1:
                await outbox.append(conn, moves[0].event, key=moves[0].key)
            else:
                await outbox.append_many(conn, moves)
            if self._random.random() < 0.05:
                await conn.execute("select pg_sleep($1)", self._random.uniform(0.1, 0.5))
            if self._random.random() < 0.1:
                raise ChangedItsMind

    async def _in_vain(self, conn: asyncpg.pool.PoolConnectionProxy, keys: list[str]) -> None:
        """Append in a subtransaction that is rolled back: nobody may ever hear of it."""
        savepoint = conn.transaction()
        await savepoint.start()
        for key in keys:
            sequence = await conn.fetchval(_MOVE, key)
            await outbox.append(conn, Moved(key=key, sequence=-sequence), key=key)
        await savepoint.rollback()


async def main() -> None:
    """Write until told to end."""
    pause = 1 / float(os.environ["CHAOS_RATE"])
    async with (
        until_told() as stop,
        asyncpg.create_pool(os.environ["CHAOS_DSN"], min_size=0, max_size=20, command_timeout=20) as pool,
    ):
        writer = Writer(pool)
        in_flight: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                if len(in_flight) < _MOST_IN_FLIGHT:
                    task = group.create_task(writer.write())
                    in_flight.add(task)
                    task.add_done_callback(in_flight.discard)
                await asyncio.sleep(pause)
        print(f"committed {writer.committed}, rolled back {writer.rolled_back}, failed {writer.failed}")


if __name__ == "__main__":
    asyncio.run(main())
