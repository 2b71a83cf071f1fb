"""The pytest fixtures of Replank. pytest loads this module by itself once ``replank[testing]`` is installed.

A test that asks for a real server gets the marker ``servers``, so that ``pytest -m "not servers"`` needs none. Where
the servers are is said by the environment variables ``REPLANK_TEST_*``; one that is missing fails the test: it never
skips it.

Everything that a fixture hands out is fresh: a database, a topic or a bucket belongs to one test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Final, Protocol

import asyncpg
import pytest
import pytest_asyncio

from replank.errors import ConfigurationError
from replank.telemetry.jaeger import Jaeger
from replank.testing import servers
from replank.testing.faults import FaultProxy
from replank.testing.spans import Spans, captured_spans

SERVER_FIXTURES: Final = frozenset({"postgres_server", "kafka", "valkey_url", "s3_server", "jaeger", "otlp_endpoint"})


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "servers: needs real servers (added by itself to every test that uses one)")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("servers")


def _server(variable: str) -> str:
    try:
        return servers.setting(variable)
    except ConfigurationError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def postgres_server() -> str:
    """The DSN of the test Postgres, of a role that may create databases."""
    return _server("REPLANK_TEST_POSTGRES")


@pytest_asyncio.fixture
async def postgres_dsn(postgres_server: str) -> AsyncIterator[str]:
    """The DSN of a new, empty database, dropped after the test."""
    async with servers.database(postgres_server) as dsn:
        yield dsn


@pytest_asyncio.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[asyncpg.Pool]:
    """An asyncpg pool of up to 10 connections on the test's own database."""
    opened = await asyncpg.create_pool(postgres_dsn, min_size=1, max_size=10)
    yield opened
    # A connection that the test never gave back fails it here, instead of hanging the run.
    async with asyncio.timeout(5):
        await opened.close()


class RoleFactory(Protocol):
    """``await postgres_role()`` creates a role and answers the DSN of the test's database as that role."""

    async def __call__(self) -> str: ...


@pytest_asyncio.fixture
async def postgres_role(postgres_dsn: str) -> AsyncIterator[RoleFactory]:
    """Creates roles that may connect to the test's own database and do nothing there: ``dsn = await postgres_role()``.

    From then on nobody else but the owner may connect. The roles are dropped after the test.
    """
    async with AsyncExitStack() as roles:

        async def create() -> str:
            return await roles.enter_async_context(servers.role(postgres_dsn))

        yield create


@pytest.fixture(scope="session")
def kafka() -> str:
    """The bootstrap servers of the test Kafka."""
    return _server("REPLANK_TEST_KAFKA")


class TopicFactory(Protocol):
    """``await topic_factory(partitions=3, config={"cleanup.policy": "compact"})`` creates a topic and names it."""

    async def __call__(self, partitions: int = 3, config: dict[str, str] | None = None) -> str: ...


@pytest_asyncio.fixture
async def topic_factory(kafka: str) -> AsyncIterator[TopicFactory]:
    """Creates fresh topics, deleted after the test: ``name = await topic_factory(partitions=3)``."""
    created: list[str] = []

    async def create(partitions: int = 3, config: dict[str, str] | None = None) -> str:
        name = servers.fresh_name()
        await servers.create_topic(kafka, name, partitions=partitions, config=config)
        created.append(name)
        return name

    yield create
    if created:
        await servers.delete_topics(kafka, created)


@pytest_asyncio.fixture
async def topic(topic_factory: TopicFactory) -> str:
    """The name of a new, empty topic of 3 partitions."""
    return await topic_factory(partitions=3)


@pytest.fixture(scope="session")
def valkey_url() -> str:
    """The URL of the test Valkey. Its keys are shared by all tests: use `replank.testing.servers.fresh_name`."""
    return _server("REPLANK_TEST_VALKEY")


@pytest.fixture(scope="session")
def s3_server() -> tuple[str, str, str]:
    """URL, access key and secret key of the test object store."""
    return (
        _server("REPLANK_TEST_S3_URL"),
        _server("REPLANK_TEST_S3_ACCESS_KEY"),
        _server("REPLANK_TEST_S3_SECRET_KEY"),
    )


@pytest_asyncio.fixture
async def s3(s3_server: tuple[str, str, str]) -> AsyncIterator[servers.Bucket]:
    """A new, empty bucket: ``.url``, ``.access_key``, ``.secret_key``, ``.bucket``. Needs the extra ``objects``."""
    async with servers.bucket(*s3_server) as fresh:
        yield fresh


class AccountFactory(Protocol):
    """``await s3_account()`` creates an account of the object store, and the one bucket that it reaches."""

    async def __call__(self) -> servers.Bucket: ...


@pytest_asyncio.fixture
async def s3_account(s3_server: tuple[str, str, str]) -> AsyncIterator[AccountFactory]:
    """Creates accounts with a bucket of their own, removed after the test: ``bucket = await s3_account()``.

    Needs the extra ``objects``, and versitygw with ``--iam-dir``.
    """
    async with AsyncExitStack() as accounts:

        async def create() -> servers.Bucket:
            return await accounts.enter_async_context(servers.account(*s3_server))

        yield create


@pytest.fixture(scope="session")
def otlp_endpoint() -> str:
    """The base URL of the test collector's OTLP/HTTP receiver (spans go to ``/v1/traces`` below it)."""
    return _server("REPLANK_TEST_OTLP")


@pytest_asyncio.fixture
async def jaeger() -> AsyncIterator[Jaeger]:
    """A client of the test Jaeger: ``await jaeger.trace(trace_id, until=lambda trace: trace.find("outbox wait"))``."""
    async with Jaeger(_server("REPLANK_TEST_JAEGER")) as client:
        yield client


class FaultProxies(Protocol):
    """``await fault_proxy("host:port")`` starts a proxy in front of that address."""

    async def __call__(self, target: str) -> FaultProxy: ...


@pytest_asyncio.fixture
async def fault_proxy() -> AsyncIterator[FaultProxies]:
    """Starts proxies that break connections, ended with the test: ``await fault_proxy("127.0.0.1:5432")``."""
    async with AsyncExitStack() as proxies:

        async def start(target: str) -> FaultProxy:
            return await proxies.enter_async_context(FaultProxy(target))

        yield start


@pytest.fixture
def spans() -> Iterator[Spans]:
    """The spans that end in this process during the test."""
    with captured_spans() as captured:
        yield captured
