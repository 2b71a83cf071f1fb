"""What a handler may answer, and what its failure means.

The answer is a sum type. `Done` commits; `Retry` and `Dead` roll back everything that the handler did, and then either
try again later or put the event among the dead letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import asyncpg

from replank.connection import Connection, is_lost
from replank.errors import DependencyUnavailable, ReplankError


@dataclass(frozen=True, slots=True)
class Done:
    """The effect is complete: commit it together with the inbox row."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now: roll back, wait, and handle the same event again. ``after=None``: wait as the settings say."""

    after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Dead:
    """Never: roll back and make the event a dead letter. ``reason`` is for the person who reads it there."""

    reason: str


Outcome = Done | Retry | Dead


class Reason(StrEnum):
    """Why an event became a dead letter. Public: dashboards and alerts key on these words."""

    NOT_A_CLOUDEVENT = "not_a_cloudevent"
    """The record lacks the CloudEvents headers that say what it is."""
    INVALID_EVENT = "invalid_event"
    """The value does not satisfy the contract of its type."""
    REJECTED = "rejected"
    """The handler answered `Dead`."""
    HANDLER_ERROR = "handler_error"
    """The handler raised the same kind of error until its attempts were used up."""
    RETRIES_EXHAUSTED = "retries_exhausted"
    """A transient failure outlasted ``transient_attempts``."""
    KEY_PARKED = "key_parked"
    """An earlier event of the same key is a dead letter, and order matters to this subscriber."""
    BEYOND_INBOX_RETENTION = "beyond_inbox_retention"
    """Older than what the inbox remembers: nobody can tell any more whether it was applied."""


class Transient(ReplankError):
    """Raise this (or a subclass) in a handler for a failure that time will mend."""


# Lost connections, and what Postgres answers when the same statement may well succeed a moment later.
_TRANSIENT = (
    asyncpg.PostgresConnectionError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InsufficientResourcesError,
    # What asyncpg raises for a connection that the server ended while it was idle.
    asyncpg.InternalClientError,
    # A standby that is being promoted, or a connection pool that still points to the old primary.
    asyncpg.ReadOnlySQLTransactionError,
)


def is_transient(error: BaseException, conn: Connection | None = None) -> bool:
    """Whether the same work may succeed later without anybody changing anything.

    ``conn`` is the connection on which it failed: asyncpg reports both a connection that was lost and a programming
    error as ``InterfaceError``, and only the connection's state tells them apart.
    """
    if isinstance(error, (*_TRANSIENT, OSError, TimeoutError, DependencyUnavailable, Transient)):
        return True
    return isinstance(error, asyncpg.InterfaceError) and (conn is None or is_lost(conn))
