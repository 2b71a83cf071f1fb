"""HTTP of moving one mode of the vault from its old pattern to the new one, for whoever administers it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Depends, Response

from replank.authz.routes import require
from replank.contracts.schema import VaultMode
from replank.http import CurrentPrincipal, Problem
from replank_schema.vault import archive_store, archiving, job_store, moving, pattern_store
from replank_schema.vault.job_store import Job
from replank_schema.vault.pattern import Phase
from replank_schema.vault.routes import Rights, VaultRoute
from replank_schema.vault.serving import object_response
from replank_schema.vault.vault import Vault
from replank_schema.vault.views import ArchiveView, JobView, PatternView, RejectView

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN = 100


def router(vault: Vault, prefixes: dict[VaultMode, str], wake: Callable[[], None]) -> APIRouter:
    """The routes of one mode. ``wake`` tells the workers of this process that there is a new job."""
    prefix = prefixes[vault.mode]
    routes = APIRouter(prefix=f"{prefix}/pattern", tags=[f"vault {vault.mode}"], route_class=VaultRoute)
    admin = [Depends(require("admin", f"vault:{vault.mode}"))]
    see = [Depends(Rights(vault.mode).see)]

    def queued(job: Job, response: Response) -> JobView:
        wake()
        response.headers["location"] = f"{prefix}/jobs/{job.id}"
        return JobView.of(job)

    @routes.get("", dependencies=admin)
    async def show() -> PatternView:
        """In which pattern the mode is, and how far on its way."""
        return await _view(vault)

    @routes.post("/migrate", status_code=202, dependencies=admin)
    async def migrate(principal: CurrentPrincipal, response: Response) -> JobView:
        """Write to both patterns from now on, move what is there to the new one, and verify it. May be asked again."""
        with _one_at_a_time():
            return queued(await moving.start(vault, by=principal.user), response)

    @routes.post("/advance", dependencies=admin)
    async def advance(principal: CurrentPrincipal, *, force: bool = False) -> PatternView:
        """Read without fallback, and then call it completed."""
        await moving.advance(vault, force=force, by=principal.user)
        return await _view(vault)

    @routes.post("/rollback", dependencies=admin)
    async def roll_back(principal: CurrentPrincipal) -> PatternView:
        """Read and write the old pattern from now on. It has every write."""
        await moving.roll_back(vault, by=principal.user)
        return await _view(vault)

    @routes.post("/archive-old", status_code=202, dependencies=admin)
    async def archive_old(principal: CurrentPrincipal, response: Response) -> JobView:
        """Offer the old rows to the archiver. They are deleted when it has proven that it has them."""
        with _one_at_a_time():
            return queued(await archiving.start(vault, by=principal.user), response)

    @routes.get("/export/{request_id}", dependencies=see, response_class=Response)
    async def export(request_id: UUID) -> Response:
        """Old rows as they were offered: lines of JSON, as zstd."""
        return object_response(vault, await archiving.offered(vault, request_id), "application/zstd")

    return routes


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    try:
        yield
    except asyncpg.UniqueViolationError:
        raise Problem(
            409, "job-under-way", "rows are being moved or archived already", fix="wait for the job's end, or cancel it"
        ) from None


async def _view(vault: Vault) -> PatternView:
    optimized = await vault.switch.optimized()
    async with vault.pool.acquire() as conn:
        standing = await pattern_store.get(conn)
        reads = await pattern_store.reads(conn)
        rejects = await pattern_store.rejects(conn, _SHOWN)
        request = await archive_store.latest(conn)
        job = await job_store.get(conn, standing.job_id) if standing is not None and standing.job_id else None
        return PatternView(
            phase=standing.phase if standing else Phase.NEW if optimized else Phase.PLANNED,
            optimized=optimized,
            run=standing.run if standing else 0,
            old_rows=await pattern_store.rows(conn),
            rows_verified=standing.rows_verified if standing else None,
            verified_at=standing.verified_at if standing else None,
            changed_at=standing.changed_at if standing else None,
            changed_by=standing.changed_by if standing else None,
            mismatches=sum(outcomes.get("mismatch", 0) for outcomes in reads.values()),
            reads=reads,
            rejected=await pattern_store.rejected(conn),
            rejects=[RejectView.model_validate(found, from_attributes=True) for found in rejects],
            job=JobView.of(job) if job is not None else None,
            archive=ArchiveView.model_validate(request, from_attributes=True) if request is not None else None,
        )
