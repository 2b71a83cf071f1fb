"""Keeping a plan in a real object store, and proving it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from pydantic import SecretStr

from replank.contracts.archiver import PlanArchived
from replank.contracts.schema import MigrationPlanned, Source, canonical_plan, plan_sha256
from replank.errors import DependencyUnavailable
from replank.objects import ChecksumMismatch, ObjectStore, ObjectStoreSettings
from replank.testing.plugin import FaultProxies
from replank.testing.servers import Bucket
from replank.testing.services import appended
from replank_archiver.manifests import service, store
from replank_archiver.manifests.model import NotThePlan, plan_key

PLAN: dict[str, Any] = {"tables": ["orders"], "note": "größer", "z": {"b": 1, "a": [1.5, None]}}


def planned(*, sha256: str | None = None) -> MigrationPlanned:
    return MigrationPlanned(
        migration_id=uuid4(),
        name="orders",
        owner="user:ada",
        source=Source(target="shop", table="kv"),
        plan=PLAN,
        plan_sha256=sha256 or plan_sha256(PLAN),
        planned_by="user:ada",
        planned_at=datetime.now(UTC),
    )


def store_settings(s3: Bucket, **changes: Any) -> ObjectStoreSettings:
    given = {
        "url": s3.url,
        "bucket": s3.bucket,
        "access_key": SecretStr(s3.access_key),
        "secret_key": SecretStr(s3.secret_key),
        "attempts": 2,
        **changes,
    }
    return ObjectStoreSettings.model_validate(given)


@pytest_asyncio.fixture
async def objects(s3: Bucket) -> AsyncIterator[ObjectStore]:
    async with ObjectStore(store_settings(s3)) as opened:
        yield opened


async def test_a_plan_is_stored_read_back_recorded_and_said(database: asyncpg.Pool, objects: ObjectStore) -> None:
    event = planned()
    async with database.acquire() as conn, conn.transaction():
        manifest = await service.keep_plan(conn, objects, event)
    assert await objects.read(manifest.object_key) == canonical_plan(PLAN)
    async with database.acquire() as conn:
        assert await store.get(conn, event.migration_id) == manifest
        ((key, said),) = await appended(conn)
    assert key == str(event.migration_id)
    assert isinstance(said, PlanArchived)
    assert (said.object_key, said.sha256, said.size) == (
        plan_key(event.migration_id, event.plan_sha256),
        event.plan_sha256,
        len(canonical_plan(PLAN)),
    )


async def test_after_a_lost_transaction_the_same_again_is_harmless(
    database: asyncpg.Pool, objects: ObjectStore
) -> None:
    event = planned()
    async with database.acquire() as conn:
        lost = conn.transaction()
        await lost.start()
        await service.keep_plan(conn, objects, event)
        await lost.rollback()
        assert await store.get(conn, event.migration_id) is None
        async with conn.transaction():
            await service.keep_plan(conn, objects, event)
        assert len(await appended(conn)) == 1
    assert [info.key async for info in objects.list("migrations/")] == [plan_key(event.migration_id, event.plan_sha256)]


async def test_a_plan_with_another_digest_than_stated_is_not_archived(
    database: asyncpg.Pool, objects: ObjectStore
) -> None:
    event = planned(sha256="0" * 64)
    async with database.acquire() as conn, conn.transaction():
        with pytest.raises(NotThePlan, match=str(event.migration_id)):
            await service.keep_plan(conn, objects, event)
    assert [info async for info in objects.list("migrations/")] == []


class Tampering(ObjectStore):
    """A store in which somebody changes the object as soon as it is there."""

    async def put(self, key: str, *args: Any, **kwargs: Any) -> Any:
        await super().put(key, *args, **kwargs)
        return await super().put(key, b'{"tables":["others"]}')


async def test_nothing_is_recorded_when_other_bytes_come_back(database: asyncpg.Pool, s3: Bucket) -> None:
    event = planned()
    async with Tampering(store_settings(s3)) as objects, database.acquire() as conn, conn.transaction():
        with pytest.raises(ChecksumMismatch):
            await service.keep_plan(conn, objects, event)
        assert await store.get(conn, event.migration_id) is None
        assert await appended(conn) == []


async def test_nothing_is_recorded_without_the_object_store(
    database: asyncpg.Pool, s3: Bucket, fault_proxy: FaultProxies
) -> None:
    proxy = await fault_proxy(urlsplit(s3.url).netloc)
    await proxy.refuse()
    event = planned()
    async with (
        ObjectStore(store_settings(s3, url=f"http://{proxy.address}")) as objects,
        database.acquire() as conn,
        conn.transaction(),
    ):
        with pytest.raises(DependencyUnavailable, match=proxy.address):
            await service.keep_plan(conn, objects, event)
        assert await store.get(conn, event.migration_id) is None
