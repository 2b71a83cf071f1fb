"""One run of one subject: drain a backlog, or carry a steady load."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from bench import kafka
from bench.outbox.subjects import Subject, Target
from bench.outbox.verify import Arrivals, read_all
from bench.outbox.workload import ROWS
from bench.postgres import Server, churn
from bench.procs import Child, Command, module, running
from bench.runs import Void

_WATCH_S = 0.01
"""Between two looks at the end of the topic: 1 % of a drain of one second, and hardly a load."""
_QUIET_S = 1.0
"""A topic that has not grown for so long, and is long enough, has everything."""
_FILL_TIMEOUT_S = 120.0
_READY_TIMEOUT_S = 60.0
_VERIFY_TIMEOUT_S = 30.0
_FIRST_ARRIVAL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Environment:
    """The servers, and how big a run is."""

    server: Server
    kafka: str
    backlog: int
    """Events to drain."""
    drain_timeout_s: float
    rate: float
    """Events a second of the steady load."""
    warm_up: int
    """Events of the steady load that come first and are not counted: caches, connections, compilers."""
    steady: int
    """Events of the steady load that are counted."""
    inbox_batch: int
    """Events that a batch handler applies."""
    inbox_single: int
    """Events that a handler of single events applies."""


@dataclass(frozen=True, slots=True)
class Drain:
    """What draining a backlog took. Per-event figures are per event of the backlog unless said otherwise."""

    events_per_s: float
    """Between the first and the last look at which the topic had grown: no start-up of a process, no JVM boot."""
    from_ready_per_s: float
    """From the relay's saying that it is ready to the last event's being readable."""
    from_start_per_s: float
    """From the start of the relay's process to the last event's being readable."""
    cpu_us: float
    """CPU time of the relay per event, in the same span as ``events_per_s``, in microseconds."""
    rss_peak: int
    statements: float
    append_wal: float
    """WAL bytes of the whole server while the backlog was written, per event."""
    append_wal_statements: float
    """Those of the appending statements alone, without commits and without whatever else the server did."""
    relay_wal: float
    """WAL bytes of the whole server while the relay ran, per event."""
    relay_wal_statements: float
    """Those of the relay's statements alone."""
    dead_tuples: int
    """Dead row versions made in the event tables: updates and deletes, vacuumed since or not."""
    other_updates: int
    """Updated and deleted rows in other tables, such as cursors and leases."""
    spans: float
    """Spans that reached the collector, per event; by then the relay has stopped, so nothing is still on its way."""
    duplicates: int
    out_of_order: int


