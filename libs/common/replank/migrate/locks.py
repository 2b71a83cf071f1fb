"""Locks on tables that an application is using: waited for briefly, and often.

Whoever waits for a strong lock makes everybody who comes after wait behind. So each attempt is short, and between two
attempts the application goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg

from replank.connection import Connection
from replank.errors import ReplankError
from replank.migrate.session import backoff

Value = TypeVar("Value")

_LONGEST_PAUSE: Final = 1.0
# Whoever closes a circle of waiting is ended by the server after deadlock_timeout. That would be the application's
# transaction, which came later: give up before.
_LIMIT: Final = """
    select set_config('lock_timeout', least($1::integer, setting::integer / 2)::text, true)
      from pg_settings where name = 'deadlock_timeout'
"""


class LocksNotGranted(ReplankError):
    """Transactions of others kept the tables locked until time was up. Nothing has been changed."""


async def with_locks(
    conn: Connection, work: Callable[[], Awaitable[Value]], *, patience: float = 1.0, within: float = 30.0
) -> Value:
    """Do ``work`` in a transaction of its own on ``conn``, again and again until it gets its locks.

    A lock is waited for ``patience`` seconds, but never for so long that the server ends a transaction of others for a
    deadlock with this one; after ``within`` seconds no lock is waited for any more. ``work`` may be called several
    times; what a failed call did is undone. Raises `LocksNotGranted`; other errors of ``work`` pass through.
    """
    deadline = time.monotonic() + within
    attempt = 0
    while True:
        try:
            async with conn.transaction():
                longest = min(patience, deadline - time.monotonic())
                await conn.execute(_LIMIT, max(1, round(longest * 1000)))
                return await work()
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            pause = backoff(attempt, _LONGEST_PAUSE)
            attempt += 1
            if time.monotonic() + pause > deadline:
                raise LocksNotGranted(
                    f"the tables stayed locked by other transactions through {attempt} attempts in {within:g} s",
                    fix="look in pg_stat_activity for the long transaction that holds them, and try again",
                ) from error
            await asyncio.sleep(pause)
