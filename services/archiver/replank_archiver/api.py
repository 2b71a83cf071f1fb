"""HTTP in: show where a migration's plan is kept."""

from __future__ import annotations

from typing import Self
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel

from replank.authz.routes import require
from replank.http import Problem
from replank.postgres import Pools
from replank_archiver.manifests import store
from replank_archiver.manifests.model import Manifest


class ManifestView(BaseModel):
    """Where a plan is kept; ``sha256`` and ``size`` (bytes) are those of what was read back."""

    migration_id: UUID
    bucket: str
    object_key: str
    sha256: str
    size: int
    archived_at: AwareDatetime

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        return cls.model_validate(manifest, from_attributes=True)


def router(pools: Pools) -> APIRouter:
    """The routes. All of them are for those who may plan migrations."""
    routes = APIRouter(
        prefix="/v1/manifests", tags=["manifests"], dependencies=[Depends(require("plan", "system:replank"))]
    )

    @routes.get("/{migration_id}")
    async def show_manifest(migration_id: UUID) -> ManifestView:
        """The manifest of a migration's plan."""
        async with pools.general_replica.acquire() as conn:
            manifest = await store.get(conn, migration_id)
        if manifest is None:
            raise Problem(
                404,
                "manifest-not-found",
                f"no plan of migration {migration_id} is archived",
                fix="if the migration was planned just now, ask again in a moment",
            )
        return ManifestView.of(manifest)

    return routes
