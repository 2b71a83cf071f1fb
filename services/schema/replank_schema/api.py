"""HTTP in: plan a migration, ask it to go somewhere, turn its knobs, and see how it is."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from pydantic import AwareDatetime, BaseModel, Field, JsonValue, StringConstraints, ValidationError, field_validator

from replank.authz.routes import demand_one, require
from replank.connection import Connection
from replank.contracts.fields import Actor, Explanation, Slug
from replank.contracts.schema import canonical_plan
from replank.errors import ConfigurationError, ReplankError
from replank.http import CurrentPrincipal, Keyset, Page, PageQuery, Problem, RequestModel, idempotent
from replank.http.auth import current_principal
from replank.migrate import mapping as mappings
from replank.migrate.mapping import InvalidMapping
from replank.postgres import Pools
from replank_schema.migration import machine, plans, preflight, rejects, service, store
from replank_schema.migration.conditions import conditions
from replank_schema.migration.databases import Databases
from replank_schema.migration.machine import Command, TransitionRefused
from replank_schema.migration.model import (
    Condition,
    Draft,
    Item,
    Leave,
    Migration,
    Mode,
    Options,
    Percent,
    Phase,
    Settings,
    State,
    Tables,
    unmet,
)
from replank_schema.migration.parts import COMPARABLE
from replank_schema.migration.report import Authority, ComparedReads, Lag, PartReport, Progress, Rejects

ACCEPT_PLANS: Final = "schema.accept-plans"
"""The flag that is the brake of an operator in an incident: while it is false nobody can plan a migration."""
_RETRY_AFTER: Final = "30"
_MOST_KEYS: Final = 1000

_KINDS: Final[dict[type[ReplankError], tuple[int, str]]] = {
    service.MigrationNotFound: (404, "migration-not-found"),
    service.EndpointNotFound: (404, "endpoint-not-found"),
    service.PhaseChanged: (409, "phase-changed"),
    # What was planned, and this process cannot work with.
    ConfigurationError: (409, "database-not-configured"),
    InvalidMapping: (409, "mapping-unreadable"),
}

_newest_first = Keyset("migrations", tuple[UUID])
_latest_first = Keyset("audit", tuple[int])
_by_key = Keyset("rejects", tuple[str])

RecordKey = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class NewMigration(RequestModel):
    """A migration to plan. ``owner`` gets access to it; ``mapping`` is YAML or JSON text, or the object itself.

    ``source`` and ``target`` are names of databases that the service is configured with.
    """

    owner: Actor
    source: Slug
    target: Slug
    mapping: dict[str, JsonValue] | Annotated[str, StringConstraints(min_length=1, max_length=500_000)]
    options: Options = Options()
    settings: Settings = Settings()

    @field_validator("mapping")
    @classmethod
    def _has_a_canonical_form(cls, mapping: dict[str, JsonValue] | str) -> dict[str, JsonValue] | str:
        if isinstance(mapping, dict):
            canonical_plan(mapping)
        return mapping


class Asked(RequestModel):
    """A command. ``expected`` is the phase that the caller takes the migration to be in."""

    reason: Explanation
    expected: Phase | None = None


class Advance(Asked):
    """``rollout`` is for how many per cent of the keys the reads of the next phase move."""

    rollout: Percent = 100.0


class Rollback(Asked):
    """``to`` is an earlier phase; without one, everything is taken back, and ``tables`` says what becomes of them."""

    to: Literal[Phase.VERIFYING, Phase.SHADOW_READS, Phase.NEW_WITH_FALLBACK] | None = None
    tables: Tables = Tables.KEEP


class Cancel(Asked):
    tables: Tables = Tables.KEEP


class Retire(Asked):
    """``leave``: how to leave the store that takes no writes. ``dropped`` is for tables that a rollback has kept."""

    leave: Leave = Leave.CLOSED


class TurnKnobs(Asked):
    """``settings`` has those that change; null is a value."""

    settings: dict[str, JsonValue]


class MoveReads(Asked):
    mode: Mode
    rollout: Percent = 100.0


class Retry(Asked):
    """``keys``: without any, all rejected records."""

    keys: list[RecordKey] | None = Field(default=None, max_length=_MOST_KEYS)


class Accept(Retry):
    pass


class MigrationSummary(BaseModel):
    """A migration in a listing. ``moving_to`` is where the work is getting it."""

    id: UUID
    name: str
    owner: str
    source: str
    table: str
    target: str
    phase: Phase
    moving_to: Phase | None
    paused: bool
    run: int
    phase_since: AwareDatetime
    plan_sha256: str
    planned_by: str
    planned_at: AwareDatetime
    ready_at: AwareDatetime | None

    @classmethod
    def of(cls, migration: Migration) -> Self:
        return cls(**_summary(migration))


def _summary(migration: Migration) -> dict[str, Any]:
    standing = migration.standing
    return {
        "id": migration.id,
        "name": migration.name,
        "owner": migration.owner,
        "source": migration.source,
        "table": migration.table,
        "target": migration.target,
        "phase": standing.phase,
        "moving_to": standing.moving_to,
        "paused": standing.paused,
        "run": standing.run,
        "phase_since": migration.phase_since,
        "plan_sha256": migration.plan_sha256,
        "planned_by": migration.planned_by,
        "planned_at": migration.planned_at,
        "ready_at": migration.ready_at,
    }


class ReadinessView(BaseModel):
    """One line of the checklist. ``event_id`` is the event that settled it."""

    item: Item
    state: State
    detail: str | None
    event_id: UUID | None
    changed_at: AwareDatetime


class RouteView(BaseModel):
    """Which store answers an endpoint, for how many per cent of the keys."""

    endpoint: str
    mode: Mode
    rollout: float


class ConditionView(BaseModel):
    """What must be so before the next phase."""

    name: str
    met: bool
    detail: str
    fix: str


class NextView(BaseModel):
    """Where an advance or a start would lead, and whether it may."""

    to: Phase
    allowed: bool
    conditions: list[ConditionView]


class ConsistencyView(BaseModel):
    """The last comparison of everything."""

    percent: float
    compared: int
    different: int
    at: AwareDatetime


class MigrationView(MigrationSummary):
    """A migration with its plan, its checklist, its work, and what it takes to go on."""

    ready: bool
    problem: str
    mapping: dict[str, JsonValue]
    options: Options
    settings: Settings
    readiness: list[ReadinessView]
    reads: list[RouteView]
    next: NextView | None
    work: list[PartReport]
    progress: Progress | None
    lag: Lag | None
    consistency: ConsistencyView | None
    rejects: Rejects | None
    compared_reads: ComparedReads
    authority: Authority | None


class RejectView(BaseModel):
    """A record that is not in the tables, and why. Its value is where it was: in the key-value store."""

    key: str
    path: str | None
    reason: str
    version: int | None
    attempts: int
    first_at: AwareDatetime
    last_at: AwareDatetime
    accepted: bool


class Sent(BaseModel):
    asked: int


class Accepted(BaseModel):
    accepted: int


class AuditView(BaseModel):
    """Who did what, why, and on what evidence."""

    seq: int
    at: datetime
    who: str
    action: str
    reason: str
    from_phase: Phase = Field(serialization_alias="from")
    to_phase: Phase = Field(serialization_alias="to")
    evidence: dict[str, JsonValue]


class AnsweringRoute(APIRoute):
    """A route that answers what the use cases refuse as a problem."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except TransitionRefused as error:
                raise refused(error) from error
            except tuple(_KINDS) as error:
                status, slug = _KINDS[type(error)]
                raise Problem(status, slug, error.message, fix=error.fix) from error

        return answer


