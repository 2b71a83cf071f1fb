"""What a consumer asks of its topics before it reads: that they are there, and that they do not outlive the inbox."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from faststream.kafka.helpers.admin import AdminService

from replank.errors import ConfigurationError, DependencyUnavailable

if TYPE_CHECKING:
    from faststream.kafka import KafkaBroker

_log: Final = logging.getLogger(__name__)
_FOR_EVER: Final = "for ever"


@asynccontextmanager
async def _admin(broker: KafkaBroker) -> AsyncIterator[AIOKafkaAdminClient]:
    service = AdminService()
    try:
        # The broker's own settings, security included. Its own admin client does not exist for a consumer-only broker.
        await service.connect(**broker._connection_kwargs)
        yield service.client
    except (KafkaError, OSError) as error:
        raise DependencyUnavailable("kafka", f"Kafka does not answer: {error!r}") from error
    finally:
        await service.disconnect()


async def ensure(broker: KafkaBroker, topics: Sequence[str], *, create: bool) -> None:
    """See that these topics are there. ``create``: make those that are missing, with the broker's defaults.

    Raises `DependencyUnavailable` that names those that are still missing, and why, or when Kafka does not answer.
    """
    async with _admin(broker) as admin:
        known = set(await admin.list_topics())
        missing = {topic: "it is to be made by somebody else" for topic in topics if topic not in known}
        if missing and create:
            # -1: the broker's defaults for partitions and replicas; aiokafka takes it only with an (empty) assignment.
            new = [NewTopic(topic, -1, -1, replica_assignments={}) for topic in missing]
            for topic, code, *detail in (await admin.create_topics(new)).topic_errors:
                if code and not issubclass(for_code(code), TopicAlreadyExistsError):
                    missing[topic] = f"{for_code(code).__name__}: {detail}"
                else:
                    del missing[topic]
                    _log.info("topic created with the broker's defaults", extra={"topic": topic})
    if missing:
        told = ", ".join(f"{topic} ({why})" for topic, why in missing.items())
        raise DependencyUnavailable(
            "kafka", f"there is no topic {told}", fix="create it, or start the service that emits to it"
        )


async def require_shorter_retention(broker: KafkaBroker, topics: Sequence[str], retention: timedelta | None) -> None:
    """Raise `ConfigurationError` if a topic keeps records for longer than the inbox remembers that it applied them.

    Kafka deletes whole segments, and only once they are closed: a record may be there for ``retention.ms`` and
    ``segment.ms`` together. Raises `DependencyUnavailable` when Kafka does not answer.
    """
    if retention is None:
        return
    async with _admin(broker) as admin:
        wanted = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        responses = await admin.describe_configs(wanted)
    for response in responses:
        for code, message, _, topic, entries in response.resources:
            if code:
                raise DependencyUnavailable("kafka", f"the settings of topic {topic} cannot be read: {message}")
            config = {entry[0]: entry[1] for entry in entries}
            keeps = _keeps(config)
            if keeps is None or keeps >= retention:
                raise ConfigurationError(
                    f"topic {topic} keeps records {_FOR_EVER if keeps is None else f'up to {keeps}'}, "
                    f"and the inbox remembers for {retention} only: a replay could apply an event twice",
                    fix="raise the inbox's retention (None: for ever), or lower the topic's retention.ms + segment.ms",
                )


def _keeps(config: dict[str, str]) -> timedelta | None:
    kept = int(config["retention.ms"])
    # A compacted topic keeps the last record of every key, and so does one without a limit.
    if kept < 0 or "delete" not in config["cleanup.policy"]:
        return None
    # 2**63 - 1 is a common way to say "for ever", and more than a timedelta holds.
    total = kept + int(config["segment.ms"])
    return None if total > timedelta.max // timedelta(milliseconds=1) else timedelta(milliseconds=total)
