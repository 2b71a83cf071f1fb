"""How long each recovery took, printed after the tests: figures to read, which nothing is gated on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from typing import Final

_recoveries: Final[dict[str, list[tuple[float, float]]]] = defaultdict(list)
_remarks: Final[list[str]] = []


def note(victim: str, *, start: float, caught_up: float) -> None:
    """Keep one recovery: how long the victim took to start, and then the flow to catch up, in seconds."""
    _recoveries[victim].append((start, caught_up))


def remark(text: str) -> None:
    """Keep a sentence."""
    _remarks.append(text)


def report() -> Iterator[str]:
    """The lines to print; none if there was no recovery."""
    for victim, times in _recoveries.items():
        starts, waits = zip(*times, strict=True)
        yield (
            f"{victim:<28} {len(times):>2} x  started in {median(starts):5.1f} s, "
            f"then caught up in {median(waits):5.1f} s (at most {max(waits):.1f} s)"
        )
    yield from _remarks