async def may_handle(request: Request, migration_id: UUID, principal: CurrentPrincipal) -> None:
    """Who may plan may handle all, and the owner of a migration that one."""
    await demand_one(request, principal, ("plan", "system:replank"), ("owner", f"migration:{migration_id}"))


async def view(conn: Connection, migration: Migration, databases: Databases) -> MigrationView:
    """Everything about a migration that this service's own database knows, and how the tables are that it has kept."""
    plan = await store.plan(conn, migration.id)
    evidence = await service.evidence(conn, migration, databases.names)
    following = machine.following(migration.standing.phase)
    judged = conditions(following, evidence) if following is not None else []
    judged += await preflight.of_kept_tables(databases, migration, plan)
    work = evidence.report
    compared = evidence.comparison
    return MigrationView(
        **_summary(migration),
        ready=all(line.state is State.MET for line in evidence.readiness),
        problem=work.problem if evidence.works else "",
        mapping=dict(plan.mapping),
        options=plan.options,
        settings=migration.settings,
        readiness=[ReadinessView.model_validate(line, from_attributes=True) for line in evidence.readiness],
        reads=[RouteView.model_validate(route, from_attributes=True) for route in evidence.routes],
        next=None
        if following is None
        else NextView(
            to=following,
            allowed=not unmet(judged) and migration.standing.moving_to is None and not migration.standing.paused,
            conditions=[ConditionView.model_validate(condition, from_attributes=True) for condition in judged],
        ),
        work=list(work.parts) if evidence.works else [],
        progress=work.progress,
        lag=work.lag if evidence.works else None,
        consistency=None
        if compared is None
        else ConsistencyView(
            percent=compared.percent,
            compared=compared.compared,
            different=compared.different,
            at=compared.ended_at,
        ),
        rejects=work.rejects,
        compared_reads=evidence.compared_reads,
        authority=work.authority if evidence.works else None,
    )


