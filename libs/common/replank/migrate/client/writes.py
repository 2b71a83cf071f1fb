"""Writing to whichever store takes the writes, which may change at any moment."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeVar

import asyncpg
from opentelemetry import trace

from replank.migrate import authority
from replank.telemetry import metrics

Value = TypeVar("Value")
Store = Literal["kv", "tables"]
Write = Callable[[], Awaitable[Value]]

_OTHER: Final[dict[Store, Store]] = {"kv": "tables", "tables": "kv"}
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25
_STORE: Final = "replank.migrate.write.store"
_ATTEMPTS: Final = "replank.migrate.write.attempts"


class WriteRouter:
    """Sends the writes of the migration ``name`` to the store that takes them.

    The databases decide, not this class: a store that does not take a write refuses it. So no two processes can
    disagree, and a router that was not told of a change learns of it by its next write. ``patience`` is how many
    seconds a write may wait while the authority moves.
    """

    def __init__(self, name: str, *, patience: float = 10.0) -> None:
        self.name = name
        self._patience = patience
        self._store: Store = "kv"

    @property
    def store(self) -> Store:
        """The store that took the last write of this process."""
        return self._store

    async def write(self, *, kv: Write[Value], tables: Write[Value]) -> Value:
        """Do the write, in one store or the other; answers what that answered.

        Each is a whole transaction of the caller's, and may be called several times: it must leave nothing behind where
        it fails. While writes are held, it is tried again. Raises `replank.migrate.authority.WritesHeld` or
        `WritesElsewhere` when no store took it for ``patience`` seconds; every other error of the write passes through.
        """
        deadline = time.monotonic() + self._patience
        pause = _FIRST_PAUSE
        attempts = 0
        store, refused_by = self._store, None
        while True:
            attempts += 1
            try:
                answer = await (kv if store == "kv" else tables)()
            except Exception as error:
                refused = authority.refusal(error)
                if refused is None and store == "tables" and refused_by != "kv":
                    refused = _no_tables(error)
                if refused is None:
                    raise
                if isinstance(refused, authority.WritesElsewhere) and refused_by != _OTHER[store]:
                    # At once, but only when the other has not just said the same.
                    store, refused_by = _OTHER[store], store
                    continue
                if time.monotonic() + pause > deadline:
                    metrics.MIGRATE_WRITES.labels(self.name, store, "refused").inc()
                    raise refused from error
                refused_by = None
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads the writers, guards nothing
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                metrics.MIGRATE_WRITES.labels(self.name, store, "first" if attempts == 1 else "redirected").inc()
                self._store = store
                trace.get_current_span().set_attributes({_STORE: store, _ATTEMPTS: attempts})
                return answer


def _no_tables(error: BaseException) -> authority.WritesElsewhere | None:
    """What a table that is not there says: the migration that made it was taken back, and the tables dropped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, asyncpg.UndefinedTableError):
            return authority.WritesElsewhere(str(cause), fix="write to the key-value store")
        cause = cause.__cause__
    return None
