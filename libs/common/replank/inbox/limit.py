"""A breaker on the dead letters themselves: a bad deploy must not dead-letter a whole topic."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from replank.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class DlqLimit:
    """How many events may die before the subscription stops instead.

    It stops rather than let more than ``max_ratio`` of the last ``window`` events die (once it has seen so many), or
    more than ``max_run`` in a row. Events that only follow a parked key do not count.
    """

    max_ratio: float = 0.5
    window: int = 100
    max_run: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.max_ratio <= 1 or self.window < 1 or self.max_run < 0:
            raise ConfigurationError(
                f"{self} makes no sense", fix="0 <= max_ratio <= 1, window at least 1, max_run at least 0"
            )


class DlqGauge:
    """Counts the lives and deaths of one subscription against its limit."""

    def __init__(self, limit: DlqLimit) -> None:
        self._limit = limit
        self._deaths: deque[bool] = deque(maxlen=limit.window)
        self._run = 0

    def lived(self, count: int = 1) -> None:
        """``count`` events were applied."""
        if count:
            self._run = 0
        self._deaths.extend([False] * min(count, self._limit.window))

    def died(self) -> str | None:
        """One more event is to die. Answers why it must not, or nothing, and then counts it."""
        if self._run + 1 > self._limit.max_run:
            return f"{self._run + 1} events in a row would be dead letters (limit {self._limit.max_run})"
        seen = [*self._deaths, True][-self._limit.window :]
        if len(seen) == self._limit.window and sum(seen) > self._limit.max_ratio * self._limit.window:
            return (
                f"{sum(seen)} of the last {len(seen)} events would be dead letters (limit {self._limit.max_ratio:.0%})"
            )
        self._run += 1
        self._deaths.append(True)
        return None
