"""The flags that this service knew last, in its own database: what it starts with when Kafka is down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import asyncpg

from replank.connection import POSTGRES_ERRORS
from replank.contracts.flags import FlagChanged
from replank.errors import DependencyUnavailable
from replank.events import InvalidEvent
from replank.flags import store
from replank.flags.errors import FlagsNotInstalled, InvalidFlag
from replank.flags.model import Flag
from replank.telemetry import metrics

log = logging.getLogger(__name__)

_WAIT_AFTER_FAILURE: Final = 1.0
_UNREACHABLE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
_TRANSIENT: Final = (*POSTGRES_ERRORS, FlagsNotInstalled)


class LocalCopy:
    """Loads the copy once, and keeps it up to date in the background."""

    def __init__(self, pool: store.Pool) -> None:
        self._pool = pool
        self._unsaved: dict[str, Flag] = {}
        self._wake = asyncio.Event()

    async def load(self) -> list[Flag]:
        """The flags of the copy. A row that is not a flag is counted, logged and passed over.

        Raises `FlagsNotInstalled`, and `DependencyUnavailable` (``postgres``) when the database does not answer.
        """
        try:
            rows = await store.load_copy(self._pool)
        except _UNREACHABLE as error:
            raise DependencyUnavailable(
                "postgres",
                f"the local copy of the flags cannot be loaded: Postgres does not answer ({type(error).__name__})",
                fix="check that the service's own database runs, and start again",
            ) from error
        flags = []
        for name, text in rows:
            try:
                flags.append(Flag.of(FlagChanged.from_value(text.encode())))
            except (InvalidEvent, InvalidFlag) as error:
                metrics.FLAGS_RECORDS.labels(result="malformed").inc()
                log.warning(
                    "a row of the local copy is not a flag and is passed over",
                    extra={"flag": name, "cause": error.message},
                )
        return flags

    def keep(self, flags: Sequence[Flag]) -> None:
        """Save these soon."""
        self._unsaved.update({flag.name: flag for flag in flags})
        self._wake.set()

    async def run(self) -> None:
        """Save what is to be kept, until cancelled. A database that is away is tried again: nothing waits for it."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._unsaved:
                try:
                    await self.save()
                except _TRANSIENT as error:
                    metrics.FLAGS_COPY_FAILURES.inc()
                    log.warning("the local copy of the flags could not be saved, trying again", exc_info=error)
                    await asyncio.sleep(_WAIT_AFTER_FAILURE)

    async def save(self) -> None:
        """Save now what is not saved."""
        saving = dict(self._unsaved)
        if not saving:
            return
        await store.keep_copy(self._pool, list(saving.values()))
        for name, flag in saving.items():
            # It may have changed again while it was saved.
            if self._unsaved.get(name) is flag:
                del self._unsaved[name]

    async def close(self, within: float) -> None:
        """Save what is left, or give up: the topic has it."""
        try:
            async with asyncio.timeout(within):
                await self.save()
        except _TRANSIENT as error:
            metrics.FLAGS_COPY_FAILURES.inc()
            log.warning("the last changes of flags are not in the local copy", exc_info=error)
