"""The work of one migration, led by one process: the right parts run, the others do not.

The conductor holds the lease, looks where the migration stands, starts and ends parts accordingly, and tells how they
are with every renewal. It keeps nothing: whoever leads next begins from what is stored. When the lease is lost, or may
be, all parts are cancelled before it can be anybody else's by our own clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal
from uuid import UUID

from pydantic import ValidationError

from replank.connection import POSTGRES_ERRORS, Connection
from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError
from replank.migrate.mapping import InvalidMapping
from replank.migrate.session import backoff
from replank.postgres import Pools
from replank.telemetry import metrics
from replank_schema.migration import service, store
from replank_schema.migration.databases import Databases
from replank_schema.migration.model import Migration
from replank_schema.migration.parts import Part, needed
from replank_schema.migration.report import PartReport, Report
from replank_schema.migration.service import LeaseLost
from replank_schema.migration.work import Work

_log = logging.getLogger(__name__)

_LONGEST_PAUSE: Final = 10.0
_INTERVAL: Final = 0.5
_LONGEST_PROBLEM: Final = 4000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the work of every migration needs."""

    pools: Pools
    databases: Databases
    kafka: str
    lease_seconds: float


@dataclass(slots=True)
class _Running:
    """A part that was started. ``problem`` is what its own object says, for those that last."""

    task: asyncio.Task[None]
    state: Literal["running", "waiting", "done", "failed"] = "running"
    detail: str = ""
    since: datetime = field(default_factory=lambda: datetime.now(UTC))


