"""Work on one shard, from the moment its lease is taken until it is given back or lost.

A session is: connect, find out where the shard stands, publish windows. Any failure ends the session, and with it the
connections and the producer; the next one starts from what is stored. So there is one way to recover, whatever failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Final, TypeAlias
from uuid import UUID

from replank.connection import POSTGRES_ERRORS, Connection
from replank.outbox import window
from replank.outbox.lease import Cursor, Lease
from replank.outbox.publisher import Encoded, Publisher, PublishFailed, Rejected
from replank.outbox.settings import RelaySettings
from replank.outbox.window import ID, Page, WindowReader
from replank.telemetry import metrics

_log = logging.getLogger(__name__)

# Makes the publisher of a shard; the second argument is the cluster that the events come from.
PublisherFactory: TypeAlias = Callable[[int, str], Publisher]

_STOP_TIMEOUT: Final = 5.0  # seconds for what is in flight when the worker is told to stop


class ShardWorker:
    """Publishes one shard. ``problem`` says what keeps it from doing so, or is empty."""

    def __init__(self, dsn: str, lease: Lease, shards: int, settings: RelaySettings, new: PublisherFactory) -> None:
        self.lease = lease
        self.problem = "starting"
        self._dsn = dsn
        self._shards = shards
        self._settings = settings
        self._new_publisher = new
        self._stopping = asyncio.Event()
        self._awake = asyncio.Event()
        self._exactly_once = settings.delivery == "exactly_once"
        # A Kafka transaction costs some 20 ms whatever it holds, so it is made to hold more.
        self._full_page = settings.page_rows * (2 if self._exactly_once else 1)
        self._page_rows = self._full_page
        self._is_stuck = False
        self._attempt = 0
        label = str(lease.shard)
        self._polls = metrics.OUTBOX_POLLS.labels(label)
        self._statements = metrics.OUTBOX_STATEMENTS.labels(label)
        self._stuck = metrics.OUTBOX_STUCK.labels(label)

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Finish the page in flight and end."""
        self._stopping.set()
        self._awake.set()

    def wake(self) -> None:
        """Poll now: somebody says that there are new events."""
        self._awake.set()

    def forget(self) -> None:
        """Report nothing more about this shard: somebody else does."""
        label = str(self.lease.shard)
        for gauge in (metrics.OUTBOX_STUCK, metrics.OUTBOX_LAG, metrics.OUTBOX_DEPTH):
            gauge.remove(label)

    async def run(self) -> None:
        """Publish until `stop`. Raises `LeaseLost` when somebody else has, or may have, taken the shard."""
        while not self._stopping.is_set():
            try:
                async with self._session() as (reader, pipeline, cursor):
                    await self._publish_windows(reader, pipeline, cursor)
            except Rejected as error:
                await self._be_careful(error)
            except (PublishFailed, *POSTGRES_ERRORS) as error:
                self.lease.require()
                self.problem = f"{type(error).__name__}: {str(error) or 'no answer in time'}"
                metrics.OUTBOX_FAILURES.labels(
                    str(self.lease.shard), "kafka" if isinstance(error, PublishFailed) else "postgres"
                ).inc()
                _log.warning(
                    "outbox shard %d: starting over: %s",
                    self.lease.shard,
                    self.problem,
                    extra={"shard": self.lease.shard},
                )
                await self._back_off()

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[tuple[WindowReader, _Pipeline, Cursor]]:
        async with AsyncExitStack() as stack:
            reading = await stack.enter_async_context(
                window.connection(self._dsn, statement_timeout=self._settings.read_timeout)
            )
            moving = await stack.enter_async_context(
                window.connection(self._dsn, statement_timeout=self._settings.lease)
            )
            await window.read_times_as_integers(reading)
            cluster = await window.cluster_identity(reading)
            publisher = self._new_publisher(self.lease.shard, cluster)
            stack.push_async_callback(publisher.close)
            published = await publisher.start()
            # Read after the publisher has fenced off its predecessor: whoever still holds the lease now is the last.
            cursor = await self._resume(moving, cluster, published)
            reader = WindowReader(reading, self.lease.shard, self._shards, self._settings)
            skip = await reader.quarantined()
            pipeline = _Pipeline(
                self.lease,
                moving,
                publisher,
                skip,
                move_every=None if self._exactly_once else self._settings.cursor_interval,
            )
            stack.push_async_callback(pipeline.cancel)
            if not self._is_stuck:
                self.problem = ""
            began = time.monotonic()
            try:
                yield reader, pipeline, cursor
            finally:
                if pipeline.acknowledged or time.monotonic() - began > self._settings.backoff:
                    self._attempt = 0

    async def _resume(self, conn: Connection, cluster: str, published: tuple[int, int] | None) -> Cursor:
        cursor, stored_cluster = await self.lease.read_cursor(conn)
        if stored_cluster != cluster or await window.is_ahead(conn, cursor):
            return await self._restart(conn, cluster, stored_cluster)
        if published is None:
            return cursor
        number, last_id = published
        if number == cursor.number:
            return cursor.at(max(cursor.last_id, last_id))
        if number > cursor.number:
            _log.error(
                "outbox shard %d: Kafka has window %d, Postgres only %d: the database went back in time; events since "
                "then may be published again",
                self.lease.shard,
                number,
                cursor.number,
            )
            # Windows to come must not be taken for those of the lost timeline that had their numbers.
            cursor = cursor.renumbered(number + 1)
            await self.lease.move(conn, cursor)
        return cursor

    async def _restart(self, conn: Connection, cluster: str, stored_cluster: str) -> Cursor:
        async with conn.transaction():
            restore = await window.begin_restore(conn)
            await self.lease.restored(conn, cluster, restore.previous, restore.floor_id)
        _log.error(
            "outbox shard %d: this database was restored from another cluster; publishing again everything that is "
            "retained, consumers drop what they have seen",
            self.lease.shard,
            extra={"cluster": cluster, "restored_from": stored_cluster, "up_to_id": restore.floor_id},
        )
        metrics.OUTBOX_RESTORES.inc()
        return (await self.lease.read_cursor(conn))[0]

    async def _publish_windows(self, reader: WindowReader, pipeline: _Pipeline, cursor: Cursor) -> None:
        checkpoint = time.monotonic() + self._settings.checkpoint
        pause = self._settings.poll_interval
        while not self._stopping.is_set():
            pipeline.check()
            if cursor.replay_to is not None or cursor.current is not None:
                cursor = await self._drain(reader, pipeline, cursor)
                continue
            self._awake.clear()
            self._polls.inc()
            snapshot, rows = await reader.poll(cursor, self._page_rows)
            if rows:
                cursor = await self._publish_small(reader, pipeline, cursor.window(snapshot), rows)
                pause = self._settings.linger
                await self._wait(0.0 if len(rows) == self._page_rows else pause)
            elif rows is None:
                cursor = await self._begin(pipeline, cursor.window(snapshot))
            else:
                cursor = cursor.advanced(snapshot)
                if time.monotonic() >= checkpoint:
                    checkpoint = time.monotonic() + self._settings.checkpoint
                    await pipeline.flush()
                    await pipeline.store(cursor)
                self._count(reader)
                # Where something came just now more is likely to come soon; the longer nothing does, the less often.
                await self._wait(pause)
                pause = min(pause * 2, self._settings.poll_interval)
        async with asyncio.timeout(_STOP_TIMEOUT):
            await pipeline.flush()
            await pipeline.store(cursor)
        self._count(reader)

    async def _begin(self, pipeline: _Pipeline, cursor: Cursor) -> Cursor:
        """Begin a window. For exactly once it is written down first: Kafka's cursor only names it by number."""
        if self._exactly_once:
            await pipeline.flush()
            await pipeline.store(cursor)
        return cursor

    async def _publish_small(
        self, reader: WindowReader, pipeline: _Pipeline, cursor: Cursor, rows: list[window.Row]
    ) -> Cursor:
        """A window that fits a page. The cursor moves once, past the window as a whole."""
        await self._begin(pipeline, cursor)
        async for page in reader.complete(rows):
            whole = page.last_id == rows[-1][ID] and not self._exactly_once
            await self._put(pipeline, page, cursor.closed() if whole else cursor.at(page.last_id))
        return cursor.closed()

    async def _drain(self, reader: WindowReader, pipeline: _Pipeline, cursor: Cursor) -> Cursor:
        """A window of many pages, or what is left of one. The cursor moves with every page."""
        async with aclosing(reader.pages(cursor, lambda: self._page_rows)) as pages:
            async for page in pages:
                cursor = cursor.at(page.last_id)
                await self._put(pipeline, page, cursor)
                self._count(reader)
                if self._stopping.is_set():
                    return cursor
        if cursor.replay_to is None:
            return cursor.closed()
        cursor = cursor.replayed()
        await pipeline.flush()
        await pipeline.store(cursor)
        _log.warning("outbox shard %d: everything retained has been published again", self.lease.shard)
        return cursor

    async def _put(self, pipeline: _Pipeline, page: Page, after: Cursor) -> None:
        await pipeline.put(page, after)
        if self._page_rows < self._full_page:
            # One event at a time since Kafka refused something: what is behind us was taken, so speed up again.
            await pipeline.flush()
            self._is_stuck = False
            self.problem = ""
            self._stuck.set(0)
            self._page_rows = min(self._page_rows * 2, self._full_page)

    async def _be_careful(self, error: Rejected) -> None:
        """Find the one event that Kafka refuses, by publishing one at a time; when it is found, say so and wait.

        It is never skipped: the cause may go away (a topic is created, a limit raised), or an operator decides.
        """
        metrics.OUTBOX_FAILURES.labels(str(self.lease.shard), "rejected").inc()
        if self._page_rows > 1 or error.event_id is None:
            self._page_rows = 1
            _log.warning("outbox shard %d: looking for the event that Kafka refuses: %s", self.lease.shard, error)
            return
        _log.error(
            "outbox shard %d is stuck at event %s: %s; remove the cause, or take the event out of the way with "
            "outbox.quarantine",
            self.lease.shard,
            error.event_id,
            error.message,
            extra={"shard": self.lease.shard, "event_id": error.event_id},
        )
        try:
            async with window.connection(self._dsn, statement_timeout=self._settings.lease) as conn:
                await self.lease.stuck(conn, UUID(error.event_id), error.message)
        except POSTGRES_ERRORS as failure:
            _log.warning("outbox shard %d: cannot write down that it is stuck: %s", self.lease.shard, failure)
        self._is_stuck = True
        self.problem = f"stuck at event {error.event_id}: {error.message}"
        self._stuck.set(1)
        await self._back_off()

    async def _back_off(self) -> None:
        ceiling = min(self._settings.backoff, 0.1 * 2.0 ** min(self._attempt, 16))
        self._attempt += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(ceiling / 2, ceiling)):  # noqa: S311 - jitter
                await self._stopping.wait()
        self.lease.require()

    async def _wait(self, seconds: float) -> None:
        if seconds == 0.0:
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._awake.wait()

    def _count(self, reader: WindowReader) -> None:
        self._statements.inc(reader.statements)
        reader.statements = 0


