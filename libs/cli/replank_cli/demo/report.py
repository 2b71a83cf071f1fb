"""How the demo speaks: a heading a chapter, a few lines each, and a verdict in the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from replank_cli.console import output, print_table

__all__ = ["Report", "Verdict", "counts", "latencies", "print_table"]


@dataclass(slots=True)
class Verdict:
    """What went wrong, in sentences. Nothing: all is well."""

    problems: list[str] = field(default_factory=list)

    def demand(self, holds: object, otherwise: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self.problems.append(otherwise)


class Report:
    """Numbers the chapters, and says how long the story is going."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._chapter = 0

    def chapter(self, title: str) -> None:
        """Begin one."""
        self._chapter += 1
        elapsed = time.monotonic() - self._began
        output.print(f"\n[bold]{self._chapter}. {title}[/]  [dim]{elapsed:.0f} s[/]", highlight=False)

    def say(self, text: str) -> None:
        """A line, as it is."""
        output.print(text, markup=False, highlight=False)

    def conclude(self, verdict: Verdict) -> None:
        """The last words."""
        output.print(f"Told in {time.monotonic() - self._began:.0f} s.", highlight=False)
        if not verdict.problems:
            output.print("[bold green]No request failed, no answer was wrong, and both stores agreed.[/]")
            return
        for problem in verdict.problems:
            output.print(f"wrong: {problem}", style="bold red", markup=False, highlight=False)


def counts(records: Mapping[str, int], rows: Mapping[str, int]) -> list[tuple[str, str, str, str]]:
    """A line for each entity, and one for all: how many there are in either store."""
    lines = [(name, records.get(name, 0), rows.get(name, 0)) for name in sorted(records.keys() | rows.keys())]
    lines.append(("all", sum(records.values()), sum(rows.values())))
    return [(name, f"{left:,}", f"{right:,}", "" if left == right else "differ") for name, left, right in lines]


def latencies(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> list[Sequence[object]]:
    """A line for each endpoint: how many requests, median and 99th percentile (ms), on either store."""
    return [
        (name, *(_of(side[name]) if name in side else "-" for side in (before, after)))
        for name in sorted(before.keys() | after.keys())
    ]


def _of(numbers: Mapping[str, Any]) -> str:
    return f"{numbers['p50']:.1f} / {numbers['p99']:.1f}  ({numbers['count']})"
