"""The topic of the flags: compacted, so that it keeps the last state of every flag for ever."""

from __future__ import annotations

import logging
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

log = logging.getLogger(__name__)

_MOST_REPLICAS: Final = 3
# Kafka's config_source of a value that was set for the topic itself (DescribeConfigs, KIP-226).
_SET_ON_TOPIC: Final = 1


async def ensure_topic(kafka: str, topic: str) -> None:
    """Create the topic, or make the one that is there compacted.

    A topic that a producer created by accident would forget flags after Kafka's default retention. An account that may
    neither create nor alter topics leaves it as it is, with a warning.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka, request_timeout_ms=10_000)
    try:
        await admin.start()
        if not await _create(admin, topic):
            await _compact(admin, topic)
    except (TopicAuthorizationFailedError, ClusterAuthorizationFailedError):
        log.warning(
            "this account may not manage the topic: see that it has cleanup.policy=compact", extra={"topic": topic}
        )
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, topic: str) -> bool:
    brokers = len((await admin.describe_cluster())["brokers"])
    # One partition: there are few changes, and they are seen in the order in which they were made.
    new = NewTopic(topic, 1, min(brokers, _MOST_REPLICAS), topic_configs={"cleanup.policy": "compact"})
    ((_, code, *_),) = (await admin.create_topics([new])).topic_errors
    if code == TopicAlreadyExistsError.errno:
        return False
    if code:
        raise for_code(code)(f"the topic {topic} could not be created")
    return True


async def _compact(admin: AIOKafkaAdminClient, topic: str) -> None:
    (described,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    ((code, _, _, _, entries),) = described.resources
    if code:
        raise for_code(code)(f"the settings of the topic {topic} could not be read")
    settings = {name: value for name, value, *_ in entries}
    if settings["cleanup.policy"] == "compact":
        return
    # The request replaces all settings of the topic: those that somebody chose are sent along.
    kept = {name: value for name, value, _, source, *_ in entries if source == _SET_ON_TOPIC}
    kept["cleanup.policy"] = "compact"
    (altered,) = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=kept)])
    ((code, *_),) = altered.resources
    if code:
        raise for_code(code)(f"the topic {topic} could not be made compacted")
    log.warning("the topic was not compacted, and is now", extra={"topic": topic})
