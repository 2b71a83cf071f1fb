"""The same asked of several sides in turns, so that what else the machine does falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.waits import Waits

_WARM_UP: Final = 5
"""Turns that do not count: the first times prepare statements and open connections, which happens once."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that are asked: ``ask`` gets another number each time; ``every``: only in so many turns."""

    ask: Callable[[int], Awaitable[Any]]
    every: int = 1


async def in_turns(*sides: Side, turns: int) -> Sequence[Waits]:
    """How long each side took to answer. A B, B A, A B …"""
    waits_ms: list[list[float]] = [[] for _ in sides]
    for number in range(-_WARM_UP, turns):
        turn = [(place, side) for place, side in enumerate(sides) if number < 0 or number % side.every == 0]
        for place, side in turn if number % 2 == 0 else reversed(turn):
            began = time.perf_counter()
            await side.ask(number)
            if number >= 0:
                waits_ms[place].append((time.perf_counter() - began) * 1e3)
    return [Waits.of(waits) for waits in waits_ms]
