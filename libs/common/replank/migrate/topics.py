"""The change topics of a migration: their names, their making and removal, and whether everything in them is applied.

Changes are kept until they are applied, however long that takes: the topics have no retention. They are removed with
the migration.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from replank.contracts.schema import RecordChanged
from replank.errors import DependencyUnavailable

Direction = Literal["forward", "reverse"]

_TIMEOUT: Final = 30.0
_POLL_INTERVAL: Final = 0.01
_REPLICAS: Final = 3


def topic(name: str, direction: Direction) -> str:
    """Where the changes of a migration travel: ``forward`` from the key-value store, ``reverse`` from the tables."""
    forward = f"{RecordChanged.event_topic}.{name}"
    return forward if direction == "forward" else f"{forward}.reverse"


def group(name: str, direction: Direction) -> str:
    """The consumer group of the applier."""
    return f"{RecordChanged.event_topic}.{name}.{direction}"


async def ensure_topics(
    kafka: str, name: str, partitions: int, *, kafka_options: Mapping[str, Any] | None = None
) -> None:
    """Make both topics of a migration, where they are missing, and wait until they can be written to.

    Raises `DependencyUnavailable` when Kafka does not answer or does not let us.
    """
    wanted = [topic(name, "forward"), topic(name, "reverse")]
    async with _admin(kafka, kafka_options) as admin:
        brokers = len((await admin.describe_cluster())["brokers"])
        # Again, until they are there: one that was removed a moment ago may still seem to exist.
        while absent := [known for known in wanted if not await _has_leaders(admin, known)]:
            new = [
                NewTopic(
                    missing,
                    partitions,
                    min(_REPLICAS, brokers),
                    topic_configs={"retention.ms": "-1", "retention.bytes": "-1"},
                )
                for missing in absent
            ]
            for created, code, *detail in (await admin.create_topics(new)).topic_errors:
                if code and not issubclass(for_code(code), TopicAlreadyExistsError):
                    raise DependencyUnavailable(
                        "kafka",
                        f"the topic {created} cannot be created: {for_code(code).__name__} {detail}",
                        fix="create it by hand, without retention, or let this Kafka user create it",
                    )
            await asyncio.sleep(_POLL_INTERVAL)


async def remove_topics(kafka: str, name: str, *, kafka_options: Mapping[str, Any] | None = None) -> None:
    """Delete both topics of a migration, with what is in them. Those that are not there are no error.

    Raises `DependencyUnavailable` when Kafka does not answer or does not let us.
    """
    async with _admin(kafka, kafka_options) as admin:
        answer = await admin.delete_topics([topic(name, "forward"), topic(name, "reverse")])
        for removed, code, *_ in answer.topic_error_codes:
            if code and not issubclass(for_code(code), UnknownTopicOrPartitionError):
                raise DependencyUnavailable(
                    "kafka", f"the topic {removed} cannot be deleted: {for_code(code).__name__}"
                )


async def caught_up(
    kafka: str, name: str, direction: Direction, *, within: float, kafka_options: Mapping[str, Any] | None = None
) -> bool:
    """Whether, within so many seconds, everything that is in the topic now has been applied and committed.

    Kafka itself is asked, so the answer holds whichever process the applier runs in. What is published after the call
    does not count. Raises `DependencyUnavailable` when Kafka does not answer.
    """
    source = topic(name, direction)
    try:
        async with asyncio.timeout(within), _admin(kafka, kafka_options) as admin:
            ends = await _ends(admin, kafka, source, kafka_options)
            waiting = {partition: end for partition, end in ends.items() if end > 0}
            while waiting:
                committed = await admin.list_consumer_group_offsets(group(name, direction), partitions=list(waiting))
                waiting = {partition: end for partition, end in waiting.items() if committed[partition].offset < end}
                if waiting:
                    await asyncio.sleep(_POLL_INTERVAL)
    except TimeoutError:
        return False
    return True


async def _ends(
    admin: AIOKafkaAdminClient, kafka: str, source: str, options: Mapping[str, Any] | None
) -> dict[TopicPartition, int]:
    (found,) = await admin.describe_topics([source])
    if not found["partitions"]:
        # Unknown is not empty: the topic has been removed, or was never made.
        raise DependencyUnavailable("kafka", f"there is no topic {source}")
    # Read committed: an aborted or open transaction behind the last change is nothing to wait for.
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka, isolation_level="read_committed", enable_auto_commit=False, **(options or {})
    )
    await consumer.start()
    try:
        ends: dict[TopicPartition, int] = await consumer.end_offsets(
            [TopicPartition(source, partition["partition"]) for partition in found["partitions"]]
        )
        return ends
    finally:
        await consumer.stop()


async def _has_leaders(admin: AIOKafkaAdminClient, name: str) -> bool:
    (found,) = await admin.describe_topics([name])
    return bool(found["partitions"]) and all(partition["leader"] >= 0 for partition in found["partitions"])


@asynccontextmanager
async def _admin(kafka: str, options: Mapping[str, Any] | None) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka, request_timeout_ms=int(_TIMEOUT * 1000), **(options or {}))
    try:
        await admin.start()
        yield admin
    except (KafkaError, OSError) as error:
        if isinstance(error, TimeoutError):
            raise
        raise DependencyUnavailable("kafka", f"Kafka does not answer: {error!r}") from error
    finally:
        await admin.close()
