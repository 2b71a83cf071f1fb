"""Use case: keep a migration's plan in object storage, prove that it is there, and say so."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from replank import outbox
from replank.connection import Connection
from replank.contracts.archiver import PlanArchived
from replank.contracts.schema import MigrationPlanned, canonical_plan, plan_sha256
from replank.objects import ObjectStore
from replank_archiver.manifests import store
from replank_archiver.manifests.model import Manifest, NotThePlan, plan_key

# An event is at most 1 MB, and its plan a part of it.
_READ_LIMIT: Final = 4 * 1024 * 1024


async def keep_plan(conn: Connection, objects: ObjectStore, planned: MigrationPlanned) -> Manifest:
    """Put the plan, read it back, compare, and record it within the caller's transaction.

    The object is there before the row that speaks of it commits. If the transaction is lost, doing it again puts the
    same bytes under the same key. Raises `NotThePlan`, `replank.objects.ChecksumMismatch` when other bytes come back,
    and `DependencyUnavailable`.
    """
    sha256 = plan_sha256(planned.plan)
    if sha256 != planned.plan_sha256:
        raise NotThePlan(
            f"the plan of migration {planned.migration_id} has the SHA-256 {sha256}, not {planned.plan_sha256}",
            fix="find out who emitted the event: its digest is not of its plan's canonical form",
        )
    body = canonical_plan(planned.plan)
    key = plan_key(planned.migration_id, sha256)
    await objects.put(key, body, size=len(body), sha256=sha256, content_type="application/json")
    read_back = await objects.read(key, limit=_READ_LIMIT, sha256=sha256)
    manifest = Manifest(
        migration_id=planned.migration_id,
        bucket=objects.settings.bucket,
        object_key=key,
        sha256=sha256,
        size=len(read_back),
        archived_at=datetime.now(UTC),
    )
    await store.insert(conn, manifest)
    archived = PlanArchived(
        migration_id=manifest.migration_id,
        bucket=manifest.bucket,
        object_key=manifest.object_key,
        sha256=manifest.sha256,
        size=manifest.size,
        archived_at=manifest.archived_at,
    )
    await outbox.append(conn, archived, key=str(manifest.migration_id), subject=f"migration:{manifest.migration_id}")
    return manifest
