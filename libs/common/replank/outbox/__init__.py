"""The transactional outbox: append events with your rows, have them published once they are committed.

Importing this package is cheap: it needs asyncpg and nothing of Kafka. The relay is in `replank.outbox.relay`.
"""

from __future__ import annotations

from replank.events import UnknownContract

# Settings of this process, read at every append; assign to them at start.
# CloudEvents' source where append is given none.
default_source: str | None = None
# Kafka's default message.max.bytes is 1,048,588; the difference is room for CloudEvents and trace headers. The SQL
# functions have the same limit in the setting replank_outbox.max_bytes (alter database … set replank_outbox.max_bytes).
max_bytes: int = 1_000_000

from replank.outbox.append import (  # noqa: E402 - append reads the two settings above
    InvalidMessage,
    Message,
    NotInTransaction,
    OutboxNotInstalled,
    ValueTooLarge,
    append,
    append_many,
)
from replank.outbox.install import Finding, OutboxMismatch, grant_append, install, is_installed, verify  # noqa: E402
from replank.outbox.partitions import Partition  # noqa: E402
from replank.outbox.status import NotStuck, ShardStatus, Status, quarantine, status  # noqa: E402

__all__ = [
    "Finding",
    "InvalidMessage",
    "Message",
    "NotInTransaction",
    "NotStuck",
    "OutboxMismatch",
    "OutboxNotInstalled",
    "Partition",
    "ShardStatus",
    "Status",
    "UnknownContract",
    "ValueTooLarge",
    "append",
    "append_many",
    "default_source",
    "grant_append",
    "install",
    "is_installed",
    "max_bytes",
    "quarantine",
    "status",
    "verify",
]
