"""The work of jobs: taken from the table, kept by a lease, cancellable, resumed by another process after a crash.

A handler does its work again from what is stored if it is interrupted, so it must be safe to repeat; what it makes
durable in the end it makes so in one transaction with the end of its job (`Work.finish`), so that it does so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import JsonValue

from replank.connection import POSTGRES_ERRORS, Connection
from replank.errors import DependencyUnavailable, ReplankError
from replank.telemetry import metrics
from replank_schema.vault import job_store
from replank_schema.vault.job_store import Job
from replank_schema.vault.vault import Vault

_log = logging.getLogger(__name__)
_tracer: Final = trace.get_tracer("replank.schema.vault")

_LOOK_EVERY: Final = 1.0
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_MOST_ATTEMPTS: Final = 20


class JobLost(ReplankError):
    """Another process has the job: this one was taken for dead."""


class JobCancelled(ReplankError):
    """Somebody asked for the end of the job."""


class Work:
    """A job in the hands of its handler, which says how far it is: ``done`` of ``total``, and from which ``position``
    another process is to go on. They are stored now and then, together."""

    def __init__(self, vault: Vault, job: Job) -> None:
        self.vault = vault
        self.job = job
        self.done = 0
        self.total = job.total
        self.position = job.position

    @asynccontextmanager
    async def finish(self, result: Mapping[str, JsonValue] | None = None) -> AsyncIterator[Connection]:
        """A transaction in which the job ends: what is done in the block happens if and only if it is this process's
        job still. Raises `JobLost`."""
        async with self.vault.pool.acquire() as conn, conn.transaction():
            yield conn
            await self.end(conn, result)

    async def end(self, conn: Connection, result: Mapping[str, JsonValue] | None) -> None:
        """End the job as done, in a transaction of the handler's own. Raises `JobLost`."""
        if not await job_store.end(conn, self.job, "done", result=result, done=self.done, total=self.total):
            raise JobLost(f"another process has the job {self.job.id}")


Handler: TypeAlias = Callable[[Work], Coroutine[Any, Any, None]]
"""Does a job and ends it with `Work.finish` or `Work.end`. What it raises of `ReplankError` but
`DependencyUnavailable` is the job's failure."""


class Jobs:
    """Works on the jobs of one mode, one at a time in each lane: a lane is the kinds that wait for each other."""

    def __init__(self, vault: Vault, lanes: list[Mapping[str, Handler]]) -> None:
        self._vault = vault
        self._lanes = lanes
        self._lease = timedelta(seconds=vault.limits.job_lease)
        self._wakes = [asyncio.Event() for _ in lanes]

    def wake(self) -> None:
        """Look at once: there is a new job."""
        for woken in self._wakes:
            woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set. A job under way is let go, for any process to take up again."""
        lanes = [
            asyncio.create_task(self._lane(handlers, woken))
            for handlers, woken in zip(self._lanes, self._wakes, strict=True)
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopping, *lanes], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            for lane in lanes:
                lane.cancel()
            ended = await asyncio.gather(*lanes, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _lane(self, handlers: Mapping[str, Handler], woken: asyncio.Event) -> None:
        while True:
            woken.clear()
            try:
                async with self._vault.pool.acquire() as conn:
                    job = await job_store.claim(conn, list(handlers), self._lease)
                if job is not None:
                    await self._do(job, handlers[job.kind])
                    continue
            except (DependencyUnavailable, *POSTGRES_ERRORS) as error:
                _log.warning("jobs cannot be looked at: %s", str(error) or type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter
                    await woken.wait()

    async def _do(self, job: Job, handler: Handler) -> None:
        work = Work(self._vault, job)
        extra = {"job_id": str(job.id), "job_kind": job.kind, "vault_mode": self._vault.mode}
        with _tracer.start_as_current_span(
            f"vault job {job.kind}",
            context=job.trace.context(),
            kind=SpanKind.CONSUMER,
            attributes={"replank.vault.mode": self._vault.mode, "replank.job.id": str(job.id)},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            task = asyncio.create_task(handler(work))
            beating = asyncio.create_task(self._beat(work))
            try:
                await asyncio.wait([task, beating], return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    task.cancel()
                    await asyncio.wait([task])
                    await beating  # raises why
                await task
                self._count(job, "done")
            except JobLost:
                self._count(job, "elsewhere")
                _log.warning("a job went on elsewhere", extra=extra)
            except JobCancelled:
                await self._ended(job, "cancelled", None)
            except (DependencyUnavailable, *POSTGRES_ERRORS) as error:
                span.set_status(StatusCode.ERROR, type(error).__name__)
                await self._try_again(job, error)
            except ReplankError as error:
                span.set_status(StatusCode.ERROR, type(error).__name__)
                await self._ended(job, "failed", str(error))
            except Exception as error:
                span.set_status(StatusCode.ERROR, type(error).__name__)
                _log.exception("a job failed for an unexpected reason", extra=extra)
                await self._ended(job, "failed", f"an unexpected {type(error).__name__}; the log has more")
            finally:
                for one in (task, beating):
                    one.cancel()
                await asyncio.wait([task, beating])

    async def _beat(self, work: Work) -> None:
        """Keep the lease, report progress, and raise when the job is not to go on."""
        while True:
            await asyncio.sleep(self._vault.limits.job_lease / 5)
            try:
                async with self._vault.pool.acquire() as conn:
                    cancel = await job_store.beat(
                        conn, work.job, done=work.done, total=work.total, position=work.position, lease=self._lease
                    )
            except (DependencyUnavailable, *POSTGRES_ERRORS):
                continue  # the work itself will notice, or the lease will end
            if cancel is None:
                raise JobLost(f"another process has the job {work.job.id}")
            if cancel:
                raise JobCancelled(f"the job {work.job.id} was cancelled")

    def _count(self, job: Job, outcome: Literal["done", "failed", "cancelled", "again", "elsewhere"]) -> None:
        metrics.VAULT_JOBS.labels(mode=self._vault.mode, kind=job.kind, outcome=outcome).inc()

    async def _ended(self, job: Job, state: Literal["failed", "cancelled"], problem: str | None) -> None:
        self._count(job, state)
        async with self._vault.pool.acquire() as conn:
            await job_store.end(conn, job, state, problem=problem)

    async def _try_again(self, job: Job, error: Exception) -> None:
        problem = str(error) or type(error).__name__
        _log.warning("a job waits to be tried again: %s", problem, extra={"job_id": str(job.id)})
        if job.attempts >= _MOST_ATTEMPTS:
            await self._ended(job, "failed", f"given up after {job.attempts} attempts: {problem}")
            return
        self._count(job, "again")
        pause = min(_FIRST_PAUSE * 2 ** (job.attempts - 1), _LONGEST_PAUSE)
        async with self._vault.pool.acquire() as conn:
            await job_store.again(conn, job, problem, timedelta(seconds=pause))