_PLANNERS: Final = [Depends(require("plan", "system:replank"))]
_HANDLERS: Final = [Depends(may_handle)]


@dataclass(frozen=True, slots=True)
class _Resources:
    """What the routes need. ``wake`` tells the workers of this process that there may be something to do."""

    pools: Pools
    flags: Callable[[], Awaitable[OpenFeatureClient]]
    databases: Databases
    wake: Callable[[], None]


def router(
    pools: Pools,
    flags: Callable[[], Awaitable[OpenFeatureClient]],
    databases: Databases,
    wake: Callable[[], None],
) -> APIRouter:
    """The routes. ``wake`` tells the workers of this process that there may be something to do."""
    resources = _Resources(pools, flags, databases, wake)
    routes = APIRouter(prefix="/v1/migrations", tags=["migrations"], route_class=AnsweringRoute)
    for add in (_add_planning, _add_commands, _add_ways_back, _add_end, _add_knobs, _add_rejects, _add_audit):
        add(routes, resources)
    return routes


def _add_planning(routes: APIRouter, resources: _Resources) -> None:
    """Plan, show and list."""
    pools, flags, databases = resources.pools, resources.flags, resources.databases

    @routes.post("", status_code=201, response_model=MigrationView, dependencies=_PLANNERS)
    async def plan_migration(request: Request, body: NewMigration, principal: CurrentPrincipal) -> Response:
        """Register a migration. Nothing is touched: whether it may start is told by ``next``.

        422 ``invalid-mapping`` names the paths, and of YAML the lines, that are wrong; 503 ``planning-paused`` while
        an operator holds planning back with the flag ``schema.accept-plans``.
        """
        asking = await flags()
        draft = _draft(body)
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
            shown = await view(conn, migration, databases)
            return await call.answer(201, shown, headers={"location": f"/v1/migrations/{migration.id}"})

    @routes.get("/{migration_id}", dependencies=_HANDLERS)
    async def show_migration(migration_id: UUID) -> MigrationView:
        """A migration with its plan, checklist, work, and what it takes to go on."""
        # One snapshot: the phase and what it is judged by must not contradict each other.
        async with (
            pools.general_replica.acquire() as conn,
            conn.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await view(conn, await _found(conn, migration_id), databases)

    @routes.get("", dependencies=_PLANNERS)
    async def list_migrations(
        page: Annotated[PageOfMigrations, Query()],
    ) -> Page[MigrationSummary]:
        """Migrations, the newest first; with ``name``, those of that name."""
        after = _newest_first.after(page)
        async with pools.general_replica.acquire() as conn:
            rows = await store.page(
                conn, before=after[0] if after else store.NEWEST, limit=page.limit + 1, name=page.name
            )
        return _newest_first.page(rows, page, key=lambda row: (row.id,), view=MigrationSummary.of)


async def _obey(
    resources: _Resources,
    request: Request,
    migration_id: UUID,
    asked: Command,
    body: Asked,
    *,
    prepare: Callable[[Migration], Awaitable[list[Condition]]] | None = None,
    **given: Any,
) -> Response:
    # Asking databases takes longer than a row may be held: what they say is asked first, and judged under the lock.
    found: list[Condition] = []
    by = current_principal(request).user
    if prepare is not None:
        async with resources.pools.general_primary.acquire() as conn:
            before = await _found(conn, migration_id)
        # Refused for its phase without asking anybody.
        machine.ask(before.standing, asked)
        found = await prepare(before)
    async with resources.pools.general_primary.acquire() as conn, conn.transaction(), idempotent(request, conn) as call:
        if call.replay is not None:
            return call.replay
        migration = await service.held(conn, migration_id, expected=body.expected)
        moved = await service.command(
            conn,
            migration,
            asked,
            by=by,
            reason=body.reason,
            databases=resources.databases.names,
            preflight=found,
            **given,
        )
        status = 200 if moved.standing.moving_to is None else 202
        answer = await call.answer(status, await view(conn, moved, resources.databases))
    resources.wake()
    return answer


def _add_commands(routes: APIRouter, resources: _Resources) -> None:
    """Ask a migration to go somewhere."""
    pools, databases = resources.pools, resources.databases

    async def look(migration: Migration) -> list[Condition]:
        async with pools.general_primary.acquire() as conn:
            plan = await store.plan(conn, migration.id)
        return await preflight.check(databases, migration, plan)

    @routes.post("/{migration_id}/start", response_model=MigrationView, dependencies=_HANDLERS)
    async def start(request: Request, migration_id: UUID, body: Asked) -> Response:
        """Begin: capture is set up and tables are made, by the work. Refused before anything is touched."""
        return await _obey(resources, request, migration_id, Command.START, body, prepare=look)

    @routes.post("/{migration_id}/advance", response_model=MigrationView, dependencies=_HANDLERS)
    async def advance(request: Request, migration_id: UUID, body: Advance) -> Response:
        """Go on to the next phase. 202 where the work has to get it there first: ``moving_to`` says where."""
        return await _obey(resources, request, migration_id, Command.ADVANCE, body, rollout=body.rollout)

    @routes.post("/{migration_id}/pause", response_model=MigrationView, dependencies=_HANDLERS)
    async def pause(request: Request, migration_id: UUID, body: Asked) -> Response:
        """Stop what costs: backfill, comparison, indexes. What is written is still captured and applied."""
        return await _obey(resources, request, migration_id, Command.PAUSE, body)

    @routes.post("/{migration_id}/resume", response_model=MigrationView, dependencies=_HANDLERS)
    async def resume(request: Request, migration_id: UUID, body: Asked) -> Response:
        """Go on where it was paused."""
        return await _obey(resources, request, migration_id, Command.RESUME, body)


def _add_ways_back(routes: APIRouter, resources: _Resources) -> None:
    """Roll back and cancel."""

    @routes.post("/{migration_id}/rollback", response_model=MigrationView, dependencies=_HANDLERS)
    async def roll_back(request: Request, migration_id: UUID, body: Rollback) -> Response:
        """Go back: reads at once, writes as soon as nothing would be lost.

        From ``completed`` reads go with the writes: until then the key-value store is behind.
        """
        return await _obey(resources, request, migration_id, Command.ROLLBACK, body, to=body.to, tables=body.tables)

    @routes.post("/{migration_id}/cancel", response_model=MigrationView, dependencies=_HANDLERS)
    async def cancel(request: Request, migration_id: UUID, body: Cancel) -> Response:
        """Give up a migration whose writes have not moved; it cannot be started again."""
        return await _obey(resources, request, migration_id, Command.CANCEL, body, tables=body.tables)


def _add_end(routes: APIRouter, resources: _Resources) -> None:
    """Retire."""
    databases = resources.databases

    @routes.post("/{migration_id}/retire", response_model=MigrationView, dependencies=_HANDLERS)
    async def retire(request: Request, migration_id: UUID, body: Retire) -> Response:
        """End for good what is completed, rolled back or cancelled. There is no way back.

        Its schemas, topics and functions are taken out of both databases and Kafka, and its name is free. Nothing is
        taken out of the stores. The one that takes no writes goes on refusing them, unless ``leave`` says otherwise.
        """

        async def look(migration: Migration) -> list[Condition]:
            return await preflight.of_retirement(databases, migration, body.leave)

        return await _obey(resources, request, migration_id, Command.RETIRE, body, prepare=look, leave=body.leave)


def _add_knobs(routes: APIRouter, resources: _Resources) -> None:
    """Settings, and the reads of single endpoints."""
    pools, databases, wake = resources.pools, resources.databases, resources.wake

    @routes.put("/{migration_id}/settings", dependencies=_HANDLERS)
    async def turn_knobs(migration_id: UUID, body: TurnKnobs, principal: CurrentPrincipal) -> MigrationView:
        """Turn live knobs; running work sees them within a second."""
        async with pools.general_primary.acquire() as conn, conn.transaction():
            migration = await service.held(conn, migration_id, expected=body.expected)
            with _faults_below("settings"):
                moved = await service.set_settings(
                    conn, migration, body.settings, by=principal.user, reason=body.reason
                )
            shown = await view(conn, moved, databases)
        wake()
        return shown

    @routes.put("/{migration_id}/reads/{endpoint}", dependencies=_HANDLERS)
    async def move_reads(
        migration_id: UUID, endpoint: str, body: MoveReads, principal: CurrentPrincipal
    ) -> MigrationView:
        """Let one endpoint be answered otherwise, at most as its phase allows. Takes effect within a second."""
        async with pools.general_primary.acquire() as conn, conn.transaction():
            migration = await service.held(conn, migration_id, expected=body.expected)
            await service.set_endpoint(
                conn, migration, endpoint, body.mode, body.rollout, by=principal.user, reason=body.reason
            )
            return await view(conn, migration, databases)


def _add_rejects(routes: APIRouter, resources: _Resources) -> None:
    """Records that could not be converted."""
    pools, databases, wake = resources.pools, resources.databases, resources.wake

    @routes.get("/{migration_id}/rejects", dependencies=_HANDLERS)
    async def list_rejects(migration_id: UUID, page: Annotated[PageQuery, Query()]) -> Page[RejectView]:
        """Records that could not be converted, by key."""
        after = _by_key.after(page)
        async with pools.general_replica.acquire() as conn:
            migration = await _found(conn, migration_id)
        async with databases.connect(migration.target) as target:
            rows = await rejects.page(target, migration.name, after=after[0] if after else "", limit=page.limit + 1)
        async with pools.general_replica.acquire() as conn:
            accepted = frozenset(await store.accepted_rejects(conn, migration, [row.key for row in rows]))

        def shown(row: rejects.Reject) -> RejectView:
            return RejectView(
                key=row.key,
                path=row.path,
                reason=row.reason,
                version=row.version,
                attempts=row.attempts,
                first_at=row.first_at,
                last_at=row.last_at,
                accepted=row.key in accepted,
            )

        return _by_key.page(rows, page, key=lambda row: (row.key,), view=shown)

    async def send_again(migration_id: UUID, keys: list[str] | None, body: Asked, by: str) -> Sent:
        async with pools.general_primary.acquire() as conn:
            migration = await _found(conn, migration_id)
            plan = await store.plan(conn, migration_id)
        asked = await rejects.retry(databases, migration, plan, keys)
        async with pools.general_primary.acquire() as conn, conn.transaction():
            held = await service.held(conn, migration_id)
            await service.note_retry(conn, held, asked, by=by, reason=body.reason)
        return Sent(asked=asked)

    @routes.post("/{migration_id}/rejects/retry", status_code=202, dependencies=_HANDLERS)
    async def retry_rejects(migration_id: UUID, body: Retry, principal: CurrentPrincipal) -> Sent:
        """Send rejected records again, as they are now, by the way that every change goes."""
        return await send_again(migration_id, body.keys, body, principal.user)

    @routes.post("/{migration_id}/rejects/accept", dependencies=_HANDLERS)
    async def accept_rejects(migration_id: UUID, body: Accept, principal: CurrentPrincipal) -> Accepted:
        """Accept by name that these records will not be in the tables, and are lost when writes have moved."""
        async with pools.general_replica.acquire() as conn:
            migration = await _found(conn, migration_id)
        async with databases.connect(migration.target) as target:
            keys = await rejects.keys(target, migration.name, body.keys)
        async with pools.general_primary.acquire() as conn, conn.transaction():
            held = await service.held(conn, migration_id, expected=body.expected)
            accepted = await service.accept_rejects(conn, held, keys, by=principal.user, reason=body.reason)
        wake()
        return Accepted(accepted=accepted)

    @routes.post("/{migration_id}/rejects/{key:path}/retry", status_code=202, dependencies=_HANDLERS)
    async def retry_reject(migration_id: UUID, key: RecordKey, body: Asked, principal: CurrentPrincipal) -> Sent:
        """Send one rejected record again."""
        return await send_again(migration_id, [key], body, principal.user)


def _add_audit(routes: APIRouter, resources: _Resources) -> None:
    """Who did what."""
    pools = resources.pools

    @routes.get("/{migration_id}/audit", dependencies=_HANDLERS)
    async def list_audit(migration_id: UUID, page: Annotated[PageQuery, Query()]) -> Page[AuditView]:
        """Who did what, why, and on what evidence; the latest first."""
        after = _latest_first.after(page)
        async with pools.general_replica.acquire() as conn:
            await _found(conn, migration_id)
            rows = await store.audit_page(
                conn, migration_id, before=after[0] if after else store.LATEST, limit=page.limit + 1
            )
        return _latest_first.page(
            rows, page, key=lambda row: (row.seq,), view=lambda row: AuditView.model_validate(row, from_attributes=True)
        )


def compares(pools: Pools) -> Callable[[UUID], Awaitable[None]]:
    """A dependency that lets a request pass only where both stores are written, so that they can be compared."""

    async def demand(migration_id: UUID) -> None:
        async with pools.general_replica.acquire() as conn:
            migration = await store.get(conn, migration_id)
        if migration is None:
            raise Problem(404, "migration-not-found", f"there is no migration {migration_id}")
        if migration.standing.phase not in COMPARABLE:
            raise Problem(
                409,
                "nothing-to-compare",
                f"in the phase {migration.standing.phase} the two stores are not compared",
                fix=f"compare in one of {', '.join(sorted(COMPARABLE))}",
            )

    return demand


class PageOfMigrations(PageQuery):
    """A page of migrations; ``name`` keeps those of one name."""

    name: str | None = Field(default=None, max_length=200)


def refused(error: TransitionRefused) -> Problem:
    """The answer to what cannot be asked now: the conditions that are not met, and what to do about each."""
    return Problem(
        409,
        "transition-refused",
        error.message,
        fix=error.fix,
        extensions={
            "phase": error.standing.phase,
            "asked": error.asked,
            "conditions": [
                ConditionView.model_validate(condition, from_attributes=True).model_dump()
                for condition in error.conditions
            ],
        },
    )


@contextmanager
def _faults_below(field: str) -> Iterator[None]:
    """Answer what is wrong with a part of a body that is checked by itself as the whole body's faults are."""
    try:
        yield
    except ValidationError as error:
        faults: list[Any] = [{**fault, "loc": ("body", field, *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults) from None


def _mapping_of(given: dict[str, JsonValue] | str) -> mappings.Mapping:
    """The mapping that a request holds: YAML or JSON text, or the object. Raises the 422 `Problem`."""
    try:
        return mappings.load(given if isinstance(given, str) else json.dumps(given, indent=1))
    except InvalidMapping as error:
        raise Problem(
            422,
            "invalid-mapping",
            f"the mapping has {len(error.faults)} fault{'s' if len(error.faults) != 1 else ''}",
            fix="correct the places under errors; nothing was registered",
            extensions={
                "errors": [
                    {
                        # Lines are those of the text that was sent; an object has none.
                        "field": f"line {fault.line}, {fault.path}" if isinstance(given, str) else fault.path,
                        "problem": fault.problem,
                    }
                    for fault in error.faults
                ]
            },
        ) from None


def _draft(body: NewMigration) -> Draft:
    mapping = _mapping_of(body.mapping)
    return Draft(
        name=mapping.name,
        owner=body.owner,
        source=body.source,
        table=mapping.source.table,
        target=body.target,
        mapping=plans.as_json(mapping),
        options=body.options,
        settings=body.settings,
    )


async def _found(conn: Connection, migration_id: UUID) -> Migration:
    migration = await store.get(conn, migration_id)
    if migration is None:
        raise service.MigrationNotFound(migration_id)
    return migration
