"""``make bench-outbox``: this relay, faststream-outbox and Debezium on the same load in one run.

Needs REPLANK_TEST_POSTGRES (a superuser's DSN; wal_level=logical for Debezium) and REPLANK_TEST_KAFKA.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from bench import postgres, runs
from bench.outbox import inbox
from bench.outbox.measure import Drain, Environment, Latency, drain, steady
from bench.outbox.subjects import SUBJECTS, missing, subject
from bench.report import Report
from bench.runs import Runs
from replank.testing.servers import setting

OURS: Final = "replank 0 %"
OURS_1PCT: Final = "replank 1 %"
OURS_100PCT: Final = "replank 100 %"
OURS_ONCE: Final = "replank exactly-once"
FASTSTREAM: Final = "faststream-outbox"
DEBEZIUM: Final = "debezium"
INBOX: Final = "inbox"


@dataclass(frozen=True, slots=True)
class Variant:
    """A subject on one load. ``steady`` says whether it also runs with the steady load."""

    label: str
    subject: str
    sampled: float
    steady: bool


VARIANTS: Final = (
    Variant(OURS, "replank", 0.0, steady=False),
    Variant(OURS_1PCT, "replank", 0.01, steady=True),
    Variant(OURS_100PCT, "replank", 1.0, steady=False),
    Variant(OURS_ONCE, "replank-exactly-once", 0.0, steady=True),
    Variant(FASTSTREAM, "faststream-outbox", 0.0, steady=True),
    Variant(DEBEZIUM, "debezium", 0.0, steady=True),
)

UNITS: Final = {
    "events_per_s": "events/s",
    "from_ready_per_s": "events/s",
    "from_start_per_s": "events/s",
    "cpu_us": "us/event",
    "rss_peak": "MB",
    "statements": "per event",
    "append_wal": "bytes/event",
    "append_wal_statements": "bytes/event",
    "relay_wal": "bytes/event",
    "relay_wal_statements": "bytes/event",
    "dead_tuples": "rows",
    "other_updates": "rows",
    "spans": "per event",
    "duplicates": "events",
    "out_of_order": "events",
    "p50_ms": "ms",
    "p99_ms": "ms",
    "max_ms": "ms",
    "late_ms": "ms",
}


class Bench:
    """Runs the variants in alternating order and collects what they measure."""

    def __init__(self, environment: Environment, report: Report, runs: Runs) -> None:
        self._environment = environment
        self._report = report
        self._runs = runs

    async def run(self, variants: Sequence[Variant], *, with_inbox: bool, rounds: int) -> None:
        """Every variant once a round, the drains before the steady loads; every other round goes backwards."""
        for number in range(rounds):
            order = list(variants) if number % 2 == 0 else list(reversed(variants))
            for variant in order:
                await self._measure(number, variant, "drain", drain)
            for variant in order:
                if variant.steady:
                    await self._measure(number, variant, "steady", steady)
            if with_inbox:
                await self._inbox(number)

    async def _measure(
        self,
        number: int,
        variant: Variant,
        phase: str,
        measure: Callable[..., Awaitable[Drain | Latency]],
    ) -> None:
        which = subject(variant.subject)
        measured = await self._runs.attempt(
            f"round {number + 1}, {phase}: {variant.label}",
            partial(measure, self._environment, which, sampled=variant.sampled),
            _summary,
            ours=which.name.startswith("replank"),
        )
        if measured is not None:
            self._add(variant.label, phase, measured)

    async def _inbox(self, number: int) -> None:
        for batch in (True, False):
            label = "replank inbox, batch" if batch else "replank inbox, single"
            rate = await self._runs.attempt(
                f"round {number + 1}: {label}",
                partial(inbox.apply, self._environment, batch=batch),
                _summary,
            )
            if rate is not None:
                self._report.add(label, "events_per_s", rate, UNITS["events_per_s"])

    def _add(self, label: str, phase: str, measured: Drain | Latency) -> None:
        for name, value in dataclasses.asdict(measured).items():
            scaled = value / 1e6 if name == "rss_peak" else value
            self._report.add(label, f"{phase}.{name}", scaled, UNITS[name])


def _summary(measured: Drain | Latency | float) -> str:
    match measured:
        case Drain():
            return f"{measured.events_per_s:,.0f} events/s"
        case Latency():
            return f"p50 {measured.p50_ms:.1f} ms, p99 {measured.p99_ms:.1f} ms"
        case rate:
            return f"{rate:,.0f} events/s"


def _headline(report: Report) -> dict[str, float | None]:
    ours = report.value(OURS, "drain.events_per_s")

    def ratio(numerator: float | None, denominator: float | None) -> float | None:
        return None if numerator is None or denominator is None else numerator / denominator

    def worst(metric: str) -> float | None:
        labels = (OURS, OURS_1PCT, OURS_100PCT, OURS_ONCE)
        return max((value for label in labels if (value := report.value(label, metric)) is not None), default=None)

    return {
        "drain_eps": ours,
        "x_debezium": ratio(ours, report.value(DEBEZIUM, "drain.events_per_s")),
        "x_faststream": ratio(ours, report.value(FASTSTREAM, "drain.events_per_s")),
        "eps_1pct": report.value(OURS_1PCT, "drain.events_per_s"),
        "eps_100pct": report.value(OURS_100PCT, "drain.events_per_s"),
        "exactly_once_ratio": ratio(report.value(OURS_ONCE, "drain.events_per_s"), ours),
        "p50_ms": report.value(OURS_1PCT, "steady.p50_ms"),
        "p99_ms": report.value(OURS_1PCT, "steady.p99_ms"),
        "debezium_p99_ms": report.value(DEBEZIUM, "steady.p99_ms"),
        "statements_per_event": worst("drain.statements"),
        "dead_tuples": worst("drain.dead_tuples"),
        "rss_mb": worst("drain.rss_peak"),
        "inbox_batch_eps": report.value("replank inbox, batch", "events_per_s"),
        "inbox_single_eps": report.value("replank inbox, single", "events_per_s"),
    }


async def _main(arguments: argparse.Namespace) -> int:
    console = runs.console()
    report = Report("outbox")
    only: Sequence[str] = arguments.only or ()
    variants = []
    for variant in VARIANTS:
        if only and variant.subject not in only:
            continue
        lacks = missing(variant.subject)
        if lacks is None and variant.sampled and not os.environ.get("REPLANK_TEST_OTLP"):
            lacks = "REPLANK_TEST_OTLP is not set, and without a collector tracing would cost less than it does"
        if lacks is None:
            variants.append(variant)
        else:
            report.note(f"{variant.label} is left out: {lacks}")
            console.print(f"{variant.label} is left out: {lacks}", style="yellow", soft_wrap=True)
    runs.note_a_busy_machine(report)
    attempts = Runs(report, console)
    quick = arguments.quick
    async with postgres.server(setting("REPLANK_TEST_POSTGRES")) as server:
        environment = Environment(
            server=server,
            kafka=setting("REPLANK_TEST_KAFKA"),
            backlog=50_000 if quick else 100_000,
            drain_timeout_s=30.0 if quick else 120.0,
            rate=2_000.0,
            warm_up=4_000,
            steady=6_000 if quick else 30_000,
            inbox_batch=20_000 if quick else 100_000,
            inbox_single=3_000 if quick else 10_000,
        )
        bench = Bench(environment, report, attempts)
        await bench.run(variants, with_inbox=not only or INBOX in only, rounds=1 if quick else 2)
    report.print(console)
    path = report.write()
    console.print(f"{os.cpu_count()} CPUs, shared by Postgres, Kafka, writer, consumer and relay; written to {path}")
    print(report.last_line(_headline(report)))
    return 1 if attempts.void else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.outbox", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round with fewer events: to try it, not to quote it")
    parser.add_argument(
        "--only", action="append", choices=[*SUBJECTS, INBOX], help="leave out all other subjects (may be repeated)"
    )
    runs.run("outbox", _main(parser.parse_args()))


if __name__ == "__main__":
    main()
