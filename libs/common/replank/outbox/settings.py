"""Settings of a relay."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt


class RelaySettings(BaseModel):
    """How a relay reads and publishes. The defaults suit a service; times are in seconds unless the type says else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    """At least once: a crash may publish a page again. Exactly once: Kafka transactions; consumers read committed."""

    wake: Literal["poll", "notify"] = "poll"
    """``notify`` listens, too: only of use where the outbox was installed with ``notify=True``."""

    poll_interval: PositiveFloat = 0.01
    """Pause after a poll that found nothing; right after events it begins at ``linger`` and doubles up to this."""

    linger: PositiveFloat = 0.002
    """Pause after a poll that found something but no full page: a larger page costs less than two."""

    page_rows: PositiveInt = 4000
    """Events that are published and acknowledged together, at most. Exactly once takes twice as many."""

    page_bytes: PositiveInt = 8_000_000
    """Payload of one page, about; at most two pages are in memory at a time."""

    chunk_rows: PositiveInt = 200_000
    """Rows that one server-side cursor sorts at most, unless the backlog is over 64 times as long."""

    read_transaction: PositiveFloat = 30.0
    """How long a read transaction may stay open while a backlog is drained: it holds back vacuum for so long."""

    read_timeout: PositiveFloat = 30.0
    """When Postgres has not answered a poll or sent a page after so long, the relay starts over with a new connection.

    It has 20 times as long where it must scan or sort a backlog before it can answer.
    """

    batch_bytes: PositiveInt = 900_000
    """Size of a Kafka batch, below the topic's max.message.bytes."""

    max_request_bytes: PositiveInt = 1_048_588
    """The topic's max.message.bytes: a single larger record is refused by the broker."""

    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"

    delivery_timeout: PositiveFloat = 30.0
    """When Kafka has not acknowledged a page after so long, the relay starts over with a new producer."""

    lease: PositiveFloat = 5.0
    """How long a shard stays with a relay that died."""

    cursor_interval: PositiveFloat = 0.1
    """How often the cursor of a busy shard is written down, at least once only: a crash repeats what came since."""

    checkpoint: PositiveFloat = 5.0
    """How often the cursor of a quiet shard is written down, so that retention can follow."""

    backoff: PositiveFloat = 10.0
    """The longest pause between attempts while Postgres or Kafka is away, or while a shard is stuck."""

    retention: timedelta = timedelta(days=3)
    """How long published events are kept for replay. Whole partitions are dropped."""

    maintenance_interval: PositiveFloat = 60.0

    cursor_topic: str = "replank.outbox.cursors"
    """Compacted topic with the cursors of exactly-once delivery."""