class Conductor:
    """Leads one migration under one lease, until it is stopped, the lease is lost, or there is nothing more to do."""

    def __init__(self, around: Surroundings, migration_id: UUID, token: int, owner: str) -> None:
        self._around = around
        self._id = migration_id
        self._token = token
        self._owner = owner
        self._held_until = time.monotonic() + around.lease_seconds
        self._changed = asyncio.Event()
        self._stopping = False
        self._parts: dict[Part, _Running] = {}
        self._work: Work | None = None
        self._begun: int | None = None
        self._unworkable = ""
        self._name = ""

    def wake(self) -> None:
        """Look at once: something was asked of the migration."""
        self._changed.set()

    def stop(self) -> None:
        """End the work, and give the lease back."""
        self._stopping = True
        self._changed.set()

    async def run(self) -> None:
        """Lead. Raises `LeaseLost`."""
        try:
            while not self._stopping:
                self._changed.clear()
                if not await self._turn():
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(_INTERVAL, self._around.lease_seconds / 4)):
                        await self._changed.wait()
        finally:
            await self._end(list(self._parts))
            if self._name:
                metrics.MIGRATE_PROBLEM.labels(self._name).set(0)
        with contextlib.suppress(DependencyUnavailable, *POSTGRES_ERRORS):
            async with self._around.pools.general_primary.acquire() as conn:
                await store.release(conn, self._id, self._token)

    async def _turn(self) -> bool:
        """Renew, look, and let run what must; false when there is nothing more to do."""
        asked_at = time.monotonic()
        report = self._report()
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._held_until - asked_at):
                async with self._around.pools.general_primary.acquire() as conn:
                    if not await store.renew(conn, self._id, self._token, self._around.lease_seconds, report):
                        raise self._lost()
                    self._held_until = asked_at + self._around.lease_seconds
                    migration = await store.get(conn, self._id)
                    if migration is None:
                        return False
                    facts = await store.facts(conn, self._id)
                    if self._begun != migration.standing.run:
                        await self._begin(conn, migration)
                    if migration.settings.auto_until is not None:
                        async with conn.transaction():
                            names = self._around.databases.names
                            if await service.advance_by_itself(conn, self._id, self._token, names):
                                self._changed.set()
                                return True
        except (DependencyUnavailable, *POSTGRES_ERRORS) as error:
            if time.monotonic() >= self._held_until:
                raise self._lost() from error
            _log.warning("migration %s: its lease could not be renewed yet: %s", self._id, error)
            return True
        metrics.MIGRATE_PROBLEM.labels(migration.name).set(bool(report.problem))
        work = self._work
        if work is None:
            # Nobody but who reads the report knows of it. Settings do not change under a process: the next one may do.
            return bool(needed(migration.standing, facts, same_transaction=False))
        work.see(migration, facts)
        wanted = needed(migration.standing, facts, same_transaction=work.plan.options.same_transaction)
        await self._end([part for part in self._parts if part not in wanted - work.excluded])
        for part in sorted(wanted - work.excluded - self._parts.keys()):
            self._start(part, work)
        return bool(wanted)

    async def _begin(self, conn: Connection, migration: Migration) -> None:
        """A run of the migration: nothing of the run before it goes on. What cannot be worked on is reported."""
        await self._end(list(self._parts))
        self._name, self._begun, self._work, self._unworkable = migration.name, migration.standing.run, None, ""
        try:
            self._work = Work(self._around, migration, await store.plan(conn, self._id), self._token)
        except (ConfigurationError, InvalidMapping) as error:
            self._unworkable = f"{self._owner} cannot work on this migration: {error}"
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            self._unworkable = f"{self._owner} cannot read this plan, which another version has kept: {faults}"
        if self._unworkable:
            _log.error("%s", self._unworkable, extra={"migration": migration.name})
        else:
            _log.info("migration led", extra={"migration": migration.name, "run": migration.standing.run})

    def _start(self, part: Part, work: Work) -> None:
        do = work.of(part)
        task = asyncio.create_task(self._keep(part, do), name=f"{work.migration.name}-{part}")
        self._parts[part] = _Running(task)

    async def _keep(self, part: Part, do: Callable[[], Awaitable[None]]) -> None:
        """Do a part of the work until it is done, again and again if it fails."""
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                await do()
            except LeaseLost:
                self._held_until = float("-inf")
                self._changed.set()
                return
            except Exception as error:
                expected = isinstance(error, (ReplankError, *POSTGRES_ERRORS))
                detail = str(error) or type(error).__name__
                _log.warning(
                    "migration part %s failed: %s", part, detail, exc_info=None if expected else error
                )  # what nobody expected is told with its stack, and tried again like the rest
                # One that worked for a while and then failed has not failed in a row.
                attempt = 1 if time.monotonic() - started > _LONGEST_PAUSE else attempt + 1
                self._tell(part, "failed", detail)
                await asyncio.sleep(backoff(attempt, _LONGEST_PAUSE))
                # A part that lasts says no more of itself: it has failed until it is tried again, not for ever.
                self._tell(part, "running", "")
            else:
                self._tell(part, "done", "")
                self._changed.set()
                return

    def _tell(self, part: Part, state: Literal["running", "waiting", "done", "failed"], detail: str) -> None:
        running = self._parts.get(part)
        if running is not None and (running.state, running.detail) != (state, detail):
            running.state, running.detail, running.since = state, detail, datetime.now(UTC)

    async def _end(self, parts: list[Part]) -> None:
        ending = [self._parts.pop(part).task for part in parts]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _report(self) -> Report:
        if self._work is None:
            return Report(problem=self._unworkable[:_LONGEST_PROBLEM])
        reports = []
        for part, running in sorted(self._parts.items()):
            state, detail = running.state, running.detail
            if state == "running":
                detail = self._work.doing(part)
                if problem := self._work.problem_of(part):
                    state, detail = "waiting", problem
            reports.append(PartReport(name=part, state=state, detail=detail[:2000], since=running.since))
        failing = [f"{report.name}: {report.detail}" for report in reports if report.state in ("failed", "waiting")]
        return self._work.report().model_copy(
            update={"parts": tuple(reports), "problem": "; ".join(failing)[:_LONGEST_PROBLEM]}
        )

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"the lease on the migration {self._id} is lost", fix="nothing: whoever has it goes on")
