from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.cluster import ClusterMetadata
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

from replank import flags
from replank.errors import DependencyUnavailable
from replank.flags import FlagsNotInstalled, store
from replank.flags.provider import FlagProvider
from replank.flags.topic import ensure_topic
from replank.telemetry import metrics
from replank.testing.faults import FaultProxy, unused_address
from replank.testing.plugin import TopicFactory
from replank.testing.servers import fresh_name
from replank.testing.wait import eventually
from tests.common.flags.conftest import Publish, a_flag


def boolean(provider: FlagProvider, name: str, *, default: bool = False) -> bool:
    return provider.resolve_boolean_details(name, default).value


def counted(result: str) -> float:
    return float(metrics.FLAGS_RECORDS.labels(result=result)._value.get())


async def test_a_provider_starts_with_what_the_topic_says(
    database: asyncpg.Pool, kafka: str, flag_topic: str, publish: Publish
) -> None:
    await publish(a_flag("f", False), a_flag("f", True, version=2), a_flag("g", None, deleted=True, enabled=False))
    async with FlagProvider(database, kafka, topic=flag_topic) as provider:
        assert provider.stale is None
        assert boolean(provider, "f")
        assert provider.known == 1


async def test_a_change_is_followed_and_told(
    database: asyncpg.Pool, kafka: str, flag_topic: str, publish: Publish
) -> None:
    async with FlagProvider(database, kafka, topic=flag_topic) as provider:
        api.set_provider_and_wait(provider)
        client = api.get_client()
        told: list[list[str] | None] = []
        client.add_handler(
            ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, lambda details: told.append(details.flags_changed)
        )
        assert client.get_boolean_value("f", False) is False
        await publish(a_flag("f", True))
        await eventually(lambda: client.get_boolean_value("f", False), "the new flag holds")
        await eventually(lambda: told == [["f"]], "the change was told")
        await publish(a_flag("f", None, version=2, deleted=True, enabled=False))
        await eventually(lambda: not client.get_boolean_value("f", False), "the flag is deleted")


async def test_all_types_can_be_asked_for_through_openfeature(
    database: asyncpg.Pool, kafka: str, flag_topic: str, publish: Publish
) -> None:
    await publish(a_flag("b"), a_flag("s", "x"), a_flag("i", 7), a_flag("d", 0.5), a_flag("o", {"k": [1]}))
    await publish(a_flag("half", "new", rollout=50.0))
    async with FlagProvider(database, kafka, topic=flag_topic) as provider:
        api.set_provider_and_wait(provider)
        client = api.get_client()
        assert client.get_boolean_value("b", False) is True
        assert client.get_string_value("s", "") == "x"
        assert client.get_integer_value("i", 0) == 7
        assert client.get_float_value("d", 0.0) == 0.5
        assert client.get_float_value("i", 0.0) == 7.0
        assert client.get_object_value("o", {}) == {"k": [1]}
        assert await client.get_boolean_value_async("b", False) is True
        assert client.get_string_value("b", "default") == "default"
        answers = {
            client.get_string_value("half", "old", EvaluationContext(targeting_key=str(number))) for number in range(50)
        }
        assert answers == {"old", "new"}


async def test_a_provider_that_was_not_started_cannot_be_registered(database: asyncpg.Pool, kafka: str) -> None:
    with pytest.raises(Exception, match="start the provider"):
        api.set_provider_and_wait(FlagProvider(database, kafka))
    assert api.get_client().get_boolean_value("f", True) is True


async def test_a_process_starts_with_its_last_known_flags_when_kafka_is_down_and_recovers(
    database: asyncpg.Pool, kafka: str, flag_topic: str, publish: Publish
) -> None:
    await publish(a_flag("f", True), a_flag("gone", True), a_flag("gone", None, version=2, deleted=True, enabled=False))
    async with FlagProvider(database, kafka, topic=flag_topic):
        await eventually(
            lambda: database.fetchval("select count(*) = 2 from replank_flags.copy"), "the flags are in the local copy"
        )
    async with FaultProxy(kafka) as proxy:
        await proxy.refuse()
        events: list[ProviderEvent] = []

        def remember(event: ProviderEvent) -> Callable[[EventDetails], None]:
            return lambda _: events.append(event)

        async with FlagProvider(database, proxy.address, topic=flag_topic, heartbeat=1.0) as provider:
            api.set_provider_and_wait(provider)
            client = api.get_client()
            client.add_handler(ProviderEvent.PROVIDER_STALE, remember(ProviderEvent.PROVIDER_STALE))
            client.add_handler(ProviderEvent.PROVIDER_READY, remember(ProviderEvent.PROVIDER_READY))
            await eventually(lambda: client.get_provider_status() is ProviderStatus.STALE, "the provider is stale")
            answer = client.get_boolean_details("f", False)
            assert (answer.value, answer.reason) == (True, Reason.STALE)
            assert client.get_boolean_value("gone", False) is False
            await eventually(lambda: ProviderEvent.PROVIDER_STALE in events, "staleness was told")

            await publish(a_flag("f", False, version=2))
            await proxy.heal()
            await eventually(lambda: client.get_provider_status() is ProviderStatus.READY, "it recovered by itself")
            assert client.get_boolean_details("f", True).value is False
            await eventually(lambda: events[-1] is ProviderEvent.PROVIDER_READY, "recovery was told")


