"""Where the test servers are, and a fresh database, topic or bucket on them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code

from replank.connection import Connection
from replank.errors import ConfigurationError, DependencyUnavailable
from replank.testing.wait import eventually

if TYPE_CHECKING:
    from minio import Minio

PREFIX: Final = "replank_test"


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of its own on the test object store, and how to reach it."""

    url: str
    access_key: str
    secret_key: str
    bucket: str


def setting(variable: str) -> str:
    """The value of an environment variable that says where a test server is. Raises `ConfigurationError`."""
    value = os.environ.get(variable, "")
    if not value:
        raise ConfigurationError(
            f"this test needs a real server and {variable} is not set",
            fix=f"run it with `make test`, or start the server and set {variable}",
        )
    return value


def fresh_name() -> str:
    """A name that no other test, and no other run, has: good for a database, a topic, a bucket, a group."""
    return f"{PREFIX}_{uuid4().hex[:16]}"


@asynccontextmanager
async def database(server_dsn: str, *, like: str | None = None) -> AsyncIterator[str]:
    """The DSN of a new database, dropped afterwards with whatever is still connected to it.

    It is empty, or a copy of the database with the DSN ``like``, to which nobody may be connected meanwhile.
    """
    name = fresh_name()
    # template0: nobody can be connected to it, so tests that start at the same time do not refuse each other.
    template = urlsplit(like).path.lstrip("/") if like is not None else "template0"
    await _execute(server_dsn, f'create database "{name}" template "{template}"')
    try:
        yield urlunsplit(urlsplit(server_dsn)._replace(path=f"/{name}"))
    finally:
        await _execute(server_dsn, f'drop database if exists "{name}" with (force)')


@asynccontextmanager
async def role(database_dsn: str) -> AsyncIterator[str]:
    """The DSN of the same database as a new role, which may connect to it and nothing else. Afterwards it is dropped.

    Nobody reaches the database by default any more, nor makes temporary tables there: only its owner and such roles.
    """
    name, password = fresh_name(), uuid4().hex
    parts = urlsplit(database_dsn)
    database_name = parts.path.removeprefix("/")
    await _execute(
        database_dsn,
        f"create role \"{name}\" login password '{password}';"
        f'revoke connect, temporary on database "{database_name}" from public;'
        f'grant connect on database "{database_name}" to "{name}"',
    )
    try:
        yield urlunsplit(parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}"))
    finally:
        await _execute(database_dsn, f'set lock_timeout = \'10s\'; drop owned by "{name}"; drop role "{name}"')


async def waiting_for_locks(conn: Connection | asyncpg.Pool) -> int:
    """How many sessions of this database wait for a lock. Other tests on the same server do not count."""
    count: int = await conn.fetchval(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    return count


async def _execute(dsn: str, statement: str) -> None:
    try:
        conn = await asyncpg.connect(dsn, timeout=10)
    except OSError as error:
        raise DependencyUnavailable("postgres", f"the test Postgres does not answer: {error}") from error
    try:
        await conn.execute(statement)
    finally:
        await conn.close()


@asynccontextmanager
async def kafka_admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client that is started, and closed afterwards."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=20_000)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def create_topic(bootstrap: str, name: str, *, partitions: int = 3, config: dict[str, str] | None = None) -> None:
    """Create a topic and wait until every partition of it has a leader."""
    async with kafka_admin(bootstrap) as admin:
        topic = NewTopic(name, partitions, replication_factor=1, topic_configs=config or {})
        response = await admin.create_topics([topic])
        for _, code, *detail in response.topic_errors:
            if code:
                raise for_code(code)(f"the test topic {name} could not be created: {detail}")

        async def has_leaders() -> bool:
            (found,) = await admin.describe_topics([name])
            leaders = [partition["leader"] for partition in found["partitions"]]
            return len(leaders) == partitions and min(leaders) >= 0

        await eventually(has_leaders, f"the topic {name} has a leader for each of {partitions} partitions")


async def delete_topics(bootstrap: str, names: list[str]) -> None:
    """Delete topics; those that a test deleted by itself are no error."""
    async with kafka_admin(bootstrap) as admin:
        await admin.delete_topics(names)


@asynccontextmanager
async def bucket(url: str, access_key: str, secret_key: str) -> AsyncIterator[Bucket]:
    """A new bucket. Afterwards it is removed with its objects, unless the test made it keep old versions."""
    # Only tests of object storage need the extra `objects`.
    from minio import Minio  # noqa: PLC0415

    endpoint = urlsplit(url)
    client = Minio(endpoint.netloc, access_key=access_key, secret_key=secret_key, secure=endpoint.scheme == "https")
    name = fresh_name().replace("_", "-")

    await asyncio.to_thread(client.make_bucket, name)
    try:
        yield Bucket(url, access_key, secret_key, name)
    finally:
        await asyncio.to_thread(_remove_bucket, client, name)


def _remove_bucket(client: Minio, name: str) -> None:
    from minio.error import S3Error  # noqa: PLC0415

    try:
        for found in client.list_objects(name, recursive=True):
            if found.object_name:
                client.remove_object(name, found.object_name)
        client.remove_bucket(name)
    except S3Error as error:
        if error.code not in {"BucketNotEmpty", "NoSuchBucket"}:
            raise


@asynccontextmanager
async def account(url: str, access_key: str, secret_key: str) -> AsyncIterator[Bucket]:
    """A new account of the object store that reaches one new bucket, its own, and nothing else. Both go afterwards.

    The credentials given are those of the store's administrator; the store is versitygw, which keeps accounts.
    """
    from minio import Minio  # noqa: PLC0415

    from replank.objects.accounts import Account, ensure_accounts, remove_accounts  # noqa: PLC0415

    name = fresh_name().replace("_", "-")
    made = Account(access_key=name, secret_key=uuid4().hex, bucket=name)
    endpoint = urlsplit(url)
    client = Minio(endpoint.netloc, access_key=access_key, secret_key=secret_key, secure=endpoint.scheme == "https")

    def remove() -> None:
        _remove_bucket(client, name)
        remove_accounts(url, access_key, secret_key, [name])

    await asyncio.to_thread(ensure_accounts, url, access_key, secret_key, [made])
    try:
        yield Bucket(url, made.access_key, made.secret_key, made.bucket)
    finally:
        await asyncio.to_thread(remove)
