"""Connections of a migration's own: named, with deadlines, and with a clean end.

The parts of a migration work for hours beside an application on databases that are not theirs. Whoever looks at
``pg_stat_activity`` sees which part a connection belongs to; a part whose process is frozen or cut off does not hold
its locks for ever.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from replank.connection import POSTGRES_ERRORS, Connection

APPLICATION_PREFIX: Final = "replank-migrate-"
"""What the ``application_name`` of every connection of a migration begins with."""

_CONNECT_TIMEOUT: Final = 10.0
_CLOSE_TIMEOUT: Final = 1.0
_SERVER_SETTINGS: Final = {
    # Compiling a statement takes longer than any of these takes to run.
    "jit": "off",
    # A client that vanished without a word is gone for the server, and its locks with it, within half a minute.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "idle_in_transaction_session_timeout": "60s",
}


@asynccontextmanager
async def session(
    dsn: str,
    part: str,
    *,
    timeout: float,  # noqa: ASYNC109 - of each statement, not of the call
    applier: str | None = None,
    **settings: str,
) -> AsyncIterator[Connection]:
    """A connection of the migration's part ``part``. A statement that takes ``timeout`` seconds raises `TimeoutError`.

    ``applier``: the migration whose applier this connection is; the databases take its writes while they refuse those
    of the application.
    """
    server_settings = {**_SERVER_SETTINGS, "application_name": f"{APPLICATION_PREFIX}{part}", **settings}
    if applier is not None:
        server_settings["replank_migrate.applier"] = applier
    conn = await asyncpg.connect(
        dsn, server_settings=server_settings, command_timeout=timeout, timeout=_CONNECT_TIMEOUT
    )
    try:
        yield conn
    except BaseException:
        # The server may be gone, or in the middle of a statement that nobody waits for: no time for a good-bye.
        conn.terminate()
        raise
    try:
        await conn.close(timeout=_CLOSE_TIMEOUT)
    except POSTGRES_ERRORS:
        conn.terminate()


def backoff(attempt: int, longest: float) -> float:
    """Seconds to pause after so many failures in a row, from 0: twice as long each time, with jitter."""
    ceiling = min(longest, 0.1 * 2.0 ** min(attempt, 16))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads attempts, guards nothing
