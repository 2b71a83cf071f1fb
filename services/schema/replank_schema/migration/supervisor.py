"""One leader for every migration that has work, over all processes of the service.

Each process looks, every second and whenever it is woken, for migrations that have work and nobody who does it, takes
their leases, and leads them (`replank_schema.migration.conductor`). A process that dies loses its leases by the clock
of the database; another one takes them and goes on from what is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from typing import Final
from uuid import UUID

from replank.connection import POSTGRES_ERRORS
from replank.errors import DependencyUnavailable, ReplankError
from replank_schema.migration import store
from replank_schema.migration.conductor import Conductor, Surroundings

_log = logging.getLogger(__name__)

_INTERVAL: Final = 1.0


class Supervisor:
    """Leads migrations in this process, for as long as `run` runs."""

    def __init__(self, around: Surroundings) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{random.getrandbits(32):08x}"
        self.problem = ""
        self._around = around
        self._woken = asyncio.Event()
        self._leading: dict[UUID, tuple[Conductor, asyncio.Task[None]]] = {}

    def wake(self) -> None:
        """Look at once: something was asked of a migration."""
        self._woken.set()
        for conductor, _ in self._leading.values():
            conductor.wake()

    async def run(self, stop: asyncio.Event) -> None:
        """Lead until ``stop`` is set; then end the work and give the leases back. Outages are waited out."""
        watch = asyncio.create_task(self._watch(stop))
        try:
            while not stop.is_set():
                self._woken.clear()
                try:
                    await self._look(stop)
                    self.problem = ""
                except (DependencyUnavailable, *POSTGRES_ERRORS) as error:
                    self.problem = f"the migrations cannot be looked at: {str(error) or type(error).__name__}"
                    _log.warning("%s", self.problem)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_INTERVAL):
                        await self._woken.wait()
        finally:
            watch.cancel()
            for conductor, _ in self._leading.values():
                conductor.stop()
            await asyncio.gather(*(task for _, task in self._leading.values()), return_exceptions=True)

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._woken.set()

    async def _look(self, stop: asyncio.Event) -> None:
        for migration_id, (_, task) in list(self._leading.items()):
            if task.done():
                del self._leading[migration_id]
                if not task.cancelled() and (error := task.exception()) is not None:
                    self._tell(migration_id, error)
        async with self._around.pools.general_primary.acquire() as conn:
            claimed = await store.claim(conn, self.owner, self._around.lease_seconds)
        for migration_id, token in claimed:
            if stop.is_set():
                return
            if (led := self._leading.pop(migration_id, None)) is not None:
                # Its lease ran out under it. It sees that by itself; the new term must not run beside it.
                led[1].cancel()
                await asyncio.wait([led[1]])
            _log.info("migration taken", extra={"migration_id": str(migration_id), "token": token})
            conductor = Conductor(self._around, migration_id, token, self.owner)
            task = asyncio.create_task(conductor.run(), name=f"migration-{migration_id}")
            self._leading[migration_id] = (conductor, task)

    def _tell(self, migration_id: UUID, error: BaseException) -> None:
        extra = {"migration_id": str(migration_id)}
        if isinstance(error, ReplankError):
            _log.warning("migration let go: %s", error, extra=extra)
        else:
            _log.error("migration let go for an unexpected reason", exc_info=error, extra=extra)
