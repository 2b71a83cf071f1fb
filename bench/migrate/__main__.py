"""``make bench-migrate``: what a migration of a key-value store to tables costs while it runs, and what it gains.

Needs REPLANK_TEST_POSTGRES (a superuser's DSN) and REPLANK_TEST_KAFKA.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from bench import postgres, runs
from bench.migrate import questions
from bench.migrate.backfill import Backfilled, backfill
from bench.migrate.flags import change
from bench.migrate.lag import Lag, lag
from bench.migrate.questions import Answered
from bench.migrate.shop import Shop, installed, seeded
from bench.migrate.writing import SHAPES, Written, write
from bench.postgres import Server
from bench.report import Report
from bench.runs import Runs
from bench.waits import Waits
from replank.testing.servers import setting
from replank_storefront.generate import Sizes

BACKFILL: Final = "backfill"
OLD: Final = "key-value store"
NEW: Final = "tables"
PLAIN: Final = "not captured"
CAPTURED: Final = "captured"
FLAG: Final = "flag"
DUAL: Final = "dual write"

SUBJECTS: Final = ("backfill", "capture", "flags", "lag")
"""Questions are asked of what the backfill has moved."""
_RECORDS: Final = 1_000_000
_LARGEST_CLIENT_ORDERS: Final = 100_000
_SMALL_SHOP: Final = 20_000


@dataclass(frozen=True, slots=True)
class Scale:
    """How big a run is."""

    records: int
    """Of the shop that is moved."""
    largest_client_orders: int
    rounds: int
    slices: int
    """Turns of each database in a shape of writes."""
    slice_s: float
    flag_pairs: int
    """Changes back and forth."""
    writes: int
    """Of the steady load, after the warm-up."""


FULL: Final = Scale(_RECORDS, _LARGEST_CLIENT_ORDERS, rounds=3, slices=4, slice_s=1.0, flag_pairs=75, writes=7_500)
QUICK: Final = Scale(50_000, 5_000, rounds=1, slices=2, slice_s=0.5, flag_pairs=25, writes=2_500)
RATE: Final = 500.0
"""Writes a second of the steady load."""
WARM_UP: Final = 1_000


class Bench:
    """Runs the subjects in alternating order and collects what they measure."""

    def __init__(self, server: Server, kafka: str, scale: Scale, report: Report, attempts: Runs) -> None:
        self._server = server
        self._kafka = kafka
        self._scale = scale
        self._report = report
        self._attempts = attempts

    async def run(self, subjects: Sequence[str]) -> None:
        """Every subject once a round; every other round goes backwards."""
        server, scale = self._server, self._scale
        sizes = Sizes.of(scale.records, largest_client_orders=scale.largest_client_orders)
        small = Sizes.of(_SMALL_SHOP)
        async with (
            seeded(server, sizes) as shop,
            seeded(server, small) as plain,
            seeded(server, small) as captured,
            seeded(server, small) as carried,
        ):
            measures: Mapping[str, Callable[[int], Awaitable[None]]] = {
                "backfill": partial(self._move, shop),
                "capture": partial(self._write, plain, captured),
                "flags": self._change_flags,
                "lag": partial(self._write_steadily, carried),
            }
            for number in range(scale.rounds):
                for subject in subjects if number % 2 == 0 else reversed(subjects):
                    await measures[subject](number)

    async def _move(self, shop: Shop, number: int) -> None:
        async with installed(self._server, shop) as move:
            moved = await self._attempts.attempt(
                f"round {number + 1}: backfill", partial(backfill, self._server, move), _of_backfill
            )
            if moved is None:
                return
            self._add_backfill(moved)
            await questions.index(move)
            for question in await questions.questions(move):
                answered = await self._attempts.attempt(
                    f"round {number + 1}: {question.name}",
                    partial(questions.ask, self._server, move, question),
                    _of_question,
                )
                if answered is not None:
                    self._add_question(answered)

    async def _write(self, plain: Shop, captured: Shop, number: int) -> None:
        scale = self._scale
        written = await self._attempts.attempt(
            f"round {number + 1}: capture",
            partial(write, self._server, plain, captured, slices=scale.slices, slice_s=scale.slice_s),
            _of_writes,
        )
        if written is None:
            return
        for shape in SHAPES:
            for label, side in ((PLAIN, written.plain[shape]), (CAPTURED, written.captured[shape])):
                self._report.add(label, f"{shape}.rows_per_s", side.rows_per_s, "rows/s")
                self._report.add(label, f"{shape}.p50_ms", side.p50_ms, "ms")
                self._report.add(label, f"{shape}.p99_ms", side.p99_ms, "ms")
            self._report.add(CAPTURED, f"{shape}.ratio", written.ratio(shape), "x")

    async def _change_flags(self, number: int) -> None:
        waits = await self._attempts.attempt(
            f"round {number + 1}: flags",
            partial(change, self._server, self._kafka, pairs=self._scale.flag_pairs),
            _of_waits,
        )
        if waits is not None:
            self._add_waits(FLAG, waits)

    async def _write_steadily(self, shop: Shop, number: int) -> None:
        measured = await self._attempts.attempt(
            f"round {number + 1}: lag",
            partial(lag, self._server, shop, self._kafka, rate=RATE, warm_up=WARM_UP, writes=self._scale.writes),
            _of_lag,
        )
        if measured is not None:
            self._add_waits(DUAL, measured.waits)
            self._report.add(DUAL, "late_ms", measured.late_ms, "ms")
            self._report.add(DUAL, "carry_cpu_us", measured.carry_cpu_us, "us/write")

    def _add_backfill(self, moved: Backfilled) -> None:
        quarters = [(f"quarter_{n}", rate, "records/s") for n, rate in enumerate(moved.quarters, 1)]
        for name, value, unit in (
            ("records_per_s", moved.records_per_s, "records/s"),
            ("table_rows_per_s", moved.table_rows_per_s, "rows/s"),
            *quarters,
            ("orders_last_to_first", moved.orders_last_to_first, "x"),
            ("python_cpu_us", moved.python_cpu_us, "us/record"),
            ("source_cpu_us", moved.source_cpu_us, "us/record"),
            ("target_cpu_us", moved.target_cpu_us, "us/record"),
            ("statements", moved.statements, "per record"),
            ("wal", moved.wal, "bytes/record"),
            ("dead_tuples", moved.dead_tuples, "rows"),
        ):
            if value is not None:
                self._report.add(BACKFILL, name, value, unit)

    def _add_question(self, answered: Answered) -> None:
        name = answered.question
        for label, queries, ms in (
            (OLD, answered.old_queries, answered.old_ms),
            (NEW, answered.new_queries, answered.new_ms),
        ):
            self._report.add(label, f"{name}.queries", queries, "queries")
            self._report.add(label, f"{name}.p50_ms", ms, "ms")
        self._report.add(NEW, f"{name}.ratio", answered.ratio, "x")
        self._report.add(NEW, f"{name}.round_trip_ms", answered.round_trip_ms, "ms")

    def _add_waits(self, label: str, waits: Waits) -> None:
        self._report.add(label, "p50_ms", waits.p50_ms, "ms")
        self._report.add(label, "p99_ms", waits.p99_ms, "ms")
        self._report.add(label, "max_ms", waits.max_ms, "ms")


def _of_backfill(moved: Backfilled) -> str:
    return f"{moved.records_per_s:,.0f} records/s"


def _of_question(answered: Answered) -> str:
    return (
        f"{answered.old_queries:,.0f} -> {answered.new_queries:,.0f} queries,"
        f" {answered.old_ms:,.1f} -> {answered.new_ms:,.2f} ms, {answered.ratio:,.0f} x"
    )


def _of_writes(written: Written) -> str:
    return ", ".join(f"{shape} {written.ratio(shape):.2f} x" for shape in SHAPES)


def _of_waits(waits: Waits) -> str:
    return f"p50 {waits.p50_ms:.1f} ms, p99 {waits.p99_ms:.1f} ms"


def _of_lag(measured: Lag) -> str:
    return _of_waits(measured.waits)


def _headline(report: Report) -> dict[str, float | None]:
    return {
        "backfill_rps": report.value(BACKFILL, "records_per_s"),
        "backfill_table_rps": report.value(BACKFILL, "table_rows_per_s"),
        "backfill_last_to_first": report.value(BACKFILL, "orders_last_to_first"),
        "backfill_statements": report.value(BACKFILL, "statements"),
        "backfill_dead_tuples": report.value(BACKFILL, "dead_tuples"),
        "capture_ratio": report.value(CAPTURED, "single.ratio"),
        "capture_ratio_async": report.value(CAPTURED, "single, async.ratio"),
        "capture_ratio_multi": report.value(CAPTURED, "multi.ratio"),
        "x_list": report.value(NEW, "list.ratio"),
        "x_list_away": report.value(NEW, "list, away.ratio"),
        "x_report": report.value(NEW, "report.ratio"),
        "x_search": report.value(NEW, "search.ratio"),
        "flag_p50_ms": report.value(FLAG, "p50_ms"),
        "flag_p99_ms": report.value(FLAG, "p99_ms"),
        "lag_p50_ms": report.value(DUAL, "p50_ms"),
        "lag_p99_ms": report.value(DUAL, "p99_ms"),
    }


async def _main(arguments: argparse.Namespace) -> int:
    console = runs.console()
    report = Report("migrate")
    runs.note_a_busy_machine(report)
    attempts = Runs(report, console)
    scale = QUICK if arguments.quick else FULL
    async with postgres.server(setting("REPLANK_TEST_POSTGRES")) as server:
        bench = Bench(server, setting("REPLANK_TEST_KAFKA"), scale, report, attempts)
        await bench.run([subject for subject in SUBJECTS if subject in (arguments.only or SUBJECTS)])
    report.print(console)
    path = report.write()
    console.print(f"{os.cpu_count()} CPUs, shared by Postgres, Kafka and all processes; written to {path}")
    print(report.last_line(_headline(report)))
    return 1 if attempts.void else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.migrate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of a small shop: to try it, not to quote it")
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="leave out all others (may be repeated)")
    runs.run("migrate", _main(parser.parse_args()))


if __name__ == "__main__":
    main()
