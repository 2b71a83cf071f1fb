"""The fixtures hand out what they promise, fresh for each test."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from minio import Minio

from replank.testing.plugin import TopicFactory
from replank.testing.servers import Bucket, database, kafka_admin


async def test_a_database_is_empty_and_belongs_to_one_test(postgres_server: str, postgres_dsn: str) -> None:
    assert postgres_dsn != postgres_server
    conn = await asyncpg.connect(postgres_dsn)
    try:
        assert await conn.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
        await conn.execute("create table mine ()")
    finally:
        await conn.close()


async def test_a_database_is_dropped_even_with_someone_connected(postgres_server: str) -> None:
    async with database(postgres_server) as dsn:
        left_open = await asyncpg.connect(dsn)
        name = await left_open.fetchval("select current_database()")
    left_open.terminate()
    conn = await asyncpg.connect(postgres_server)
    try:
        assert await conn.fetchval("select count(*) from pg_database where datname = $1", name) == 0
    finally:
        await conn.close()


async def test_the_pool_is_on_the_database_of_the_test(pool: asyncpg.Pool, postgres_dsn: str) -> None:
    assert postgres_dsn.endswith(await pool.fetchval("select current_database()"))


async def test_a_topic_takes_records_at_once(kafka: str, topic: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        await producer.send_and_wait(topic, b"value", partition=2)
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest")
    async with consumer:
        record = await consumer.getone()
    assert (record.partition, record.value) == (2, b"value")


async def test_a_topic_has_the_partitions_and_settings_that_were_asked_for(
    kafka: str, topic_factory: TopicFactory
) -> None:
    name = await topic_factory(partitions=5, config={"cleanup.policy": "compact"})
    async with kafka_admin(kafka) as admin:
        (found,) = await admin.describe_topics([name])
    assert len(found["partitions"]) == 5


async def test_a_bucket_is_there_and_belongs_to_one_test(s3: Bucket) -> None:
    client = Minio(s3.url.removeprefix("http://"), access_key=s3.access_key, secret_key=s3.secret_key, secure=False)
    assert await asyncio.to_thread(client.bucket_exists, s3.bucket)
    assert await asyncio.to_thread(lambda: list(client.list_objects(s3.bucket))) == []


def test_a_test_that_uses_a_server_is_marked_and_a_missing_variable_fails_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REPLANK_TEST_POSTGRES", raising=False)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def mine(pool):
            return pool

        async def test_with_a_server(mine): ...
        async def test_without(): ...
        """
    )
    everything = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    everything.assert_outcomes(passed=1, errors=1)
    everything.stdout.fnmatch_lines(["*REPLANK_TEST_POSTGRES is not set (run it with `make test`*"])
    pytester.runpytest_inprocess("-m", "not servers", "-p", "no:cacheprovider").assert_outcomes(passed=1, deselected=1)