@pytest_asyncio.fixture
async def fragile_kafka(kafka: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FaultProxy]:
    """Kafka behind a proxy, as if the broker advertised the proxy's address: else clients would go around it."""
    advertised = ClusterMetadata.broker_metadata
    async with FaultProxy(kafka) as proxy:

        def through_proxy(cluster: ClusterMetadata, node: object) -> Any:
            broker = advertised(cluster, node)
            return broker and broker._replace(host=proxy.host, port=proxy.port)

        monkeypatch.setattr(ClusterMetadata, "broker_metadata", through_proxy)
        yield proxy


@pytest.mark.parametrize("fault", ["gone", "silent"])
async def test_a_provider_says_when_kafka_is_lost_in_mid_flow_and_recovers(
    database: asyncpg.Pool, flag_topic: str, publish: Publish, fragile_kafka: FaultProxy, fault: str
) -> None:
    await publish(a_flag("f", True))
    async with FlagProvider(database, fragile_kafka.address, topic=flag_topic, heartbeat=0.5) as provider:
        assert provider.stale is None
        if fault == "gone":
            await fragile_kafka.refuse()
        else:
            fragile_kafka.stall()
        await eventually(lambda: provider.stale is not None, "the loss is noticed")
        assert boolean(provider, "f")
        await fragile_kafka.heal()
        await eventually(lambda: provider.stale is None, "it recovered by itself", within=20)
        await publish(a_flag("f", False, version=2))
        await eventually(lambda: not boolean(provider, "f", default=True), "changes are followed again")


async def test_a_process_that_never_knew_a_flag_starts_without_kafka_with_defaults(database: asyncpg.Pool) -> None:
    async with unused_address() as address, FlagProvider(database, address, heartbeat=1.0) as provider:
        assert provider.stale is not None
        assert boolean(provider, "f", default=True)


async def test_a_database_without_flag_tables_is_refused_at_start(pool: asyncpg.Pool, kafka: str) -> None:
    with pytest.raises(FlagsNotInstalled):
        await FlagProvider(pool, kafka).start()


async def test_a_database_that_does_not_answer_is_named_at_start(kafka: str) -> None:
    async with unused_address() as address:
        pool = asyncpg.create_pool(f"postgresql://nobody@{address}/none", min_size=0)
        async with pool:
            with pytest.raises(DependencyUnavailable) as caught:
                await FlagProvider(pool, kafka).start()
    assert caught.value.dependency == "postgres"


async def test_a_start_that_is_cancelled_leaves_no_task_behind(
    database: asyncpg.Pool, flag_topic: str, fragile_kafka: FaultProxy
) -> None:
    fragile_kafka.stall()
    provider = FlagProvider(database, fragile_kafka.address, topic=flag_topic, heartbeat=30)
    starting = asyncio.create_task(provider.start())
    await eventually(lambda: fragile_kafka.accepted > 0, "it waits for Kafka")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("replank flags")]


async def test_what_is_no_flag_is_counted_logged_and_passed_over(
    database: asyncpg.Pool,
    kafka: str,
    flag_topic: str,
    publish: Publish,
    caplog: pytest.LogCaptureFixture,
) -> None:
    malformed, foreign = counted("malformed"), counted("foreign")
    good = a_flag("f").changed()
    await publish(
        b"not json",
        b"{}",
        b"\xff",
        b"",
        None,
        good.model_copy(update={"name": "a b"}).to_value(),
        good.model_copy(update={"rollout": 12.34567}).to_value(),
        good.model_copy(update={"value": None}).to_value(),
        good.model_copy(update={"value": "secret" + "x" * 70_000}).to_value(),
    )
    await publish(good.to_value(), type="shop.order.paid.v1")
    await publish(a_flag("after"))
    with caplog.at_level(logging.WARNING, "replank.flags"):
        async with FlagProvider(database, kafka, topic=flag_topic) as provider:
            assert boolean(provider, "after")
            assert provider.known == 1
    assert counted("malformed") - malformed == 9
    assert counted("foreign") - foreign == 1
    assert len([record for record in caplog.records if "passed over" in record.message]) == 9
    assert "secret" not in caplog.text


