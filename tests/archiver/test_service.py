"""The archiver service alone, on real servers: everybody else is played by the test."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from replank.contracts.archiver import PlanArchived
from replank.contracts.schema import MigrationPlanned, Source, canonical_plan, plan_sha256
from replank.objects import ObjectStore
from replank.testing import eventually
from replank.testing.plugin import FaultProxies
from replank.testing.servers import Bucket, fresh_name
from replank.testing.services import Issuer, Rights, basics, emit, events_of, http_alone, living, playing_rights
from replank_archiver.application import compose, object_store
from replank_archiver.settings import ArchiverSettings

Configure = Callable[..., ArchiverSettings]


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest_asyncio.fixture
async def rights() -> AsyncIterator[Rights]:
    async with playing_rights(("user:ada", "plan", "system:replank")) as playing:
        yield playing


@pytest.fixture
def configure(kafka: str, issuer: Issuer, rights: Rights, s3: Bucket) -> Configure:
    def on(dsn: str, **more: Any) -> ArchiverSettings:
        given = {
            **basics(issuer, dsn=dsn, kafka=kafka, name="archiver", authz_url=rights.url),
            "s3_url": s3.url,
            "s3_access_key": s3.access_key,
            "s3_secret_key": s3.secret_key,
            "s3_bucket": s3.bucket,
        }
        return ArchiverSettings.model_validate({**given, **more})

    return on


def planned(plan: dict[str, Any], **changes: Any) -> MigrationPlanned:
    return MigrationPlanned(
        migration_id=uuid4(),
        name="orders",
        owner="user:ben",
        source=Source(target="shop", table="kv"),
        plan=plan,
        plan_sha256=plan_sha256(plan),
        planned_by="user:ada",
        planned_at=datetime.now(UTC),
    ).model_copy(update=changes)


async def test_a_planned_migrations_plan_is_archived_and_shown(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, kafka: str, issuer: Issuer
) -> None:
    plan: dict[str, Any] = {"tables": ["orders"], "größe": [1, 2.5, None]}
    migration = planned(plan)
    settings = configure(postgres_dsn)
    async with living(compose(settings), issuer.token()) as client:
        await emit(kafka, migration, key=str(migration.migration_id))
        (said,) = await events_of(kafka, PlanArchived, lambda event: event.migration_id == migration.migration_id)
        shown = (await client.get(f"/v1/manifests/{migration.migration_id}")).json()
    async with ObjectStore(object_store(settings)) as objects:
        kept = await objects.read(said.object_key)
    assert kept == canonical_plan(plan)
    assert hashlib.sha256(kept).hexdigest() == said.sha256 == shown["sha256"] == migration.plan_sha256
    assert (shown["object_key"], shown["size"]) == (said.object_key, len(kept))


async def test_a_plan_with_a_wrong_digest_is_a_dead_letter_and_does_not_hold_up_others(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, kafka: str, issuer: Issuer
) -> None:
    forged, good = planned({"a": 1}, plan_sha256="0" * 64), planned({"a": 1})
    async with living(compose(configure(postgres_dsn)), issuer.token()) as client:
        for migration in (forged, good):
            await emit(kafka, migration, key=str(migration.migration_id))
        await events_of(kafka, PlanArchived, lambda event: event.migration_id == good.migration_id)

        async def is_dead() -> bool:
            return bool(await database.fetchval("select count(*) from replank_inbox.dead_letter"))

        await eventually(is_dead, "the forged plan is a dead letter")
        assert (await client.get(f"/v1/manifests/{forged.migration_id}")).status_code == 404
    (row,) = await database.fetch("select reason, detail from replank_inbox.dead_letter")
    assert row["reason"] == "rejected"
    assert str(forged.migration_id) in row["detail"]


async def test_without_the_object_store_it_waits_and_archives_once_it_is_back(  # noqa: PLR0917 - fixtures
    database: asyncpg.Pool,
    postgres_dsn: str,
    configure: Configure,
    kafka: str,
    issuer: Issuer,
    s3: Bucket,
    fault_proxy: FaultProxies,
) -> None:
    proxy = await fault_proxy(urlsplit(s3.url).netloc)
    migration = planned({"a": 1})
    settings = configure(postgres_dsn, s3_url=f"http://{proxy.address}")
    async with living(compose(settings), issuer.token()) as client:
        await proxy.refuse()
        await emit(kafka, migration, key=str(migration.migration_id))

        async def is_not_ready() -> bool:
            answer = await client.get("/readyz")
            return answer.status_code == 503 and not answer.json()["dependencies"]["object store"]["ready"]

        await eventually(is_not_ready, "readiness names the object store", within=20)
        assert await database.fetchval("select count(*) from manifest") == 0
        assert (
            await database.fetchval("select count(*) from replank_outbox.event where topic = 'replank.archiver'") == 0
        )
        await proxy.heal()
        await events_of(kafka, PlanArchived, lambda event: event.migration_id == migration.migration_id, within=40)
    assert await database.fetchval("select count(*) from manifest") == 1


async def test_it_starts_before_its_bucket_exists_and_creates_it(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, issuer: Issuer
) -> None:
    bucket = fresh_name().replace("_", "-")
    settings = configure(postgres_dsn, s3_bucket=bucket)
    async with living(compose(settings), issuer.token()) as client:
        assert (await client.get("/readyz")).json()["dependencies"]["object store"]["ready"]
    async with ObjectStore(object_store(settings)) as objects:
        await objects.check()


async def test_bad_requests_get_clear_problems(untouched_dsn: str, configure: Configure, issuer: Issuer) -> None:
    async with http_alone(compose(configure(untouched_dsn)), issuer.token()) as client:
        missing = await client.get(f"/v1/manifests/{uuid4()}")
        assert (missing.status_code, missing.json()["type"]) == (404, "urn:replank:problem:manifest-not-found")
        assert (await client.get("/v1/manifests/not-an-id")).status_code == 422
        eve = {"authorization": f"Bearer {issuer.token('user:eve')}"}
        assert (await client.get(f"/v1/manifests/{uuid4()}", headers=eve)).status_code == 403
        for token in ("", "Bearer x", f"Bearer {issuer.token(aud='other')}"):
            answer = await client.get(f"/v1/manifests/{uuid4()}", headers={"authorization": token})
            assert answer.status_code == 401


@pytest.mark.parametrize("missing", ["postgres", "auth-cache"])
async def test_a_dead_dependency_is_named(
    untouched_dsn: str, configure: Configure, issuer: Issuer, missing: str
) -> None:
    dead = {
        "postgres": configure("postgresql://postgres@127.0.0.1:1/none"),
        "auth-cache": configure(untouched_dsn, authz_url="http://127.0.0.1:1"),
    }[missing]
    async with http_alone(compose(dead), issuer.token()) as client:
        answer = await client.get(f"/v1/manifests/{uuid4()}")
    assert (answer.status_code, answer.json()["dependency"]) == (503, missing)
