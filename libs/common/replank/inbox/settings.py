"""What can be tuned about a consumer, and what it promises when nothing is."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Positive = Annotated[timedelta, Field(gt=timedelta(0))]


class InboxSettings(BaseModel):
    """Settings of one `Inbox`. Every default is meant to be right for a service that never looks here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retention: _Positive | None = timedelta(days=30)
    """How long applied event ids are remembered (``None``: for ever). Must exceed the longest replay of every topic."""
    partition_days_ahead: int = Field(default=3, ge=1, le=366)
    """For how many days to come the inbox has its partitions ready."""

    concurrency: int = Field(default=8, ge=1)
    """How many events (or batches) of one subscription are worked on at once: also how many connections it uses."""
    lanes: int = Field(default=4, ge=1)
    """Into how many lanes the keys of one Kafka partition are spread. Events of one key share a lane, in order."""
    batch_size: int = Field(default=1000, ge=1)
    """The most events that a batch handler is given at once."""
    buffer_records: int = Field(default=4000, ge=1)
    """A Kafka partition is paused while this many of its records wait in memory …"""
    buffer_bytes: int = Field(default=8 * 1024 * 1024, ge=1)
    """… or this many bytes of them."""

    attempts: int = Field(default=3, ge=1)
    """How often a handler that fails for no known transient reason is tried before its event becomes a dead letter."""
    transient_attempts: int | None = Field(default=None, ge=1)
    """How often a transient failure (a dead dependency, a deadlock) is tried. ``None``: for ever."""
    backoff: _Positive = timedelta(milliseconds=100)
    """The first pause between two attempts; each pause is twice the one before it, give or take a half."""
    backoff_max: _Positive = timedelta(seconds=30)
    """The longest pause between two attempts."""
    handler_timeout: _Positive | None = None
    """A handler that takes longer is cancelled and counts as a transient failure. ``None``: no limit."""

    commit_interval: _Positive = timedelta(seconds=1)
    """How often offsets are committed to Kafka. After a crash, what came since is read again and known as duplicate."""
    heartbeat: _Positive = timedelta(seconds=5)
    """How often the consumer registers itself as alive, asks Kafka for its lag and counts its parked keys."""
    maintenance_interval: _Positive = timedelta(hours=1)
    """How often partitions are made and dropped."""
    redrive_interval: _Positive = timedelta(milliseconds=500)
    """How often the database is asked for dead letters to redrive."""
    usage_interval: _Positive | None = None
    """How often to tell, on the topic ``replank.contracts``, events of which contracts were applied since the last time
    (``None``: never). Goes through the outbox of the same database. Services of ours tell every minute."""
    stop_timeout: _Positive = timedelta(seconds=10)
    """How long a running handler may take to finish when its partition is revoked or the inbox stops."""

    session_timeout: _Positive = timedelta(seconds=10)
    """Kafka gives the partitions of a consumer that was silent for so long to another one."""
    dead_letter_topic: bool = True
    """Also publish dead letters to ``<topic>.dlq``, through the outbox of the same database."""
    create_topics: bool = True
    """Create a missing topic (and with the broker's default settings). Otherwise it is waited for."""
