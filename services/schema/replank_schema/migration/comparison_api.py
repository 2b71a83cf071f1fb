"""HTTP in, about comparisons: ask for one, see what was found, have it mended.

Mounted below a migration by the service's own router, which says who may see and who may change one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Self, TypeAlias
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field, StringConstraints

from replank.connection import Connection
from replank.http import CurrentPrincipal, Keyset, Page, PageQuery, Problem, RequestModel, idempotent
from replank.migrate.comparison import Direction, Kind, Progress
from replank.postgres import Pools
from replank_schema.migration import comparison, comparison_store
from replank_schema.migration.comparison_model import KeptMismatch, Repair, Run, RunState

Guards: TypeAlias = list[Any]
"""Dependencies of FastAPI that let a request pass or answer it."""
Key = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]

_newest_first: Final = Keyset("comparisons", tuple[UUID])
_as_found: Final = Keyset("mismatches", tuple[UUID])


class ComparisonView(BaseModel):
    """A comparison of everything. Counts are of what it has seen so far; ``percent`` is final once it is done.

    ``records`` counts by entity the records that convert, ``rows`` the root rows; ``unsettled`` records kept changing
    for as long as they were looked at, and are neither equal nor different.
    """

    id: UUID
    state: RunState
    direction: Direction | None
    asked_by: str
    asked_at: AwareDatetime
    started_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    stage: str | None
    records: dict[str, int]
    records_estimated: int
    rows: dict[str, int]
    mismatches: dict[Kind, int]
    unsettled: int
    compared: int
    different: int
    percent: float | None

    @classmethod
    def of(cls, run: Run) -> Self:
        progress = run.progress or Progress()
        return cls(
            id=run.id,
            state=run.state,
            direction=run.direction,
            asked_by=run.asked_by,
            asked_at=run.asked_at,
            started_at=run.started_at,
            ended_at=run.ended_at,
            stage=run.progress.stage if run.progress else None,
            records=dict(progress.records),
            records_estimated=progress.records_estimated,
            rows=dict(progress.rows),
            mismatches=dict(progress.mismatches),
            unsettled=progress.unsettled,
            compared=progress.compared,
            different=progress.different,
            percent=progress.percent if run.progress else None,
        )


class ConsistencyView(BaseModel):
    """Per cent that agree: of everything, the last time, and of the samples of the last minutes."""

    full: float | None
    full_ended_at: AwareDatetime | None
    samples: float | None
    samples_compared: int
    open_mismatches: int
    inconsistent_since: AwareDatetime | None


class MismatchView(BaseModel):
    """A record and its rows that disagree. ``fields`` are names; ``trace_id`` leads to whoever wrote what differs."""

    id: UUID
    key: str
    entity: str
    kind: Kind
    fields: list[str]
    trace_id: str | None
    first_seen: AwareDatetime
    last_seen: AwareDatetime
    resolved_at: AwareDatetime | None

    @classmethod
    def of(cls, mismatch: KeptMismatch) -> Self:
        return cls.model_validate(mismatch, from_attributes=True)


class MismatchQuery(PageQuery):
    """With ``resolved`` also the mismatches that are gone."""

    resolved: bool = False


class NewRepair(RequestModel):
    """Keys to apply once more; without ``keys`` those of the oldest open mismatches, as many as one repair takes."""

    keys: Annotated[list[Key], Field(min_length=1, max_length=comparison.MAX_REPAIRED)] | None = None
    dry_run: bool = False


class RepairedView(BaseModel):
    key: str
    op: str


class RepairView(BaseModel):
    """A repair. ``actions`` say what was done for each key, in a dry run what would be; none until it was done."""

    id: UUID
    dry_run: bool
    keys: list[str]
    asked_by: str
    asked_at: AwareDatetime
    ended_at: AwareDatetime | None
    actions: list[RepairedView] | None

    @classmethod
    def of(cls, repair: Repair) -> Self:
        return cls.model_validate(repair, from_attributes=True)


def comparison_routes(
    pools: Pools, *, may_see: Callable[..., Any], may_change: Callable[..., Any], compares: Callable[..., Any]
) -> APIRouter:
    """The routes below ``/v1/migrations/{migration_id}``.

    ``may_see`` and ``may_change`` are dependencies that let a request pass or answer 403; ``compares`` is one that
    answers 409 for a migration that has nothing to compare in its phase.
    """
    routes = APIRouter(prefix="/v1/migrations/{migration_id}", tags=["comparisons"])
    seeing: Guards = [Depends(may_see)]
    changing: Guards = [Depends(may_change), Depends(compares)]
    _add_asking(routes, pools, changing)
    _add_comparisons(routes, pools, seeing, [Depends(may_change)])
    _add_mismatches(routes, pools, seeing)
    _add_repairs(routes, pools, seeing, changing)
    return routes


def _add_asking(routes: APIRouter, pools: Pools, changing: Guards) -> None:

    @routes.post("/comparisons", status_code=202, response_model=ComparisonView, dependencies=changing)
    async def start_comparison(request: Request, migration_id: UUID, principal: CurrentPrincipal) -> Response:
        """Ask for a comparison of everything. It runs as soon as the migration's worker gets to it.

        409 ``comparison-under-way`` while one is asked for or runs.
        """
        async with (
            pools.general_primary.acquire() as conn,
            conn.transaction(),
            idempotent(request, conn, required=True) as call,
        ):
            if call.replay is not None:
                return call.replay
            await _demand_migration(conn, migration_id)
            run = await comparison.ask(conn, migration_id, asked_by=principal.user)
            if run is None:
                raise Problem(
                    409,
                    "comparison-under-way",
                    "a comparison of this migration is asked for or runs",
                    fix="wait for it, or cancel it",
                )
            location = f"/v1/migrations/{migration_id}/comparisons/{run.id}"
            return await call.answer(202, ComparisonView.of(run), headers={"location": location})


def _add_comparisons(routes: APIRouter, pools: Pools, seeing: Guards, cancelling: Guards) -> None:
    @routes.get("/comparisons", dependencies=seeing)
    async def list_comparisons(migration_id: UUID, page: Annotated[PageQuery, Query()]) -> Page[ComparisonView]:
        """Comparisons of everything, the newest first."""
        after = _newest_first.after(page)
        before = after[0] if after else comparison_store.NEWEST
        async with pools.general_replica.acquire() as conn:
            rows = await comparison_store.runs(conn, migration_id, before=before, limit=page.limit + 1)
        return _newest_first.page(rows, page, key=lambda run: (run.id,), view=ComparisonView.of)

    @routes.get("/comparisons/{comparison_id}", dependencies=seeing)
    async def show_comparison(migration_id: UUID, comparison_id: UUID) -> ComparisonView:
        """A comparison, with what it has found so far."""
        async with pools.general_replica.acquire() as conn:
            run = await comparison_store.run(conn, migration_id, comparison_id)
        if run is None:
            raise _unknown("comparison", comparison_id)
        return ComparisonView.of(run)

    @routes.post("/comparisons/{comparison_id}/cancel", dependencies=cancelling)
    async def cancel_comparison(migration_id: UUID, comparison_id: UUID) -> ComparisonView:
        """Cancel a comparison. One that has ended stays as it is."""
        async with pools.general_primary.acquire() as conn, conn.transaction():
            await comparison_store.cancel(conn, migration_id, comparison_id)
            run = await comparison_store.run(conn, migration_id, comparison_id)
        if run is None:
            raise _unknown("comparison", comparison_id)
        return ComparisonView.of(run)


def _add_mismatches(routes: APIRouter, pools: Pools, seeing: Guards) -> None:
    @routes.get("/consistency", dependencies=seeing)
    async def show_consistency(migration_id: UUID) -> ConsistencyView:
        """How far the two stores agree."""
        async with (
            pools.general_replica.acquire() as conn,
            conn.transaction(isolation="repeatable_read", readonly=True),
        ):
            found = await comparison_store.consistency(conn, migration_id, window=comparison.WINDOW)
        return ConsistencyView.model_validate(found, from_attributes=True)

    @routes.get("/mismatches", dependencies=seeing)
    async def list_mismatches(migration_id: UUID, page: Annotated[MismatchQuery, Query()]) -> Page[MismatchView]:
        """Mismatches in the order in which they were found."""
        after = _as_found.after(page)
        async with pools.general_replica.acquire() as conn:
            rows = await comparison_store.mismatches(
                conn,
                migration_id,
                after=after[0] if after else comparison_store.OLDEST,
                limit=page.limit + 1,
                only_open=not page.resolved,
            )
        return _as_found.page(rows, page, key=lambda row: (row.id,), view=MismatchView.of)


def _add_repairs(routes: APIRouter, pools: Pools, seeing: Guards, changing: Guards) -> None:
    @routes.post("/repair", status_code=202, response_model=RepairView, dependencies=changing)
    async def ask_repair(
        request: Request, migration_id: UUID, body: NewRepair, principal: CurrentPrincipal
    ) -> Response:
        """Have the following store hold, for some keys, what the leading one holds; a dry run only tells."""
        async with (
            pools.general_primary.acquire() as conn,
            conn.transaction(),
            idempotent(request, conn, required=True) as call,
        ):
            if call.replay is not None:
                return call.replay
            await _demand_migration(conn, migration_id)
            repair_id = await comparison.ask_repair(
                conn, migration_id, body.keys, dry_run=body.dry_run, asked_by=principal.user
            )
            asked = await _repair(conn, migration_id, repair_id)
            location = f"/v1/migrations/{migration_id}/repairs/{repair_id}"
            return await call.answer(202, RepairView.of(asked), headers={"location": location})

    @routes.get("/repairs/{repair_id}", dependencies=seeing)
    async def show_repair(migration_id: UUID, repair_id: UUID) -> RepairView:
        """A repair, and what it did."""
        async with pools.general_replica.acquire() as conn:
            return RepairView.of(await _repair(conn, migration_id, repair_id))


async def _demand_migration(conn: Connection, migration_id: UUID) -> None:
    if not await comparison_store.lock(conn, migration_id):
        raise Problem(404, "migration-not-found", f"there is no migration {migration_id}")


async def _repair(conn: Connection, migration_id: UUID, repair_id: UUID) -> Repair:
    found = await comparison_store.repair(conn, migration_id, repair_id)
    if found is None:
        raise _unknown("repair", repair_id)
    return found


def _unknown(what: str, unknown: UUID) -> Problem:
    return Problem(404, f"{what}-not-found", f"this migration has no {what} {unknown}")