async def test_a_damaged_row_of_the_local_copy_is_passed_over(
    database: asyncpg.Pool, kafka: str, flag_topic: str
) -> None:
    await store.keep_copy(database, [a_flag("f")])
    await database.execute("insert into replank_flags.copy (name, version, flag) values ('broken', 1, '{\"a\": 1}')")
    async with FlagProvider(database, kafka, topic=flag_topic) as provider:
        assert boolean(provider, "f")
        assert provider.known == 1


async def test_the_local_copy_never_goes_back_in_version(database: asyncpg.Pool) -> None:
    await store.keep_copy(database, [a_flag("f", "new", version=5), a_flag("g", version=1)])
    await store.keep_copy(database, [a_flag("f", "old", version=4), a_flag("g", False, version=2)])
    versions = {row["name"]: row["version"] for row in await database.fetch("select * from replank_flags.copy")}
    assert versions == {"f": 5, "g": 2}


async def test_a_local_copy_that_cannot_be_saved_holds_up_nothing_and_is_saved_later(
    database: asyncpg.Pool, kafka: str, flag_topic: str, publish: Publish
) -> None:
    failures = metrics.FLAGS_COPY_FAILURES._series._value.get()
    async with FlagProvider(database, kafka, topic=flag_topic) as provider:
        await database.execute("alter table replank_flags.copy rename to away")
        await publish(a_flag("f", True))
        await eventually(lambda: boolean(provider, "f"), "the change holds in memory")
        await eventually(lambda: metrics.FLAGS_COPY_FAILURES._series._value.get() > failures, "the failure is counted")
        await database.execute("alter table replank_flags.away rename to copy")
        await eventually(lambda: database.fetchval("select count(*) = 1 from replank_flags.copy"), "it is saved later")


async def test_closing_saves_the_last_change(
    database: asyncpg.Pool, kafka: str, flag_topic: str, publish: Publish
) -> None:
    provider = FlagProvider(database, kafka, topic=flag_topic)
    await provider.start()
    await publish(a_flag("f", True))
    await eventually(lambda: boolean(provider, "f"), "the change holds", interval=0.0)
    await provider.close()
    assert await database.fetchval("select count(*) = 1 from replank_flags.copy")
    assert boolean(provider, "f")


async def test_replacing_the_provider_stops_it(database: asyncpg.Pool, kafka: str, flag_topic: str) -> None:
    async with FlagProvider(database, kafka, topic=flag_topic) as provider:
        api.set_provider_and_wait(provider)
        api.clear_providers()
        await eventually(lambda: all(task.done() for task in provider._tasks), "its tasks ended")


async def policy(kafka: str, topic: str) -> dict[str, Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        (described,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    finally:
        await admin.close()
    return {name: value for name, value, *_ in described.resources[0][4]}


async def test_the_topic_is_made_compacted(kafka: str, topic_factory: TopicFactory) -> None:
    accident = await topic_factory(partitions=2, config={"segment.ms": "600000"})
    await ensure_topic(kafka, accident)
    await ensure_topic(kafka, accident)
    found = await policy(kafka, accident)
    assert found["cleanup.policy"] == "compact"
    assert found["segment.ms"] == "600000"


async def test_a_missing_topic_is_created_by_whoever_needs_it_first(database: asyncpg.Pool, kafka: str) -> None:
    name = fresh_name()
    providers = [FlagProvider(database, kafka, topic=name) for _ in range(3)]
    try:
        await asyncio.gather(*(provider.start() for provider in providers))
        assert [provider.stale for provider in providers] == [None] * 3
        assert (await policy(kafka, name))["cleanup.policy"] == "compact"
    finally:
        await asyncio.gather(*(provider.close() for provider in providers))
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        await admin.delete_topics([name])
        await admin.close()


async def test_flags_of_the_authority_and_of_a_copy_are_separate(database: asyncpg.Pool) -> None:
    async with database.acquire() as conn:
        await flags.set(conn, "f", True, by="user:ada")
    assert await store.load_copy(database) == []
