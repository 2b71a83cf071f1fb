"""Replank's library: transactional outbox, inbox, and tracing for services on Postgres and Kafka."""

from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError
from replank.events import Event

__all__ = ["ConfigurationError", "DependencyUnavailable", "Event", "ReplankError"]
