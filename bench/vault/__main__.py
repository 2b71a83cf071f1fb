"""``make bench-vault``: schemas whose contents are in object storage, against whole contents in rows.

Needs REPLANK_TEST_POSTGRES (a superuser's DSN), REPLANK_TEST_KAFKA, REPLANK_TEST_VALKEY and REPLANK_TEST_S3_*.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import httpx

from bench import postgres, runs
from bench.report import Report
from bench.runs import Runs
from bench.vault import listing
from bench.vault.counters import Cost, costs
from bench.vault.listing import FIRST, OF_MANY, Listed, Question, Seeded
from bench.vault.sending import CONNECTIONS, Sent, send
from bench.vault.stand import NEW, OLD, PREFIXES, Door, Servers, Service, running_service
from bench.vault.streaming import Streamed, stream
from bench.vault.uploading import SIZES, Uploaded, upload
from bench.waits import Waits
from replank.testing.servers import setting

VAULT: Final = "vault"
ROWS: Final = "whole rows"
SOURCE_NEW: Final = "source, new"
SOURCE_OLD: Final = "source, old"

SUBJECTS: Final = ("counters", "list", "upload", "stream", "parallel")

_BOTH: Final = CONNECTIONS[0]
"""With so many connections schemas are sent to both; there is no time for more."""

# The figures of the guide that the vault was conceived from, in milliseconds: old pattern, new pattern. They are the
# floor. Its machine, its store and its schemas are not known.
_SOURCE_LIST_MS: Final = {10: (450, 50), 100: (4_200, 120), 1_000: (42_000, 800)}
_SOURCE_UPLOAD_MS: Final = {10: (2_100, 800), 50: (8_500, 2_100), 200: (35_000, 8_200)}


@dataclass(frozen=True, slots=True)
class Scale:
    """How big a run is."""

    totals: Sequence[int]
    """Schemas that there are when their first page is asked for; the last one is asked more."""
    rounds: int
    turns: int
    """Of one round of one question or upload."""
    schemas: int
    """Sent in parallel."""
    mib: int
    """Of the content that is streamed."""


FULL: Final = Scale((10, 100, 1_000, 100_000), rounds=3, turns=100, schemas=1_000, mib=1_024)
QUICK: Final = Scale((10, 100, 1_000, 5_000), rounds=1, turns=20, schemas=100, mib=64)


class Bench:
    """Asks one running service for everything, in both of its modes, and collects what that took."""

    def __init__(self, at: Servers, scale: Scale, report: Report, attempts: Runs) -> None:
        self._at = at
        self._scale = scale
        self._report = report
        self._attempts = attempts

    async def run(self, subjects: Sequence[str]) -> None:
        """Subject by subject."""
        # Before the service runs: what it does beside requests would be counted, too.
        if "counters" in subjects:
            await self._count()
        measures: Mapping[str, Callable[[Service], Awaitable[None]]] = {
            "list": self._list,
            "upload": self._upload,
            "stream": self._stream,
            "parallel": self._send,
        }
        wanted = [measure for subject, measure in measures.items() if subject in subjects]
        if wanted:
            async with running_service(self._at) as service:
                for measure in wanted:
                    await measure(service)

    async def _list(self, service: Service) -> None:
        seeded = Seeded(service.place.dsn)
        async with service.client() as client:
            new, old = _doors(client)
            for total in self._scale.totals:
                await self._attempts.attempt(f"{total:,} schemas", partial(seeded.grow, total), lambda _: "are there")
                questions = (FIRST, *OF_MANY) if total == self._scale.totals[-1] else (FIRST,)
                for number in range(self._scale.rounds):
                    for question in questions:
                        await self._ask(new, old, question, total, number)
        for total, (before, after) in _SOURCE_LIST_MS.items():
            self._report.add(SOURCE_OLD, f"list {total:,}.p95_ms", before, "ms")
            self._report.add(SOURCE_NEW, f"list {total:,}.p95_ms", after, "ms")

    async def _ask(self, new: Door, old: Door, question: Question, total: int, number: int) -> None:
        name = f"list {total:,}" if question is FIRST else f"list {total:,}, {question.name}"
        listed = await self._attempts.attempt(
            f"round {number + 1}: {name}",
            partial(listing.ask, new, old, question, total=total, turns=self._scale.turns),
            _of_listed,
        )
        if listed is not None:
            self._add_waits(name, listed.new, listed.old)

    async def _upload(self, service: Service) -> None:
        async with service.client() as client:
            new, old = _doors(client)
            for number in range(self._scale.rounds):
                for fields in SIZES:
                    uploaded = await self._attempts.attempt(
                        f"round {number + 1}: upload {fields}",
                        partial(upload, new, old, fields, turns=self._scale.turns),
                        _of_uploaded,
                    )
                    if uploaded is not None:
                        self._add_waits(f"upload {fields}", uploaded.new, uploaded.old)
        for fields, (before, after) in _SOURCE_UPLOAD_MS.items():
            self._report.add(SOURCE_OLD, f"upload {fields}.p95_ms", before, "ms")
            self._report.add(SOURCE_NEW, f"upload {fields}.p95_ms", after, "ms")

    async def _send(self, service: Service) -> None:
        for connections in CONNECTIONS:
            async with service.client(connections) as client:
                for subject, door in zip((VAULT, ROWS), _doors(client), strict=True):
                    if subject == ROWS and connections != _BOTH:
                        continue
                    sent = await self._attempts.attempt(
                        f"{subject}: {self._scale.schemas:,} schemas over {connections}",
                        partial(send, door, schemas=self._scale.schemas, connections=connections),
                        _of_sent,
                    )
                    if sent is not None:
                        name = f"parallel {connections}"
                        self._report.add(subject, f"{name}.new_per_s", sent.new_per_s, "schemas/s")
                        self._report.add(subject, f"{name}.new_mib_s", sent.new_mib_s, "MiB/s")
                        self._report.add(subject, f"{name}.known_per_s", sent.known_per_s, "schemas/s")

    async def _stream(self, service: Service) -> None:
        async with service.client() as client:
            new, _ = _doors(client)
            streamed = await self._attempts.attempt(
                f"{self._scale.mib:,} MiB", partial(stream, new, service.process, mib=self._scale.mib), _of_streamed
            )
        if streamed is None:
            return
        for name, value, unit in (
            ("received_mb_s", streamed.received_mb_s, "MB/s"),
            ("published_mb_s", streamed.published_mb_s, "MB/s"),
            ("read_mb_s", streamed.read_mb_s, "MB/s"),
            ("range_ms", streamed.range_ms, "ms"),
            ("send_growth_mib", streamed.send_growth_mib, "MiB"),
            ("read_growth_mib", streamed.read_growth_mib, "MiB"),
            ("peak_mib", streamed.peak_mib, "MiB"),
        ):
            self._report.add(VAULT, f"stream {streamed.mib:,}.{name}", value, unit)

    async def _count(self) -> None:
        at = self._at
        counted = await self._attempts.attempt("counters", partial(costs, at.postgres, at.s3, at.kafka), _of_costs)
        for kind, cost in (counted or {}).items():
            self._report.add(VAULT, f"{kind}.statements", cost.statements, "per request")
            self._report.add(VAULT, f"{kind}.connections", cost.connections, "per request")
            self._report.add(VAULT, f"{kind}.objects", cost.objects, "per request")

    def _add_waits(self, name: str, new: Waits, old: Waits | None) -> None:
        for subject, waits in ((VAULT, new), (ROWS, old)):
            if waits is not None:
                self._report.add(subject, f"{name}.p50_ms", waits.p50_ms, "ms")
                self._report.add(subject, f"{name}.p95_ms", waits.p95_ms, "ms")
        if old is not None:
            self._report.add(VAULT, f"{name}.ratio", old.p50_ms / new.p50_ms, "x")


def _doors(client: httpx.AsyncClient) -> tuple[Door, Door]:
    return Door(client, PREFIXES[NEW]), Door(client, PREFIXES[OLD])


def _of_listed(listed: Listed) -> str:
    return _side_by_side(listed.new, listed.old)


def _of_uploaded(uploaded: Uploaded) -> str:
    return _side_by_side(uploaded.new, uploaded.old)


def _side_by_side(new: Waits, old: Waits | None) -> str:
    text = f"p50 {new.p50_ms:.1f} ms, p95 {new.p95_ms:.1f} ms"
    return text if old is None else f"{text}; whole rows: {old.p50_ms:.1f} ms, {old.p95_ms:.1f} ms"


def _of_sent(sent: Sent) -> str:
    return f"{sent.new_per_s:,.0f} schemas/s ({sent.new_mib_s:.1f} MiB/s), known {sent.known_per_s:,.0f} schemas/s"


def _of_streamed(streamed: Streamed) -> str:
    return (
        f"received at {streamed.received_mb_s:.0f} MB/s, read at {streamed.read_mb_s:.0f} MB/s, the service grew by"
        f" {streamed.send_growth_mib:.0f} MiB and {streamed.read_growth_mib:.0f} MiB"
    )


def _of_costs(counted: Mapping[str, Cost]) -> str:
    return ", ".join(f"{kind} {cost.statements:g}" for kind, cost in counted.items()) + " statements"


def _headline(report: Report, scale: Scale) -> dict[str, float | None]:
    most = f"list {scale.totals[-1]:,}"
    metrics: dict[str, str] = {
        **{f"list_{total}_p95_ms": f"list {total:,}.p95_ms" for total in scale.totals},
        "words_p95_ms": f"{most}, by a word.p95_ms",
        "x_list": f"{most}.ratio",
        **{f"upload_{fields}_p95_ms": f"upload {fields}.p95_ms" for fields in SIZES},
        **{f"parallel_{count}_per_s": f"parallel {count}.new_per_s" for count in CONNECTIONS},
        f"known_{_BOTH}_per_s": f"parallel {_BOTH}.known_per_s",
        "send_mb_s": f"stream {scale.mib:,}.received_mb_s",
        "read_mb_s": f"stream {scale.mib:,}.read_mb_s",
        "send_growth_mib": f"stream {scale.mib:,}.send_growth_mib",
        "read_growth_mib": f"stream {scale.mib:,}.read_growth_mib",
        "list_statements": "list.statements",
        "upload_statements": "upload.statements",
    }
    return {name: report.value(VAULT, metric) for name, metric in metrics.items()}


async def _main(arguments: argparse.Namespace) -> int:
    console = runs.console()
    report = Report("vault")
    runs.note_a_busy_machine(report)
    attempts = Runs(report, console)
    scale = QUICK if arguments.quick else FULL
    async with postgres.server(setting("REPLANK_TEST_POSTGRES")) as server:
        at = Servers(
            postgres=server,
            kafka=setting("REPLANK_TEST_KAFKA"),
            valkey=setting("REPLANK_TEST_VALKEY"),
            s3=(
                setting("REPLANK_TEST_S3_URL"),
                setting("REPLANK_TEST_S3_ACCESS_KEY"),
                setting("REPLANK_TEST_S3_SECRET_KEY"),
            ),
        )
        await Bench(at, scale, report, attempts).run(arguments.only or SUBJECTS)
    report.print(console)
    path = report.write()
    console.print(f"{os.cpu_count()} CPUs, shared by all servers, services and their client; written to {path}")
    print(report.last_line(_headline(report, scale)))
    return 1 if attempts.void else 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.vault", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and small: to try it, not to quote it")
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="leave out all others (may be repeated)")
    runs.run("vault", _main(parser.parse_args()))


if __name__ == "__main__":
    main()
