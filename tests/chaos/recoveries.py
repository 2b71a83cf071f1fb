"""How long each recovery took, printed after the tests: figures to read, which nothing is gated on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from typing import Final

_recoveries: Final[dict[str, list[tuple[float, float]]]] = defaultdict(list)
_published: Final[dict[str, list[int]]] = defaultdict(lambda: [0, 0])


def note(victim: str, *, start: float, caught_up: float) -> None:
    """Keep one recovery: how long the victim took to start, and then the flow to catch up, in seconds."""
    _recoveries[victim].append((start, caught_up))


def published(delivery: str, *, events: int, again: int) -> None:
    """Count the events of a topic, and those of them that were published more than once."""
    counts = _published[delivery]
    counts[0] += events
    counts[1] += again


def report() -> Iterator[str]:
    """The lines to print; none if there was no recovery."""
    for victim, times in _recoveries.items():
        starts, waits = zip(*times, strict=True)
        yield (
            f"{victim:<28} {len(times):>2} x  started in {median(starts):5.1f} s, "
            f"then caught up in {median(waits):5.1f} s (at most {max(waits):.1f} s)"
        )
    for delivery, (events, again) in _published.items():
        yield f"{delivery}: of {events} events {again} were published again"
