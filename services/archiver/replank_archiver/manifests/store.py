"""All SQL about manifests, on the caller's connection."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from replank.connection import Connection
from replank_archiver.manifests.model import Manifest

_INSERT: Final = """
    insert into manifest (migration_id, bucket, object_key, sha256, size, archived_at) values ($1, $2, $3, $4, $5, $6)
"""
_GET: Final = "select migration_id, bucket, object_key, sha256, size, archived_at from manifest where migration_id = $1"


async def insert(conn: Connection, manifest: Manifest) -> None:
    await conn.execute(
        _INSERT,
        manifest.migration_id,
        manifest.bucket,
        manifest.object_key,
        manifest.sha256,
        manifest.size,
        manifest.archived_at,
    )


async def get(conn: Connection, migration_id: UUID) -> Manifest | None:
    row = await conn.fetchrow(_GET, migration_id)
    return Manifest(**row) if row else None
