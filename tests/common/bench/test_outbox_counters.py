"""The costs of the outbox that do not depend on how fast the machine is, held against `bench/baseline.json`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import bench
from bench import postgres
from bench.kafka import PARTITIONS, EndOffsets, reader
from bench.outbox.subjects import Target, subject
from bench.outbox.verify import Arrivals, read_all
from bench.outbox.workload import ROWS
from bench.outbox.writer import write
from bench.postgres import churn
from replank.outbox.relay import Relay
from replank.testing.plugin import TopicFactory
from replank.testing.wait import eventually

EVENTS = 20_000
BASELINE = json.loads((Path(bench.__file__).parent / "baseline.json").read_text())["outbox"]


async def test_a_drained_event_costs_no_more_than_the_baseline(
    postgres_server: str, postgres_dsn: str, kafka: str, topic_factory: TopicFactory
) -> None:
    topic = await topic_factory(partitions=PARTITIONS)
    replank = subject("replank")
    target = Target(dsn=postgres_dsn, kafka=kafka, topic=topic)
    await replank.prepare(target)
    async with postgres.server(postgres_server) as server, reader(kafka, topic) as consumer:
        empty = await server.counters(postgres_dsn)
        await write(target, replank.append(target), transactions=range(EVENTS // ROWS), sampled=0.0)
        full = await server.counters(postgres_dsn)

        stop = asyncio.Event()
        relay = asyncio.create_task(Relay(dsn=postgres_dsn, kafka=kafka).run(stop))
        ends = EndOffsets(consumer)

        async def drained() -> bool:
            return relay.done() or (await ends.now()).offsets >= EVENTS

        await eventually(drained, f"{EVENTS} events are in the topic", within=60)
        stop.set()
        await relay
        after = await server.counters(postgres_dsn)

        # The counters mean something only if every event was published, once and in order.
        assert (await ends.now()).offsets == EVENTS
        arrivals = Arrivals(EVENTS)
        await read_all(consumer, arrivals, timeout_s=30)
        arrivals.check(ordered=True)

    dead = await churn(postgres_dsn, *replank.event_tables)
    measured = {
        "statements_per_event": (after - full).statements / EVENTS,
        "dead_tuples": dead.named,
        "append_wal_bytes_per_event": (full - empty).statement_wal / EVENTS,
        "relay_wal_bytes_per_event": (after - full).statement_wal / EVENTS,
    }
    assert measured.keys() == BASELINE.keys()
    over = {name: value for name, value in measured.items() if value > BASELINE[name]}
    assert not over, f"over the baseline {BASELINE}: {over}"
