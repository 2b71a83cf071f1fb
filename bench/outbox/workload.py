"""The events that every subject carries: the same bytes, keys, transactions and headers for all.

Events are numbered from 0. Event ``n`` belongs to the aggregate ``n % AGGREGATES``, so that the numbers of one key
ascend in the order in which they were committed, which is what a consumer checks. `ROWS` consecutive events make one
transaction; transaction ``b`` belongs to connection ``b % CONNECTIONS``. Since CONNECTIONS divides the number of
transactions after which keys come round again, one connection writes all events of a key, and no order is left to
chance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from replank.events import Event

AGGREGATES: Final = 1_000
ROWS: Final = 10
CONNECTIONS: Final = 10
VALUE_BYTES: Final = 500
SOURCE: Final = "bench"
EVENT_TYPE: Final = "bench.order.placed.v1"


@dataclass(frozen=True, slots=True)
class Row:
    """One event as a subject appends it."""

    number: int
    key: str
    note: str
    traceparent: str


class OrderPlaced(Event):
    """``note`` fills the value up to `VALUE_BYTES`."""

    number: int
    note: str

    @classmethod
    def of(cls, row: Row) -> OrderPlaced:
        return cls(number=row.number, note=row.note)


def event_class(topic: str) -> type[OrderPlaced]:
    """The contract of the benchmark's event, for the topic of one run."""

    class Placed(OrderPlaced, type=EVENT_TYPE, topic=topic):
        pass

    return Placed


class Transactions:
    """What one connection writes, in order. ``sampled`` is the share of the transactions that is traced."""

    def __init__(self, *, connection: int, sampled: float) -> None:
        self._connection = connection
        self._sampled = sampled
        self._random = random.Random(connection)

    def between(self, first: int, last: int) -> Iterator[tuple[int, list[Row]]]:
        """The transactions of this connection with ``first <= index < last``, each with its index."""
        start = first + (self._connection - first) % CONNECTIONS
        for index in range(start, last, CONNECTIONS):
            traceparent = self._traceparent()
            yield index, [_row(index * ROWS + offset, traceparent) for offset in range(ROWS)]

    def _traceparent(self) -> str:
        flags = "01" if self._random.random() < self._sampled else "00"
        return f"00-{self._random.getrandbits(128) or 1:032x}-{self._random.getrandbits(64) or 1:016x}-{flags}"


def _row(number: int, traceparent: str) -> Row:
    note = "x" * (VALUE_BYTES - _EMPTY_BYTES - len(str(number)))
    return Row(number=number, key=f"order-{number % AGGREGATES:04d}", note=note, traceparent=traceparent)


_EMPTY_BYTES: Final = len(b'{"number":,"note":""}')
