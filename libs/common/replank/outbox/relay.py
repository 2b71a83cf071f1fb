"""The relay: publishes what an outbox holds, for as long as it runs.

One relay is one process' share of the work. It takes leases on shards, works on each in a task of its own, and gives
them back when it ends. Whatever fails, it tries again, for ever and ever less often; its state is in Postgres (and, for
exactly-once delivery, in Kafka), so that any other relay can go on where this one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry import context as otel_context

from replank.connection import POSTGRES_ERRORS, Connection
from replank.outbox import lease as leases
from replank.outbox import retention, window
from replank.outbox.append import OutboxNotInstalled
from replank.outbox.install import is_installed
from replank.outbox.lease import Lease, LeaseLost
from replank.outbox.publisher import KafkaPublisher, Publisher
from replank.outbox.settings import RelaySettings
from replank.outbox.shard import PublisherFactory, ShardWorker
from replank.outbox.status import status
from replank.telemetry import metrics

_log = logging.getLogger(__name__)


_MAINTENANCE_LOCK_TIMEOUT: Final = "200ms"
_DEPTH_CAP: Final = 100_000
_CHANNEL: Final = "replank_outbox"


class Relay:
    """Publishes the outbox of the database at ``dsn`` to Kafka at ``kafka`` ("host:port,…").

    Either ``await relay.run(stop)``, which returns after ``stop`` is set and everything is given back, or
    ``async with Relay(…):`` beside a service's other work. Neither raises because a server is away.

    ``kafka_options`` go to aiokafka (security_protocol, ssl_context, sasl_…). ``dsn`` must lead to Postgres itself, not
    to a pooler in transaction mode, as a role that owns the outbox. It holds 1 + 2 connections a shard.
    """

    def __init__(
        self,
        dsn: str,
        kafka: str,
        settings: RelaySettings | None = None,
        *,
        kafka_options: Mapping[str, Any] | None = None,
        publisher_factory: PublisherFactory | None = None,
    ) -> None:
        self.settings = settings or RelaySettings()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{random.getrandbits(32):08x}"
        self._dsn = dsn
        self._kafka = kafka
        self._kafka_options = kafka_options
        self._new_publisher = publisher_factory or self._kafka_publisher
        self._workers: dict[ShardWorker, asyncio.Task[None]] = {}
        self._problem = "starting"
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._maintained_at = float("-inf")
        self._maintenance: asyncio.Task[None] | None = None
        self._measured_at = float("-inf")

    @property
    def problem(self) -> str:
        """What keeps this relay from publishing, for readiness checks; empty when all is well.

        A relay that holds no shard, because others hold them all, is well.
        """
        problems = [f"shard {worker.lease.shard}: {worker.problem}" for worker in self._workers if worker.problem]
        return "; ".join([self._problem, *problems] if self._problem else problems)

    @property
    def healthy(self) -> bool:
        """Whether `problem` is empty."""
        return not self.problem

    @property
    def shards(self) -> list[int]:
        """The shards that this relay works on."""
        return sorted(worker.lease.shard for worker in self._workers)

    async def __aenter__(self) -> Self:
        self._stop.clear()
        self._running = asyncio.create_task(self.run(self._stop), name="replank-outbox-relay")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._running is not None:
            await self._running

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until ``stop`` is set; then finish the pages in flight, give the leases back and return."""
        # Ten thousand polls a minute would be as many spans. The tasks created below inherit this.
        token = otel_context.attach(otel_context.set_value("suppress_instrumentation", True, otel_context.Context()))
        watch = asyncio.create_task(self._watch(stop))
        attempt = 0
        try:
            while not stop.is_set():
                try:
                    async with window.connection(self._dsn, statement_timeout=max(10.0, self.settings.lease)) as conn:
                        await self._lead(conn, stop)
                    attempt = 0
                except (OutboxNotInstalled, *POSTGRES_ERRORS) as error:
                    attempt = 0 if not self._problem else attempt + 1
                    self._problem = f"{type(error).__name__}: {str(error) or 'no answer in time'}"
                    _log.warning("outbox relay: starting over: %s", self._problem)
                    await self._pause(stop, attempt)
        finally:
            watch.cancel()
            await self._end()
            otel_context.detach(token)
        self._problem = "stopped"

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._changed.set()

    async def _lead(self, conn: Connection, stop: asyncio.Event) -> None:
        """Keep the leases, start and end workers, until stopped. Raises when Postgres goes away; workers live on."""
        if not await is_installed(conn):
            raise OutboxNotInstalled("this database has no outbox", fix="run `replank outbox install --dsn …`")
        if self.settings.wake == "notify":
            await conn.add_listener(_CHANNEL, self._notified)
        shards: int = await conn.fetchval("select shards from replank_outbox.config")
        while not stop.is_set():
            self._changed.clear()
            await self._reap(conn)
            beat = await leases.beat(conn, self.owner, self.settings.lease, self._held())
            self._problem = ""
            for lease in beat.lost:
                self._drop(lease)
            await self._balance(conn, beat.share, shards)
            self._start_maintenance()
            await self._measure(conn)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.lease / 3):
                    await self._changed.wait()
        # The workers end before the connection does: their leases are given back on it.
        await self._stop_workers()
        for worker in list(self._workers):
            self._forget(worker)
            await worker.lease.release(conn)
        await leases.leave(conn, self.owner)

    def _held(self) -> list[Lease]:
        return [worker.lease for worker in self._workers]

    async def _balance(self, conn: Connection, share: int, shards: int) -> None:
        """Hold a fair share: take what is free, give back what is too much."""
        running = [worker for worker in self._workers if not worker.stopping]
        for worker in running[share:]:
            worker.stop()
        while len(self._workers) < share:
            lease = await leases.claim(conn, self.owner, self.settings.lease)
            if lease is None:
                break
            metrics.OUTBOX_LEASES.labels("taken").inc()
            _log.info("outbox shard taken", extra={"shard": lease.shard, "token": lease.token})
            worker = ShardWorker(self._dsn, lease, shards, self.settings, self._new_publisher)
            task = asyncio.create_task(worker.run(), name=f"replank-outbox-shard-{lease.shard}")
            task.add_done_callback(lambda _: self._changed.set())
            self._workers[worker] = task

    async def _reap(self, conn: Connection) -> None:
        """Give back the shards of workers that have ended."""
        for worker, task in list(self._workers.items()):
            if not task.done():
                continue
            self._forget(worker)
            if task.cancelled():
                continue
            error = task.exception()
            if isinstance(error, LeaseLost):
                metrics.OUTBOX_LEASES.labels("lost").inc()
                _log.warning("outbox: %s", error)
                continue
            if error is not None:
                # A bug, not an outage. The lease is left to end by itself, so that failing again takes its time.
                metrics.OUTBOX_FAILURES.labels(str(worker.lease.shard), "bug").inc()
                _log.error("outbox shard %d: unexpected failure", worker.lease.shard, exc_info=error)
                continue
            metrics.OUTBOX_LEASES.labels("released").inc()
            await worker.lease.release(conn)

    def _drop(self, lease: Lease) -> None:
        lease.expires = 0.0
        for worker, task in self._workers.items():
            if worker.lease is lease:
                task.cancel()
                metrics.OUTBOX_LEASES.labels("lost").inc()
                _log.warning("outbox: %s", lease.lost())

    def _forget(self, worker: ShardWorker) -> None:
        del self._workers[worker]
        worker.forget()

    async def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.stop()
        if self._workers:
            await asyncio.wait(self._workers.values(), timeout=self.settings.lease)
        for task in self._workers.values():
            task.cancel()
        await asyncio.gather(*self._workers.values(), return_exceptions=True)

    async def _end(self) -> None:
        """Let go of everything, also where Postgres is away and nothing can be given back."""
        await self._stop_workers()
        for worker in list(self._workers):
            self._forget(worker)
        if self._maintenance is not None:
            self._maintenance.cancel()
            await asyncio.gather(self._maintenance, return_exceptions=True)

    async def _pause(self, stop: asyncio.Event, attempt: int) -> None:
        ceiling = min(self.settings.backoff, 0.1 * 2.0 ** min(attempt, 16))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(ceiling / 2, ceiling)):  # noqa: S311 - jitter
                await stop.wait()

    def _notified(self, *_: object) -> None:
        for worker in self._workers:
            worker.wake()

    async def _measure(self, conn: Connection) -> None:
        if 0 not in self.shards or time.monotonic() < self._measured_at + self.settings.checkpoint:
            return
        self._measured_at = time.monotonic()
        for shard in (await status(conn, count_cap=_DEPTH_CAP)).shards:
            metrics.OUTBOX_DEPTH.labels(str(shard.shard)).set(shard.depth)

    def _start_maintenance(self) -> None:
        """Whoever has shard 0 maintains the partitions, beside everything else."""
        if 0 not in self.shards or time.monotonic() < self._maintained_at + self.settings.maintenance_interval:
            return
        if self._maintenance is None or self._maintenance.done():
            self._maintained_at = time.monotonic()
            self._maintenance = asyncio.create_task(self._maintain(), name="replank-outbox-maintenance")

    async def _maintain(self) -> None:
        try:
            async with window.connection(self._dsn, lock_timeout=_MAINTENANCE_LOCK_TIMEOUT) as conn:
                await retention.maintain(conn, self.settings.retention)
        except POSTGRES_ERRORS as error:
            metrics.OUTBOX_MAINTENANCE_FAILURES.inc()
            _log.warning("outbox maintenance failed, it is tried again in a minute: %s", error)

    def _kafka_publisher(self, shard: int, cluster: str) -> Publisher:
        exactly_once = self.settings.delivery == "exactly_once"
        return KafkaPublisher(
            self._kafka,
            self.settings,
            shard,
            transactional_id=f"replank.outbox.{cluster.replace('/', '.')}.{shard}" if exactly_once else None,
            options=self._kafka_options,
        )
