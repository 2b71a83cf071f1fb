"""All SQL about archived rows of schemas, on the caller's connection."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from replank.connection import Connection
from replank_archiver.schemas.model import SchemasManifest

_INSERT: Final = """
    insert into schemas_manifest (request_id, mode, rows, sha256, bucket, object_key, size, archived_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8)
"""
_GET: Final = """
    select request_id, mode, rows, sha256, bucket, object_key, size, archived_at
      from schemas_manifest where request_id = $1
"""


async def insert(conn: Connection, manifest: SchemasManifest) -> None:
    await conn.execute(
        _INSERT,
        manifest.request_id,
        manifest.mode,
        manifest.rows,
        manifest.sha256,
        manifest.bucket,
        manifest.object_key,
        manifest.size,
        manifest.archived_at,
    )


async def get(conn: Connection, request_id: UUID) -> SchemasManifest | None:
    row = await conn.fetchrow(_GET, request_id)
    return SchemasManifest(**row) if row else None
