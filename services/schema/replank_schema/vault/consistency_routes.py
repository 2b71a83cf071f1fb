"""HTTP of checking and repairing one mode of the vault, for whoever administers it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Depends, Query, Response
from uuid_utils.compat import uuid7

from replank.authz.routes import require
from replank.contracts.schema import VaultMode
from replank.http import CurrentPrincipal, Keyset, Page, Problem
from replank_schema.vault import consistency, consistency_store, job_store, repair
from replank_schema.vault.consistency import Check
from replank_schema.vault.job_store import Job
from replank_schema.vault.repair import Repair
from replank_schema.vault.vault import Vault
from replank_schema.vault.views import CheckRequest, FindingQuery, FindingView, JobView, RepairRequest

_latest_first = Keyset("vault-findings", tuple[datetime, UUID])


def router(vault: Vault, prefixes: dict[VaultMode, str], wake: Callable[[], None]) -> APIRouter:
    """The routes of one mode. ``wake`` tells the workers of this process that there is a new job."""
    mode = vault.mode
    prefix = prefixes[mode]
    routes = APIRouter(
        prefix=f"{prefix}/consistency",
        tags=[f"vault {mode}"],
        dependencies=[Depends(require("admin", f"vault:{mode}"))],
    )

    async def queue(kind: str, request: dict[str, Any], by: str, response: Response) -> JobView:
        try:
            async with vault.pool.acquire() as conn:
                job: Job = await job_store.insert(conn, uuid7(), kind, request, by=by)
        except asyncpg.UniqueViolationError:
            raise Problem(
                409,
                "job-under-way",
                f"another {kind} is under way",
                fix="wait for its end, or cancel it",
            ) from None
        wake()
        response.headers["location"] = f"{prefix}/jobs/{job.id}"
        return JobView.of(job)

    @routes.post("/check", status_code=202)
    async def check(principal: CurrentPrincipal, response: Response, body: CheckRequest | None = None) -> JobView:
        """Compare tables and object store. The job's result counts what was found; ``deep`` reads every content."""
        asked = Check(deep=body.deep if body is not None else True)
        return await queue(consistency.KIND, asked.model_dump(mode="json"), principal.user, response)

    @routes.post("/repair", status_code=202)
    async def repair_findings(
        principal: CurrentPrincipal, response: Response, body: RepairRequest | None = None
    ) -> JobView:
        """Repair what is found, or these findings. What cannot be repaired says what helps."""
        only = body.findings if body is not None else None
        if only is not None:
            async with vault.pool.acquire() as conn:
                unknown = await consistency_store.not_open(conn, only)
            if unknown:
                raise Problem(
                    404,
                    "finding-not-open",
                    f"there is no open finding {unknown[0]}",
                    fix="list the open ones: it may be gone by now",
                )
        asked = Repair(findings=only)
        return await queue(repair.KIND, asked.model_dump(mode="json"), principal.user, response)

    @routes.get("/findings")
    async def list_findings(query: Annotated[FindingQuery, Query()]) -> Page[FindingView]:
        """What checks found, the latest first."""
        before = _latest_first.after(query)
        async with vault.pool.acquire() as conn:
            rows = await consistency_store.findings(
                conn, state=query.state, kind=query.kind, before=before, limit=query.limit + 1
            )
        return _latest_first.page(rows, query, key=lambda row: (row.found_at, row.id), view=FindingView.of)

    return routes
