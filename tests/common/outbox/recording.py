"""A publisher that keeps what it is given, and fails when it is told to.

It has the promises of the real one (a page is taken as a whole or not at all, a successor fences its predecessor) and
none of its delays, so that thousands of crashes fit into a minute. The real one is tested beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from replank.outbox.lease import Cursor
from replank.outbox.publisher import Encoded, PublishFailed, Rejected
from replank.outbox.window import EVENT_ID, ID, KEY, TOPIC, Page

Fault = Literal["before", "after"]


@dataclass(frozen=True)
class Record:
    event_id: str
    topic: str
    key: str | None
    shard: int


@dataclass
class Log:
    """What was published, by all publishers, in order."""

    records: list[Record] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    transactional: bool = False
    cursors: dict[int, tuple[int, int]] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    hold: asyncio.Event | None = None
    held: bool = False
    refused: set[str] = field(default_factory=set)

    def publisher(self, shard: int, _cluster: str) -> RecordingPublisher:
        return RecordingPublisher(self, shard)

    def ids(self) -> list[str]:
        return [record.event_id for record in self.records]

    def first_deliveries(self) -> list[Record]:
        return list({record.event_id: record for record in reversed(self.records)}.values())[::-1]


class RecordingPublisher:
    def __init__(self, log: Log, shard: int) -> None:
        self._log = log
        self._shard = shard
        self._epoch = 0
        self._pages: dict[int, list[Record]] = {}

    async def start(self) -> tuple[int, int] | None:
        self._epoch = self._log.epochs[self._shard] = self._log.epochs.get(self._shard, 0) + 1
        return self._log.cursors.get(self._shard) if self._log.transactional else None

    async def encode(self, page: Page, skip: Collection[int]) -> Encoded:
        await asyncio.sleep(0)
        records = [Record(row[EVENT_ID], row[TOPIC], row[KEY], self._shard) for row in page.rows if row[ID] not in skip]
        encoded = Encoded(encoded_at=0, events=len(records))
        self._pages[id(encoded)] = records
        return encoded

    async def publish(self, encoded: Encoded, cursor: Cursor) -> None:
        records = self._pages.pop(id(encoded))
        if any(record.topic in self._log.refused for record in records):
            raise Rejected("refused topic")
        fault = self._log.faults.pop(0) if self._log.faults else None
        await asyncio.sleep(0)
        if self._log.hold is not None:
            self._log.held = True
            await self._log.hold.wait()
        if fault == "before":
            raise PublishFailed("told to fail before")
        if self._log.transactional and self._log.epochs[self._shard] != self._epoch:
            raise PublishFailed("fenced")
        self._log.records += records
        self._log.pages.append(len(records))
        if self._log.transactional:
            self._log.cursors[self._shard] = (cursor.number, cursor.last_id)
        if fault == "after":
            raise PublishFailed("told to fail after")

    async def close(self) -> None:
        self._pages.clear()
