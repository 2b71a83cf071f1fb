"""HTTP in: register a migration plan, show it with its checklist, list plans."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from pydantic import AwareDatetime, BaseModel, JsonValue, field_validator

from replank.authz.routes import demand_one, require
from replank.contracts.fields import Actor, Label
from replank.contracts.schema import Source, canonical_plan
from replank.http import CurrentPrincipal, Keyset, Page, PageQuery, Problem, RequestModel, idempotent
from replank.postgres import Pools
from replank_schema.plans import service, store
from replank_schema.plans.model import Draft, Item, Migration, Phase, Readiness, State

ACCEPT_PLANS: Final = "schema.accept-plans"
"""The flag that is the brake of an operator in an incident: while it is false nobody can plan a migration."""
_RETRY_AFTER: Final = "30"

_newest_first = Keyset("migrations", tuple[UUID])


class NewMigration(RequestModel):
    """A migration to plan. ``owner`` gets access to it; ``plan`` is kept as it is."""

    name: Label
    owner: Actor
    source: Source
    plan: dict[str, JsonValue]

    @field_validator("plan")
    @classmethod
    def _has_a_canonical_form(cls, plan: dict[str, JsonValue]) -> dict[str, JsonValue]:
        canonical_plan(plan)
        return plan


class MigrationSummary(BaseModel):
    """A migration in a listing."""

    id: UUID
    name: str
    owner: str
    source: Source
    plan_sha256: str
    phase: Phase
    planned_by: str
    planned_at: AwareDatetime
    ready_at: AwareDatetime | None

    @classmethod
    def of(cls, migration: Migration) -> Self:
        return cls.model_validate(migration, from_attributes=True)


class ReadinessView(BaseModel):
    """One line of the checklist. ``event_id`` is the event that settled it."""

    item: Item
    state: State
    detail: str | None
    event_id: UUID | None
    changed_at: AwareDatetime


class MigrationView(MigrationSummary):
    """A migration with its plan, and what it still needs before it may start."""

    plan: dict[str, JsonValue]
    readiness: list[ReadinessView]

    @classmethod
    def with_plan(cls, migration: Migration, plan: dict[str, JsonValue], checklist: list[Readiness]) -> Self:
        return cls(
            **MigrationSummary.of(migration).model_dump(),
            plan=plan,
            readiness=[ReadinessView.model_validate(line, from_attributes=True) for line in checklist],
        )


async def may_see(request: Request, migration_id: UUID, principal: CurrentPrincipal) -> None:
    """Who may plan may see all, and the owner of a migration that one."""
    await demand_one(request, principal, ("plan", "system:replank"), ("owner", f"migration:{migration_id}"))


def router(pools: Pools, flags: Callable[[], Awaitable[OpenFeatureClient]]) -> APIRouter:
    """The routes. All of them are for those who may plan migrations; a migration's owner may see it."""
    routes = APIRouter(prefix="/v1/migrations", tags=["migrations"])
    planners = [Depends(require("plan", "system:replank"))]

    @routes.post("", status_code=201, response_model=MigrationView, dependencies=planners)
    async def plan_migration(request: Request, body: NewMigration, principal: CurrentPrincipal) -> Response:
        """Register a migration plan. Nothing is touched: whether it may start is told by ``readiness``.

        503 ``planning-paused`` while an operator holds planning back with the flag ``schema.accept-plans``.
        """
        asking = await flags()
        draft = Draft(body.name, body.owner, body.source, body.plan)
        async with (
            pools.general_primary.acquire() as conn,
            conn.transaction(),
            idempotent(request, conn, required=True) as call,
        ):
            if call.replay is not None:
                return call.replay
            if not asking.get_boolean_value(ACCEPT_PLANS, True, EvaluationContext(principal.user)):
                raise Problem(
                    503,
                    "planning-paused",
                    "an operator has paused the planning of migrations",
                    fix="try again later, with the same Idempotency-Key; nothing was registered",
                    headers={"retry-after": _RETRY_AFTER},
                )
            migration = await service.plan(conn, draft, planned_by=principal.user)
            view = MigrationView.with_plan(migration, body.plan, await store.checklist(conn, migration.id))
            return await call.answer(201, view, headers={"location": f"/v1/migrations/{migration.id}"})

    @routes.get("/{migration_id}", dependencies=[Depends(may_see)])
    async def show_migration(migration_id: UUID) -> MigrationView:
        """A migration with its plan and checklist."""
        # One snapshot: the phase and the checklist must not contradict each other.
        async with (
            pools.general_replica.acquire() as conn,
            conn.transaction(isolation="repeatable_read", readonly=True),
        ):
            migration = await store.get(conn, migration_id)
            if migration is None:
                raise Problem(404, "migration-not-found", f"there is no migration {migration_id}")
            return MigrationView.with_plan(
                migration, await store.plan(conn, migration_id), await store.checklist(conn, migration_id)
            )

    @routes.get("", dependencies=planners)
    async def list_migrations(page: Annotated[PageQuery, Query()]) -> Page[MigrationSummary]:
        """Migrations, the newest first."""
        after = _newest_first.after(page)
        async with pools.general_replica.acquire() as conn:
            rows = await store.page(conn, before=after[0] if after else store.NEWEST, limit=page.limit + 1)
        return _newest_first.page(rows, page, key=lambda row: (row.id,), view=MigrationSummary.of)

    return routes
