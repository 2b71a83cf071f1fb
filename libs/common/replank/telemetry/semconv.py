"""The attribute names and span names of messaging, once: OpenTelemetry's semantic conventions as far as we use them.

https://opentelemetry.io/docs/specs/semconv/messaging/kafka/. Names of ours begin with ``replank.``.
"""

from __future__ import annotations

from typing import Final

SYSTEM: Final = "messaging.system"
DESTINATION: Final = "messaging.destination.name"
PARTITION: Final = "messaging.destination.partition.id"  # a string, by convention
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGE_ID: Final = "messaging.message.id"
MESSAGE_SIZE: Final = "messaging.message.body.size"
BATCH_COUNT: Final = "messaging.batch.message_count"
CONSUMER_GROUP: Final = "messaging.consumer.group.name"
KAFKA_KEY: Final = "messaging.kafka.message.key"
KAFKA_OFFSET: Final = "messaging.kafka.offset"
KAFKA_TOMBSTONE: Final = "messaging.kafka.message.tombstone"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
EVENT_TYPE: Final = "cloudevents.event_type"
EVENT_SOURCE: Final = "cloudevents.event_source"
OUTBOX_SHARD: Final = "replank.outbox.shard"
INBOX_OUTCOME: Final = "replank.inbox.outcome"
INBOX_ATTEMPT: Final = "replank.inbox.attempt"

KAFKA: Final = "kafka"
SEND: Final = "send"
PROCESS: Final = "process"

# The span between the commit of an event and its being sent: how long it waited for the relay.
OUTBOX_WAIT: Final = "outbox wait"


def publish(topic: str) -> str:
    """The name of the PRODUCER span of an event."""
    return f"publish {topic}"


def process(topic: str) -> str:
    """The name of the CONSUMER span of an event, or of a batch of them."""
    return f"process {topic}"