@dataclass(frozen=True, slots=True)
class Latency:
    """From just after a transaction's commit returned to the consumer's having the event, in milliseconds."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float
    """CPU time of the relay per event at this rate, idle polling included."""
    late_ms: float
    """By how much the writer was at worst behind its schedule: if large, the machine was slow, not only the relay."""
    duplicates: int
    out_of_order: int


async def drain(environment: Environment, subject: Subject, *, sampled: float) -> Drain:
    """Build a backlog, start the relay, watch the topic until everything is readable, and check every event."""
    server = environment.server
    events = environment.backlog
    async with (
        server.database() as dsn,
        kafka.topic(environment.kafka) as topic,
        kafka.reader(environment.kafka, topic) as consumer,
    ):
        target = Target(dsn=dsn, kafka=environment.kafka, topic=topic)
        await subject.prepare(target)
        await server.checkpoint()
        empty = await server.counters(dsn)
        async with running(_writer(subject, target, events, sampled)) as writer:
            await writer.finish(_FILL_TIMEOUT_S)
        full = await server.counters(dsn)

        started = time.monotonic()
        async with running(subject.relay(target)) as relay:
            growth = await _watch(kafka.EndOffsets(consumer), relay, events, environment.drain_timeout_s)
            drained = await server.counters(dsn)
            await relay.stop()
            said = relay.last_line
        arrivals = Arrivals(events)
        await read_all(consumer, arrivals, timeout_s=_VERIFY_TIMEOUT_S)
        arrivals.check(ordered=subject.ordered)
        versions = await churn(dsn, *subject.event_tables)

    appending, relaying = full - empty, drained - full
    between = events - growth.first.offsets
    return Drain(
        events_per_s=between / (growth.last.at - growth.first.at),
        from_ready_per_s=events / (growth.last.at - relay.ready_at),
        from_start_per_s=events / (growth.last.at - started),
        cpu_us=growth.cpu_s / between * 1e6,
        rss_peak=growth.rss_peak,
        statements=relaying.statements / events,
        append_wal=appending.server_wal / events,
        append_wal_statements=appending.statement_wal / events,
        relay_wal=relaying.server_wal / events,
        relay_wal_statements=relaying.statement_wal / events,
        dead_tuples=versions.named,
        other_updates=versions.other,
        spans=_spans_exported(said) / events if subject.traces else 0.0,
        duplicates=arrivals.duplicates,
        out_of_order=arrivals.out_of_order,
    )


@dataclass(frozen=True, slots=True)
class _Growth:
    first: kafka.Reached
    last: kafka.Reached
    cpu_s: float
    rss_peak: int


async def _watch(ends: kafka.EndOffsets, relay: Child, events: int, timeout_s: float) -> _Growth:
    """Follow the topic from its first record until it is complete and quiet."""
    deadline = time.monotonic() + _READY_TIMEOUT_S + timeout_s
    first = last = None
    cpu_first = cpu_last = 0.0
    rss_peak = 0
    async for reached in ends.growth(_WATCH_S):
        await relay.check()
        usage = relay.usage()
        rss_peak = max(rss_peak, usage.rss)
        if reached.offsets and first is None:
            first, cpu_first = reached, usage.cpu_s
        if last is None or reached.offsets > last.offsets:
            last, cpu_last = reached, usage.cpu_s
        elif last.offsets >= events and reached.at - last.at > _QUIET_S:
            break
        if reached.at > deadline:
            raise Void(f"only {reached.offsets} of {events} events were readable after {timeout_s:g} s")
    if first is None or last is None or last.offsets <= first.offsets:
        raise Void(f"{events} events arrived within one look: too few to measure a rate")
    return _Growth(first=first, last=last, cpu_s=cpu_last - cpu_first, rss_peak=rss_peak)


async def steady(environment: Environment, subject: Subject, *, sampled: float) -> Latency:
    """Carry a steady load with the relay and a consumer running, each in a process of its own."""
    events = environment.warm_up + environment.steady
    lasts_s = events / environment.rate
    server = environment.server
    async with server.database() as dsn, kafka.topic(environment.kafka) as topic:
        target = Target(dsn=dsn, kafka=environment.kafka, topic=topic)
        await subject.prepare(target)
        await server.checkpoint()
        with _scratch() as folder:
            committed, arrived = folder / "committed", folder / "arrived"
            consumer_command = module(
                "bench.outbox.consumer",
                *("--kafka", environment.kafka, "--topic", topic, "--events", str(events)),
                *("--timeout", str(_READY_TIMEOUT_S + lasts_s + _FIRST_ARRIVAL_TIMEOUT_S), "--stamps", str(arrived)),
            )
            async with running(subject.relay(target)) as relay, running(consumer_command) as consumer:
                await asyncio.gather(relay.ready(_READY_TIMEOUT_S), consumer.ready(_READY_TIMEOUT_S))
                cpu_before = relay.usage().cpu_s
                command = _writer(
                    subject, target, events, sampled, "--rate", str(environment.rate), "--stamps", str(committed)
                )
                async with running(command) as writer:
                    wrote = json.loads(await writer.finish(lasts_s + _FILL_TIMEOUT_S))
                seen = json.loads(await consumer.finish(_FIRST_ARRIVAL_TIMEOUT_S))
                cpu_s = relay.usage().cpu_s - cpu_before
            commits, arrivals = _stamps(committed), _stamps(arrived)
    if seen["distinct"] != events or seen["malformed"] or (subject.ordered and seen["out_of_order"]):
        raise Void(f"of {events} events at {environment.rate:g}/s the consumer has {seen}")
    waits = [(arrivals[number] - commits[number // ROWS]) / 1e6 for number in range(environment.warm_up, events)]
    percentiles = quantiles(waits, n=100)
    return Latency(
        p50_ms=percentiles[49],
        p99_ms=percentiles[98],
        max_ms=max(waits),
        cpu_us=cpu_s / events * 1e6,
        late_ms=wrote["late_s"] * 1e3,
        duplicates=seen["duplicates"],
        out_of_order=seen["out_of_order"],
    )


def _writer(subject: Subject, target: Target, events: int, sampled: float, *more: str) -> Command:
    return module(
        "bench.outbox.writer",
        *("--subject", subject.name, "--dsn", target.dsn, "--topic", target.topic),
        *("--events", str(events), "--sampled", str(sampled)),
        *more,
    )


def _spans_exported(last_line: str) -> float:
    try:
        return float(json.loads(last_line)["spans_exported"])
    except (ValueError, KeyError, TypeError):
        raise Void(f"the relay did not end in order; its last line was: {last_line}") from None


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-outbox-") as folder:
        yield Path(folder)


def _stamps(path: Path) -> array[int]:
    stamps = array("q")
    stamps.frombytes(path.read_bytes())
    return stamps