class _Pipeline:
    """One page on its way to Kafka, and behind it the cursor of what was acknowledged.

    A page is encoded while the one before it is on its way, and sent when that one is acknowledged. The cursor follows
    in the background, and not after every page: a commit for each of the small pages of a steady load would take more
    of Postgres than reading them does. What was acknowledged after the last move is published again after a crash.
    """

    def __init__(
        self,
        lease: Lease,
        conn: Connection,
        publisher: Publisher,
        skip: frozenset[int],
        *,
        move_every: float | None,
    ) -> None:
        self._lease = lease
        self._conn = conn
        self._publisher = publisher
        self._skip = skip
        self._move_every = move_every
        self.acknowledged = 0
        self._reached: Cursor | None = None
        self._stored: Cursor | None = None
        self._storing = asyncio.Lock()
        self._publishing: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        label = str(lease.shard)
        self._published = metrics.OUTBOX_PUBLISHED.labels(label)
        self._pages = metrics.OUTBOX_PAGES.labels(label)
        self._bytes = metrics.OUTBOX_BYTES.labels(label)
        self._lag = metrics.OUTBOX_LAG.labels(label)
        self._statements = metrics.OUTBOX_STATEMENTS.labels(label)

    async def put(self, page: Page, after: Cursor) -> None:
        """Send a page once the one before it is acknowledged. Raises what went wrong with that one."""
        try:
            encoded = await self._publisher.encode(page, self._skip)
        except Rejected as error:
            await self.flush()
            raise error.of(page) from error
        if self._publishing is not None:
            await self._publishing
        self.check()
        self._publishing = asyncio.create_task(self._publish(page, encoded, after))

    async def flush(self) -> None:
        """Return when everything put is acknowledged and its cursor stored."""
        if self._publishing is not None:
            await self._publishing
        await self._store_reached()

    async def store(self, cursor: Cursor) -> None:
        """Store a cursor without publishing anything. Only after `flush`; does nothing when it is what is stored."""
        self._reached = cursor
        await self._store_reached()

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        self._lease.require()
        if self._moving is not None and self._moving.done():
            self._moving.result()

    async def cancel(self) -> None:
        tasks = [task for task in (self._publishing, self._moving) if task is not None]
        for task in tasks:
            task.cancel()
        # Whatever they failed with was raised to the caller already, or comes from having been cancelled just now.
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _publish(self, page: Page, encoded: Encoded, after: Cursor) -> None:
        try:
            await self._publisher.publish(encoded, after)
        except Rejected as error:
            raise error.of(page) from error
        self.acknowledged += 1
        self._published.inc(encoded.events)
        self._bytes.inc(encoded.bytes)
        self._pages.inc()
        self._lag.set(max(0.0, time.time() - encoded.oldest / 1e6))
        if self._move_every is not None:
            self._reached = after
            if self._moving is None:
                self._moving = asyncio.create_task(self._move(self._move_every))

    async def _move(self, every: float) -> None:
        while True:
            await self._store_reached()
            await asyncio.sleep(every)

    async def _store_reached(self) -> None:
        async with self._storing:
            cursor = self._reached
            if cursor is None or cursor == self._stored:
                return
            self._statements.inc()
            await self._lease.move(self._conn, cursor)
            self._stored = cursor
