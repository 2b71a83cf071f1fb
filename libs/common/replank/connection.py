"""The connection that the library works on: the caller's own, in the caller's transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"
"""A connection of asyncpg's, whether it was opened on its own or lent by a pool."""

# What a Postgres that is away, restarting or failing over looks like from here, among other things. The internal error
# is asyncpg's own confusion over a server that dies in the middle of an answer.
POSTGRES_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


def is_lost(conn: Connection) -> bool:
    """Whether a connection is of no use any more."""
    try:
        return conn.is_closed()
    except asyncpg.InterfaceError:
        # The pool has already taken it back, which it does in the middle of a block only when the connection breaks.
        return True
