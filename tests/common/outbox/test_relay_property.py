"""The relay under everything at once: random writers, rollbacks, long transactions, crashes, lost leases, bad Kafka.

Nothing missing, nothing extra, the first delivery of a key's events in commit order; duplicates only after a
disturbance in at-least-once delivery, and never in exactly-once delivery.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from replank import outbox
from replank.outbox import lease as leases
from replank.outbox.lease import LeaseLost
from replank.outbox.publisher import KafkaPublisher
from replank.outbox.settings import RelaySettings
from replank.outbox.shard import ShardWorker
from replank.testing import servers
from replank.testing.wait import eventually
from tests.common.outbox.events import header, published, put_many
from tests.common.outbox.recording import Fault, Log, Record

T = TypeVar("T")

WRITERS = 3
KEYS = ("a", "b", "c", "d")


class Writer:
    """A connection with at most one open transaction; knows which events it will have committed."""

    def __init__(self, conn: asyncpg.Connection[Any]) -> None:
        self.conn = conn
        # One list for the transaction, one more for every open savepoint.
        self.pending: list[list[Record]] = []
        self.keys: set[str] = set()

    @property
    def open(self) -> bool:
        return bool(self.pending)


class Outbox(RuleBasedStateMachine):
    dsn: ClassVar[str]
    loop: ClassVar[asyncio.AbstractEventLoop]
    admin: ClassVar[asyncpg.Connection[Any]]
    connections: ClassVar[list[asyncpg.Connection[Any]]]
    exactly_once: ClassVar[bool] = False
    kafka: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.log = Log(transactional=self.exactly_once)
        self.topic = servers.fresh_name()
        self.committed: list[Record] = []
        self.disturbed = False
        self.workers: list[tuple[ShardWorker, asyncio.Task[None]]] = []
        self.names = 0
        self.writers: list[Writer] = []

    def run_now(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(page_rows=st.integers(1, 5), chunk_rows=st.integers(1, 20))
    def begin(self, page_rows: int, chunk_rows: int) -> None:
        self.settings = RelaySettings(
            delivery="exactly_once" if self.exactly_once else "at_least_once",
            page_rows=page_rows,
            chunk_rows=chunk_rows,
            poll_interval=0.001,
            linger=0.001,
            checkpoint=0.01,
            backoff=0.01,
            lease=30,
            cursor_topic=f"{self.topic}.cursors",
        )
        self.run_now(self._begin())

    async def _begin(self) -> None:
        await self.admin.execute(
            "truncate replank_outbox.event; update replank_outbox.shard set previous = '1:1:', current = null, "
            "last_id = 0, window_number = 0, lease_until = '-infinity'"
        )
        self.writers = [Writer(conn) for conn in self.connections]
        if self.kafka is not None:
            await servers.create_topic(self.kafka, self.topic, partitions=2)

    # --- writers ---

    @rule(writer=st.integers(0, WRITERS - 1), keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=6))
    def append(self, writer: int, keys: list[str]) -> None:
        """Append to a transaction, opening it first. A key that another transaction holds would block: leave it out."""
        self.run_now(self._append(self.writers[writer], keys))

    async def _append(self, writer: Writer, keys: list[str]) -> None:
        free = [key for key in keys if not any(key in other.keys for other in self.writers if other is not writer)]
        if not writer.open:
            await writer.conn.execute("begin")
            writer.pending.append([])
        if free:
            ids = await put_many(writer.conn, self.topic, free)
            writer.keys.update(free)
            writer.pending[-1] += [Record(id_, self.topic, key, 0) for id_, key in zip(ids, free, strict=True)]

    @precondition(lambda self: any(writer.open for writer in self.writers))
    @rule(writer=st.integers(0, WRITERS - 1))
    def savepoint(self, writer: int) -> None:
        it = self.writers[writer]
        if it.open:
            self.run_now(it.conn.execute(f"savepoint s{len(it.pending)}"))
            it.pending.append([])

    @precondition(lambda self: any(len(writer.pending) > 1 for writer in self.writers))
    @rule(writer=st.integers(0, WRITERS - 1))
    def rollback_to_savepoint(self, writer: int) -> None:
        it = self.writers[writer]
        if len(it.pending) > 1:
            it.pending.pop()
            self.run_now(it.conn.execute(f"rollback to savepoint s{len(it.pending)}"))

    @precondition(lambda self: any(writer.open for writer in self.writers))
    @rule(writer=st.integers(0, WRITERS - 1), commit=st.sampled_from([True, True, True, False]))
    def end_transaction(self, writer: int, commit: bool) -> None:
        self._end_transaction(self.writers[writer], commit)

    def _end_transaction(self, writer: Writer, commit: bool) -> None:
        if writer.open:
            self.run_now(writer.conn.execute("commit" if commit else "rollback"))
            if commit:
                self.committed += [record for part in writer.pending for record in part]
            writer.pending.clear()
            writer.keys.clear()

    # --- relays ---

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def take_over(self) -> None:
        """A relay takes the shard: from nobody, from one that crashed, or from one that still believes it has it."""
        if self.workers:
            self.disturbed = True
        self.run_now(self._take_over())

    async def _take_over(self) -> None:
        self.names += 1
        async with self.admin.transaction():
            await self.admin.execute("update replank_outbox.shard set lease_until = '-infinity'")
            lease = await leases.claim(self.admin, f"relay-{self.names}", 30)
        assert lease is not None
        factory = self.log.publisher if self.kafka is None else self._kafka_publisher
        worker = ShardWorker(self.dsn, lease, 1, self.settings, factory)
        self.workers.append((worker, asyncio.create_task(worker.run())))

    def _kafka_publisher(self, shard: int, _cluster: str) -> KafkaPublisher:
        assert self.kafka is not None
        transactional_id = f"{self.topic}.{shard}" if self.exactly_once else None
        return KafkaPublisher(self.kafka, self.settings, shard, transactional_id=transactional_id)

    @rule(milliseconds=st.integers(0, 30))
    def let_it_work(self, milliseconds: int) -> None:
        """The only meaning of time here is where a crash hits."""
        self.run_now(asyncio.sleep(milliseconds / 1000))

    @precondition(lambda self: self.workers)
    @rule(turns=st.integers(0, 40))
    def crash(self, turns: int) -> None:
        """The relay dies at whatever await it has reached."""
        self.disturbed = True
        self.run_now(self._crash(turns))

    async def _crash(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        _, task = self.workers.pop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @precondition(lambda self: self.workers)
    @rule()
    def stop(self) -> None:
        self.run_now(self._stop())

    async def _stop(self) -> None:
        worker, task = self.workers.pop()
        worker.stop()
        with contextlib.suppress(LeaseLost):  # it was taken over before
            await task

    @precondition(lambda self: self.kafka is None)
    @rule(faults=st.lists(st.sampled_from(["before", "after"]), min_size=1, max_size=3))
    def kafka_fails(self, faults: list[Fault]) -> None:
        """The next pages fail: before Kafka took them, or after, so that only the acknowledgement is lost."""
        self.disturbed = True
        self.log.faults += faults

    # --- the end ---

    def teardown(self) -> None:
        if self.writers:
            try:
                self._settle()
            finally:
                self.run_now(self._close())

    def _settle(self) -> None:
        for writer in self.writers:
            self._end_transaction(writer, commit=True)
        self.run_now(self._publish_the_rest())
        records = self.log.records
        if self.kafka is not None:
            records = self.run_now(self._records_in_kafka())
        ids = [record.event_id for record in records]
        first = list(dict.fromkeys(ids))
        assert set(first) == {record.event_id for record in self.committed}
        position = {event_id: place for place, event_id in enumerate(first)}
        for key in KEYS:
            expected = [record.event_id for record in self.committed if record.key == key]
            assert sorted(expected, key=position.__getitem__) == expected, f"key {key} is out of order"
        if self.exactly_once or not self.disturbed:
            assert len(ids) == len(first), "published twice"

    async def _publish_the_rest(self) -> None:
        while self.workers:
            await self._stop()
        self.log.faults.clear()
        await self._take_over()
        # The depth is of what is stored; a quiet shard writes its cursor down every few milliseconds here.
        await eventually(self._is_empty, "everything committed is published", within=30)
        await self._stop()

    async def _is_empty(self) -> bool:
        _, task = self.workers[-1]
        if task.done():
            task.result()
        return (await outbox.status(self.admin)).depth == 0

    async def _records_in_kafka(self) -> list[Record]:
        assert self.kafka is not None
        found = await published(self.kafka, self.topic)
        return [Record(header(record, "ce_id") or "", self.topic, (record.key or b"").decode(), 0) for record in found]

    async def _close(self) -> None:
        for _, task in self.workers:
            task.cancel()
        await asyncio.gather(*(task for _, task in self.workers), return_exceptions=True)
        if self.kafka is not None:
            await servers.delete_topics(self.kafka, [self.topic])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("exactly_once", [False, True], ids=["at_least_once", "exactly_once"])
def test_nothing_is_missing_and_keys_stay_in_order(postgres_server: str, exactly_once: bool) -> None:
    _run(postgres_server, exactly_once=exactly_once, kafka=None, examples=50, steps=30)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("exactly_once", [False, True], ids=["at_least_once", "exactly_once"])
def test_nothing_is_missing_and_keys_stay_in_order_in_kafka(
    postgres_server: str, kafka: str, exactly_once: bool
) -> None:
    _run(postgres_server, exactly_once=exactly_once, kafka=kafka, examples=6, steps=25)


def _run(server_dsn: str, *, exactly_once: bool, kafka: str | None, examples: int, steps: int) -> None:
    with asyncio.Runner() as runner:

        async def everything() -> None:
            async with servers.database(server_dsn) as dsn:
                conn = await asyncpg.connect(dsn)
                await outbox.install(conn)
                await conn.close()
                # The machine is synchronous and drives a loop of its own, so it runs in a thread.
                await asyncio.to_thread(_machine, dsn, exactly_once, kafka, examples, steps)

        runner.run(everything())


def _machine(dsn: str, exactly_once: bool, kafka: str | None, examples: int, steps: int) -> None:
    loop = asyncio.new_event_loop()
    admin, *connections = [loop.run_until_complete(asyncpg.connect(dsn)) for _ in range(1 + WRITERS)]
    fixed = {
        "dsn": dsn,
        "loop": loop,
        "admin": admin,
        "connections": connections,
        "exactly_once": exactly_once,
        "kafka": kafka,
    }
    machine = type("Outbox", (Outbox,), fixed)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )
    finally:
        for conn in (admin, *connections):
            loop.run_until_complete(conn.close())
        loop.close()
