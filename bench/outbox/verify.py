"""Reading what a relay has published, and checking that it is what was committed."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer

from bench.outbox.workload import VALUE_BYTES
from bench.runs import Void

MIN_HEADERS = 3


@dataclass(slots=True)
class Arrivals:
    """What a consumer has seen of the events ``0 … expected - 1``; times are nanoseconds of the monotonic clock."""

    expected: int
    arrived_ns: list[int] = field(init=False)
    distinct: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    """First deliveries of an event after a later event of its key."""
    malformed: int = 0
    _last: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arrived_ns = [0] * self.expected

    def add(self, key: bytes, value: bytes, headers: int, at_ns: int) -> None:
        """Take note of one record."""
        if len(value) != VALUE_BYTES or headers < MIN_HEADERS:
            self.malformed += 1
            return
        number: int = json.loads(value)["number"]
        if not 0 <= number < self.expected or not key:
            self.malformed += 1
        elif self.arrived_ns[number]:
            self.duplicates += 1
        else:
            self.arrived_ns[number] = at_ns
            self.distinct += 1
            if number < self._last.get(key, -1):
                self.out_of_order += 1
            else:
                self._last[key] = number

    @property
    def complete(self) -> bool:
        return self.distinct == self.expected

    def check(self, *, ordered: bool) -> None:
        """Raise `Void` unless every event has arrived unharmed, and in the order of its key where that is promised."""
        faults = []
        if not self.complete:
            faults.append(f"{self.expected - self.distinct} of {self.expected} events are missing")
        if self.malformed:
            faults.append(f"{self.malformed} records are not what was appended")
        if ordered and self.out_of_order:
            faults.append(f"{self.out_of_order} events came after a later event of their key")
        if faults:
            raise Void("; ".join(faults))


async def read_all(consumer: AIOKafkaConsumer, arrivals: Arrivals, *, timeout_s: float) -> None:
    """Read until every expected event has arrived, or until ``timeout_s`` has passed without it."""
    deadline = time.monotonic() + timeout_s
    while not arrivals.complete and (left := deadline - time.monotonic()) > 0:
        pages = await consumer.getmany(timeout_ms=min(500, int(left * 1000) + 1), max_records=5_000)
        at_ns = time.monotonic_ns()
        for records in pages.values():
            for record in records:
                arrivals.add(record.key or b"", record.value or b"", len(record.headers), at_ns)
        # A page that is there already is returned without yielding: let the fetcher work between two of them.
        await asyncio.sleep(0)
