"""How long things took to have their effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True, slots=True)
class Waits:
    """Percentiles, in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, waits_ms: Sequence[float]) -> Waits:
        """Of at least two waits."""
        percentiles = quantiles(waits_ms, n=100, method="inclusive")
        return cls(p50_ms=percentiles[49], p95_ms=percentiles[94], p99_ms=percentiles[98], max_ms=max(waits_ms))
