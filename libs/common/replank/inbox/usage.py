"""Who uses which contract: how many events of each type this process applied, told from time to time.

The vault adds up what it is told, so that whoever changes a contract knows whom that concerns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from replank import outbox
from replank.connection import Connection
from replank.contracts import declarations
from replank.contracts.declarations import EventContractUsed

# Telling of what is told about contracts would never come to an end.
_ITS_OWN: Final = f"{declarations.TOPIC}."


@dataclass(slots=True)
class Use:
    """How many events of a type were applied, the first and the last of them when (in seconds since 1970)."""

    events: int
    first_at: float
    last_at: float

    def add(self, other: Use) -> None:
        """Count another's events as well."""
        self.events += other.events
        self.first_at = min(self.first_at, other.first_at)
        self.last_at = max(self.last_at, other.last_at)


class Usage:
    """What a consumer applied since it last told. Belongs to one event loop."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._uses: dict[str, Use] = {}

    def count(self, event_type: str, events: int = 1) -> None:
        """``events`` of this type were applied. Costs next to nothing: it is called for every event."""
        now = time.time()
        use = self._uses.get(event_type)
        if use is None:
            self._uses[event_type] = Use(events, now, now)
        else:
            use.events += events
            use.last_at = now

    async def tell(self, conn: Connection) -> None:
        """Append `EventContractUsed` for each contract that was used since the last time, in a transaction of its own.

        Where that fails, nothing is forgotten; where only the answer to the commit was lost, it is told twice. Raises
        what Postgres and `outbox.append` raise.
        """
        uses, self._uses = self._uses, {}
        told = {event_type: use for event_type, use in uses.items() if not event_type.startswith(_ITS_OWN)}
        if not told:
            return
        try:
            async with conn.transaction():
                await outbox.append_many(conn, [self._message(event_type, use) for event_type, use in told.items()])
        except BaseException:
            for event_type, use in told.items():
                since = self._uses.setdefault(event_type, use)
                if since is not use:
                    since.add(use)
            raise

    def _message(self, event_type: str, use: Use) -> outbox.Message:
        used = EventContractUsed(
            contract=event_type,
            consumer=self._consumer,
            events=use.events,
            first_at=datetime.fromtimestamp(use.first_at, UTC),
            last_at=datetime.fromtimestamp(use.last_at, UTC),
        )
        return outbox.Message(used, key=event_type, subject=f"contract:{event_type}")
