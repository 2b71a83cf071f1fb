"""HTTP in: show a migration's baseline."""

from __future__ import annotations

from typing import Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel

from replank.authz.routes import require
from replank.contracts.schema import Source
from replank.http import Problem
from replank.postgres import Pools
from replank_benchmark.baselines import store
from replank_benchmark.baselines.model import Baseline, RelationFigures


class BaselineView(BaseModel):
    """A baseline. The figures are absent when it failed; then ``reason`` says why."""

    id: UUID
    migration_id: UUID
    source: Source
    status: Literal["captured", "failed"]
    reason: str | None
    rows_estimated: int | None
    bytes_total: int | None
    plan_cost: float | None
    relations: list[RelationFigures]
    explain: dict[str, Any] | None
    recorded_at: AwareDatetime

    @classmethod
    def of(cls, baseline: Baseline) -> Self:
        capture = baseline.capture
        return cls(
            id=baseline.id,
            migration_id=baseline.migration_id,
            source=baseline.source,
            status=baseline.status,
            reason=baseline.reason,
            rows_estimated=capture.rows_estimated if capture else None,
            bytes_total=capture.bytes_total if capture else None,
            plan_cost=capture.plan_cost if capture else None,
            relations=list(capture.relations) if capture else [],
            explain=dict(capture.explain) if capture else None,
            recorded_at=baseline.recorded_at,
        )


def router(pools: Pools) -> APIRouter:
    """The routes. All of them are for those who may plan migrations."""
    routes = APIRouter(
        prefix="/v1/baselines", tags=["baselines"], dependencies=[Depends(require("plan", "system:replank"))]
    )

    @routes.get("/{migration_id}")
    async def show_baseline(migration_id: UUID) -> BaselineView:
        """The latest baseline of a migration's source."""
        async with pools.general_replica.acquire() as conn:
            baseline = await store.latest(conn, migration_id)
        if baseline is None:
            raise Problem(
                404,
                "baseline-not-found",
                f"there is no baseline for migration {migration_id}",
                fix="if the migration was planned just now, ask again in a moment",
            )
        return BaselineView.of(baseline)

    return routes
