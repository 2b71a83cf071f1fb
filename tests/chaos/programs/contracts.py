"""The events of the flow. Each test has its own topics, of which the environment tells the programs."""

from __future__ import annotations

import os

from replank.events import Event

MOVES = os.environ["CHAOS_TOPIC"]
ECHOES = f"{MOVES}.echoes"


class Moved(Event, type="test.chaos.moved.v1", topic=MOVES):
    """The account ``key`` moved for the ``sequence``-th time; the first is 1."""

    key: str
    sequence: int


class Echoed(Event, type="test.chaos.echoed.v1", topic=ECHOES):
    """The consumer's own event about that: it takes the same way once more."""

    key: str
    sequence: int
