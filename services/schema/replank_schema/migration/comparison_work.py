"""The work of comparing: runs what was asked for, samples without end, repairs; a part of a migration's work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from replank.connection import POSTGRES_ERRORS
from replank.errors import DependencyUnavailable
from replank.migrate.comparison import Comparison, ComparisonSettings, Direction, Findings, Progress, Sampler, repair
from replank.migrate.locks import LocksNotGranted
from replank.migrate.mapping import Mapping
from replank.migrate.session import backoff
from replank.migrate.throttle import Throttle
from replank.postgres import Pool
from replank_schema.migration import comparison, comparison_store
from replank_schema.migration.comparison import ComparisonEnded, Subject
from replank_schema.migration.comparison_model import Run

_log = logging.getLogger(__name__)

_POLL: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_WAITED_FOR: Final = (*POSTGRES_ERRORS, DependencyUnavailable, LocksNotGranted)


@dataclass(frozen=True, slots=True)
class Stores:
    """The two stores of a migration (DSNs). ``direction`` tells which one follows now."""

    source: str
    target: str
    mapping: Mapping
    direction: Direction


class ComparisonWork:
    """Does what was asked about one migration's comparison, until it is told to stop. One at a time runs it.

    ``subject`` and ``settings`` are asked again and again, so that they may change. Start it anew when the authority
    over writes moves: what leads and what follows is fixed for its life. A run that is interrupted goes on from its
    last report. ``problem`` says what it waits for, and is empty while all is well.
    """

    def __init__(
        self,
        pool: Pool,
        stores: Stores,
        *,
        subject: Callable[[], Subject],
        settings: Callable[[], ComparisonSettings] = ComparisonSettings,
        throttle: Throttle | None = None,
        sample_keys: int = 100,
        sample_every: float = 10.0,
    ) -> None:
        self._pool = pool
        self._stores = stores
        self._subject = subject
        self._settings = settings
        self._throttle = throttle
        self._sampler = Sampler(
            stores.source,
            stores.target,
            stores.mapping,
            report=self._keep_sample,
            direction=stores.direction,
            settings=settings,
            keys=sample_keys,
            every=sample_every,
        )
        self._problems: dict[str, str] = {}

    @property
    def problem(self) -> str:
        """What goes wrong now; empty while all is well."""
        return next(filter(None, [*self._problems.values(), self._sampler.problem]), "")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; a comparison that runs is interrupted then, to be gone on with."""
        async with asyncio.TaskGroup() as tasks:
            # All of it may be cut off at any moment: only whole reports are kept.
            running = [
                tasks.create_task(self._sampler.run(stop), name="samples"),
                tasks.create_task(self._again("compare", self._compare), name="comparisons"),
                tasks.create_task(self._again("repair", self._repair), name="repairs"),
            ]
            await stop.wait()
            for task in running:
                task.cancel()

    async def _again(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            try:
                await step()
                self._problems[what], failures = "", 0
                pause = _POLL
            except _WAITED_FOR as error:
                self._problems[what] = f"cannot {what}: {str(error) or type(error).__name__}"
                _log.warning("%s", self._problems[what], extra={"migration": self._stores.mapping.name})
                pause = backoff(failures, _LONGEST_PAUSE)
                failures += 1
            await asyncio.sleep(pause)

    async def _compare(self) -> None:
        subject, stores = self._subject(), self._stores
        async with self._pool.acquire() as conn, conn.transaction():
            run = await comparison_store.to_run(conn, subject.id)
            if run is None:
                return
            if run.direction not in (None, stores.direction):
                # It began before the authority moved: half of it would be about the one, half about the other.
                await comparison_store.cancel(conn, subject.id, run.id)
                await comparison.ask(conn, subject.id, asked_by=run.asked_by)
                return
            await comparison_store.started(conn, run.id, stores.direction)
        comparing = Comparison(
            stores.source,
            stores.target,
            stores.mapping,
            report=lambda progress, findings: self._keep(run, progress, findings),
            direction=stores.direction,
            settings=self._settings,
            throttle=self._throttle,
        )
        try:
            await comparing.run(run.progress)
        except ComparisonEnded as ended:
            _log.info("%s", ended, extra={"migration": stores.mapping.name})

    async def _keep(self, run: Run, progress: Progress, findings: Findings) -> None:
        async with self._pool.acquire() as conn, conn.transaction():
            await comparison.keep_progress(conn, self._subject(), run, progress, findings)

    async def _keep_sample(self, findings: Findings) -> None:
        async with self._pool.acquire() as conn, conn.transaction():
            await comparison.keep_sample(conn, self._subject(), findings)

    async def _repair(self) -> None:
        subject, stores = self._subject(), self._stores
        async with self._pool.acquire() as conn:
            asked = await comparison_store.to_repair(conn, subject.id)
        if asked is None:
            return
        # Twice is as good as once: a repair whose end could not be kept is done again, under newer versions.
        actions = await repair(
            stores.source,
            stores.target,
            stores.mapping,
            asked.keys,
            direction=stores.direction,
            dry_run=asked.dry_run,
        )
        async with self._pool.acquire() as conn:
            await comparison_store.repaired(conn, asked.id, actions)
