"""Use cases: plan a migration, settle its checklist, and ask it to go somewhere.

They run inside the caller's transaction: the row, the audit line, the event and the flags of the reads commit together,
or nothing does. What has to be done in the databases is not done here: a migration that is moving is got there by the
work (`replank_schema.migration.conductor`), which comes back with `arrived` or `gave_up`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from pydantic import JsonValue, TypeAdapter
from uuid_utils.compat import uuid7

from replank import flags, outbox
from replank.connection import Connection
from replank.contracts.schema import MigrationPhaseChanged, MigrationPlanned, MigrationReady, Source, plan_sha256
from replank.errors import ReplankError
from replank_schema.migration import comparison, comparison_store, machine, store
from replank_schema.migration.comparison_model import RunState
from replank_schema.migration.conditions import Evidence, before_retiring, conditions
from replank_schema.migration.machine import Command, TransitionRefused
from replank_schema.migration.model import (
    AT_REST,
    FORWARD,
    OVER,
    Action,
    Compared,
    Condition,
    Draft,
    Item,
    Leave,
    Migration,
    Mode,
    Phase,
    Settings,
    Standing,
    State,
    Tables,
    furthest,
    unmet,
)
from replank_schema.migration.report import Facts, Retirement

#: What is put into flags and audit where the service itself acts.
SERVICE: Final = "service:schema"
_CONDITIONS: Final = TypeAdapter(list[Condition])


class Settled(StrEnum):
    """What came of an event about a migration's checklist."""

    UNKNOWN_MIGRATION = "unknown_migration"
    #: It was started: the checklist is closed.
    CLOSED = "closed"
    #: It speaks of somebody who is not the migration's owner.
    NOT_THE_OWNER = "not_the_owner"
    NOTED = "noted"
    READY = "ready"


class MigrationNotFound(ReplankError):
    """There is no such migration."""

    def __init__(self, migration_id: UUID) -> None:
        super().__init__(f"there is no migration {migration_id}", fix="list the migrations to see those that there are")


class PhaseChanged(ReplankError):
    """The migration is not in the phase that the caller took it to be in."""


class EndpointNotFound(ReplankError):
    """The plan names no such endpoint."""


class LeaseLost(ReplankError):
    """Somebody else leads this migration, or may at any moment: what was to be written was not."""


# --- before it starts ---


async def plan(conn: Connection, draft: Draft, *, planned_by: str) -> Migration:
    """Register a migration and say so. Raises `ValueError` for a plan that cannot be kept (`canonical_plan`)."""
    now = datetime.now(UTC)
    migration = Migration(
        id=uuid7(),
        name=draft.name,
        owner=draft.owner,
        source=draft.source,
        table=draft.table,
        target=draft.target,
        plan_sha256=plan_sha256(draft.plan),
        standing=Standing(),
        tables=Tables.KEEP,
        phase_since=now,
        settings=draft.settings,
        planned_by=planned_by,
        planned_at=now,
        ready_at=None,
    )
    await store.insert(conn, migration, draft)
    await store.audit(
        conn,
        migration.id,
        who=planned_by,
        action="plan",
        reason="planned",
        from_phase=Phase.PLANNED,
        to_phase=Phase.PLANNED,
        evidence={"plan_sha256": migration.plan_sha256},
    )
    planned = MigrationPlanned(
        migration_id=migration.id,
        name=migration.name,
        owner=migration.owner,
        source=Source(target=migration.source, table=migration.table),
        plan=draft.plan,
        plan_sha256=migration.plan_sha256,
        planned_by=planned_by,
        planned_at=migration.planned_at,
    )
    await outbox.append(conn, planned, key=str(migration.id), subject=f"migration:{migration.id}")
    return migration


async def settle(
    conn: Connection, migration_id: UUID, item: Item, state: State, *, detail: str, event_id: UUID
) -> Settled:
    """Note what an event says about one item. With the last one the migration is ready, and says so the first time."""
    migration = await store.lock(conn, migration_id)
    if migration is None:
        return Settled.UNKNOWN_MIGRATION
    return await _settle(conn, migration, item, state, detail=detail, event_id=event_id)


async def settle_access(conn: Connection, migration_id: UUID, *, user: str, owns: bool, event_id: UUID) -> Settled:
    """Note that somebody became an owner of the migration, or is one no more.

    What counts is the owner that the plan names: others may come and go. A revocation opens the item again.
    """
    migration = await store.lock(conn, migration_id)
    if migration is None:
        return Settled.UNKNOWN_MIGRATION
    if user != migration.owner:
        return Settled.NOT_THE_OWNER
    state, detail = (State.MET, f"{user} is owner") if owns else (State.MISSING, f"{user} is owner no more")
    return await _settle(conn, migration, Item.ACCESS, state, detail=detail, event_id=event_id)


async def _settle(
    conn: Connection, migration: Migration, item: Item, state: State, *, detail: str, event_id: UUID
) -> Settled:
    if migration.standing.phase not in AT_REST:
        return Settled.CLOSED
    now = datetime.now(UTC)
    all_met = await store.settle(conn, migration.id, item, state, detail=detail, event_id=event_id, at=now)
    if not all_met or migration.ready_at is not None:
        return Settled.NOTED
    await store.set_ready(conn, migration.id, now)
    ready = MigrationReady(
        migration_id=migration.id,
        name=migration.name,
        owner=migration.owner,
        plan_sha256=migration.plan_sha256,
        ready_at=now,
    )
    await outbox.append(conn, ready, key=str(migration.id), subject=f"migration:{migration.id}")
    return Settled.READY


# --- what is asked of it ---


async def held(conn: Connection, migration_id: UUID, *, expected: Phase | None = None) -> Migration:
    """A migration, held until the transaction ends. Raises `MigrationNotFound`, `PhaseChanged`."""
    migration = await store.lock(conn, migration_id)
    if migration is None:
        raise MigrationNotFound(migration_id)
    if expected is not None and migration.standing.phase is not expected:
        raise PhaseChanged(
            f"the migration {migration.name} is in the phase {migration.standing.phase}, not in {expected}",
            fix="look at it again, and decide on where it is now",
        )
    return migration


async def evidence(conn: Connection, migration: Migration, databases: frozenset[str]) -> Evidence:
    """All that conditions are judged by, as this database knows it. ``databases`` are those that are configured."""
    reported = await store.reported(conn, migration.id)
    plan = await store.plan(conn, migration.id)
    facts = await store.facts(conn, migration.id)
    return Evidence(
        readiness=await store.checklist(conn, migration.id),
        settings=migration.settings,
        unknown_databases=sorted({migration.source, migration.target} - databases),
        same_name=await store.same_name(conn, migration),
        facts=facts,
        report=reported.report,
        report_age=reported.age,
        phase_since=migration.phase_since,
        routes=await store.routes(conn, migration.id),
        comparison=await _compared(conn, migration.id, facts.compare_since),
        same_transaction=plan.options.same_transaction,
    )


async def command(
    conn: Connection,
    migration: Migration,
    asked: Command,
    *,
    by: str,
    reason: str,
    databases: frozenset[str],
    to: Phase | None = None,
    tables: Tables = Tables.KEEP,
    leave: Leave = Leave.CLOSED,
    rollout: float = 100.0,
    preflight: Sequence[Condition] = (),
) -> Migration:
    """Ask a migration, which the caller holds (`held`), to do something; returns it as it stands then.

    ``preflight`` is what the databases themselves said about a start or a retirement. ``to`` and ``tables`` are for the
    way back, ``leave`` is for a retirement, ``rollout`` is for how many per cent of the keys the reads of the next
    phase move. Raises `TransitionRefused`.
    """
    after = machine.ask(migration.standing, asked, to=to)
    judged: list[Condition] = []
    if asked in (Command.START, Command.ADVANCE, Command.RETIRE):
        seen = await evidence(conn, migration, databases)
        if asked is Command.RETIRE:
            judged = before_retiring(seen, migration.standing, migration.tables, leave)
        else:
            judged = conditions(after.moving_to or after.phase, seen)
        judged += preflight
        if failed := unmet(judged):
            raise TransitionRefused(migration.standing, asked, failed)
    taken_back = asked in (Command.ROLLBACK, Command.CANCEL)
    told: dict[str, JsonValue] = {"to": to, "tables": tables.value} if taken_back else {}
    if asked is Command.RETIRE:
        retirement = await _retire(conn, migration, leave)
        told = retirement.model_dump(mode="json")
    moved = await _move(
        conn,
        migration,
        after,
        action=asked.value,
        by=by,
        reason=reason,
        tables=tables if taken_back else migration.tables,
        evidence=_as_evidence(judged) | told,
    )
    if taken_back:
        await _forget_comparison(conn, migration.id)
        known = await store.facts(conn, migration.id)
        if migration.standing.phase is Phase.COMPLETED or known.reads_wait:
            # The key-value store has heard of nothing since: the work moves them with the writes (`reads_follow`).
            await store.set_facts(conn, migration.id, known.model_copy(update={"reads_wait": True}))
        else:
            # At once, and before anything else: from here on nobody reads what is about to be taken away.
            await set_reads(conn, moved, furthest(after.moving_to or after.phase), 100.0, by=by, reason=reason)
    elif after.phase is not migration.standing.phase:
        await _set_reads_of(conn, moved, rollout, by=by, reason=reason)
        if after.phase is Phase.VERIFYING:
            await _compare_anew(conn, moved)
    return moved


async def reads_follow(conn: Connection, migration_id: UUID, token: int) -> bool:
    """Move the reads that waited for the key-value store (`Facts.reads_wait`), now that it has the writes again.

    Tells whether there was anything to move. Raises `LeaseLost`.
    """
    migration = await _led(conn, migration_id, token)
    known = await store.facts(conn, migration_id)
    if not known.reads_wait:
        return False
    mode = furthest(migration.standing.moving_to or migration.standing.phase)
    reason = "the key-value store has the writes again"
    await set_reads(conn, migration, mode, 100.0, by=SERVICE, reason=reason)
    await store.set_facts(conn, migration_id, known.model_copy(update={"reads_wait": False}))
    await _audit_in_place(conn, migration, "reads", by=SERVICE, reason=reason, evidence={"mode": mode})
    return True


async def arrived(conn: Connection, migration_id: UUID, token: int, proof: Mapping[str, JsonValue]) -> Migration | None:
    """The work has got a migration to where it was moving; ``proof`` says how.

    ``None`` when it is not moving any more. Raises `LeaseLost`.
    """
    migration = await _led(conn, migration_id, token)
    if migration.standing.moving_to is None:
        return None
    after = machine.arrive(migration.standing)
    reason = f"arrived from {migration.standing.phase}"
    moved = await _move(conn, migration, after, action="arrive", by=SERVICE, reason=reason, evidence=proof)
    if after.phase is Phase.NEW_ONLY:
        await _set_reads_of(conn, moved, 100.0, by=SERVICE, reason=reason)
    elif after.phase in machine.WAYPOINTS:
        await _compare_anew(conn, moved)
    return moved


async def gave_up(conn: Connection, migration_id: UUID, token: int, why: str) -> Migration | None:
    """The work could not get a migration forward, and has undone what it did.

    ``None`` when it is not moving forward any more. Raises `LeaseLost`.
    """
    migration = await _led(conn, migration_id, token)
    if migration.standing.moving_to is None or migration.standing.phase in (Phase.ROLLING_BACK, Phase.RETIRING):
        return None
    after = machine.give_up(migration.standing)
    evidence: dict[str, JsonValue] = {"to": migration.standing.moving_to}
    return await _move(conn, migration, after, action="give_up", by=SERVICE, reason=why, evidence=evidence)


async def note(conn: Connection, migration_id: UUID, token: int, run: int, facts: Mapping[str, object]) -> None:
    """Keep facts that the work has reached in a run; those of an earlier run are dropped. Raises `LeaseLost`."""
    migration = await _led(conn, migration_id, token)
    if migration.standing.run != run:
        return
    known = await store.facts(conn, migration_id)
    await store.set_facts(conn, migration_id, Facts.model_validate({**known.model_dump(), **facts}))


async def advance_by_itself(conn: Connection, migration_id: UUID, token: int, databases: frozenset[str]) -> bool:
    """Advance a migration whose settings say so, if its conditions are met. Raises `LeaseLost`."""
    migration = await _led(conn, migration_id, token)
    standing, until = migration.standing, migration.settings.auto_until
    if until is None or standing.phase not in FORWARD[1:-1] or standing.moving_to is not None or standing.paused:
        return False
    target = machine.following(standing.phase)
    if target is None or FORWARD.index(target) > FORWARD.index(until):
        return False
    if unmet(conditions(target, await evidence(conn, migration, databases))):
        return False
    await command(conn, migration, Command.ADVANCE, by=SERVICE, reason=f"auto_until is {until}", databases=databases)
    return True


async def set_settings(
    conn: Connection, migration: Migration, changed: Mapping[str, object], *, by: str, reason: str
) -> Migration:
    """Turn some of the live knobs; returns the migration as it stands then. Raises pydantic's `ValidationError`."""
    settings = Settings.model_validate({**migration.settings.model_dump(), **changed})
    await store.set_settings(conn, migration.id, settings)
    before, after = migration.settings.model_dump(mode="json"), settings.model_dump(mode="json")
    evidence: dict[str, JsonValue] = {
        name: {"from": before[name], "to": value} for name, value in after.items() if before[name] != value
    }
    await _audit_in_place(conn, migration, "settings", by=by, reason=reason, evidence=evidence)
    return await held(conn, migration.id)


async def set_endpoint(
    conn: Connection, migration: Migration, endpoint: str, mode: Mode, rollout: float, *, by: str, reason: str
) -> None:
    """Let one endpoint be answered otherwise, for some per cent of the keys.

    Raises `TransitionRefused` for more than the phase allows and for a store that is behind, `EndpointNotFound`.
    """
    standing, modes = migration.standing, list(Mode)
    if standing.phase in OVER:
        detail = "reads stay with the store that takes the writes"
        fix = "take its router out of the application: nothing changes any more"
        raise TransitionRefused(standing, f"reads by {mode}", [Condition("mode", False, detail, fix)])
    most = furthest(standing.moving_to or standing.phase if standing.phase is Phase.ROLLING_BACK else standing.phase)
    if modes.index(mode) > modes.index(most):
        detail = f"{mode} is more than {most}, which is what {standing.phase} allows"
        fix = "advance the migration first"
        raise TransitionRefused(standing, f"reads by {mode}", [Condition("mode", False, detail, fix)])
    behind = standing.phase is Phase.COMPLETED and (mode is not Mode.NEW or rollout < 100)
    if behind or (await store.facts(conn, migration.id)).reads_wait:
        detail = "the key-value store has not heard of the tables' writes since the migration was completed"
        fix = "roll back: reads move with the writes"
        raise TransitionRefused(standing, f"reads by {mode}", [Condition("mode", False, detail, fix)])
    await set_reads(conn, migration, mode, rollout, by=by, reason=reason, endpoint=endpoint)
    evidence: dict[str, JsonValue] = {"endpoint": endpoint, "mode": mode, "rollout": rollout}
    await _audit_in_place(conn, migration, "reads", by=by, reason=reason, evidence=evidence)


async def set_reads(
    conn: Connection,
    migration: Migration,
    mode: Mode,
    rollout: float,
    *,
    by: str,
    reason: str,
    endpoint: str | None = None,
) -> None:
    """Set the flags of one endpoint, or of all, in this transaction: every process knows within a second."""
    endpoints = await store.set_routes(conn, migration.id, mode, rollout, endpoint=endpoint)
    if endpoint is not None and not endpoints:
        raise EndpointNotFound(
            f"the plan of {migration.name} names no endpoint {endpoint}", fix="name those that move when planning"
        )
    # In one order, so that two transactions do not wait for each other's flags.
    for name in sorted(endpoints):
        await flags.set_flag(conn, flag_of(migration.name, name), mode.value, by=by, reason=reason, rollout=rollout)


def flag_of(name: str, endpoint: str) -> str:
    """The flag that says which store answers an endpoint."""
    return f"migrate.{name}.reads.{endpoint}"


async def accept_rejects(conn: Connection, migration: Migration, keys: Sequence[str], *, by: str, reason: str) -> int:
    """Accept that these records are lost once the tables alone are written; returns how many were not accepted yet."""
    accepted = await store.accept_rejects(conn, migration, keys, by=by, reason=reason)
    evidence: dict[str, JsonValue] = {"accepted": len(accepted), "keys": list(accepted[:_KEYS_IN_AUDIT])}
    await _audit_in_place(conn, migration, "accept_rejects", by=by, reason=reason, evidence=evidence)
    return len(accepted)


async def note_retry(conn: Connection, migration: Migration, asked: int, *, by: str, reason: str) -> None:
    """Say in the audit that rejected records were sent again."""
    await _audit_in_place(conn, migration, "retry_rejects", by=by, reason=reason, evidence={"asked": asked})


_KEYS_IN_AUDIT: Final = 100
_RUNS_LOOKED_AT: Final = 20


async def _retire(conn: Connection, migration: Migration, leave: Leave) -> Retirement:
    """Write down what is to be done, for whoever does it."""
    completed = migration.standing.phase is Phase.COMPLETED
    retirement = Retirement(closed="source" if completed else "target", leave=leave.value)
    known = await store.facts(conn, migration.id)
    await store.set_facts(conn, migration.id, known.model_copy(update={"retirement": retirement}))
    return retirement


async def _compare_anew(conn: Connection, migration: Migration) -> None:
    """Ask for a comparison, and count none from before: since then the tables were written in another way."""
    known = await store.facts(conn, migration.id)
    unsaid = {"compare_since": datetime.now(UTC), "constraints": False, "reverse_removed": False}
    await store.set_facts(conn, migration.id, known.model_copy(update=unsaid))
    await _forget_comparison(conn, migration.id)
    await comparison.ask(conn, migration.id, asked_by=SERVICE)


async def _forget_comparison(conn: Connection, migration_id: UUID) -> None:
    if (run := await comparison_store.to_run(conn, migration_id)) is not None:
        await comparison_store.cancel(conn, migration_id, run.id)


async def _compared(conn: Connection, migration_id: UUID, since: datetime | None) -> Compared | None:
    """The last comparison of everything that began after ``since`` and came to its end."""
    if since is None:
        return None
    for run in await comparison_store.runs(conn, migration_id, before=store.NEWEST, limit=_RUNS_LOOKED_AT):
        begun_since = run.started_at is not None and run.started_at >= since
        if run.state is RunState.DONE and run.ended_at is not None and begun_since and run.progress is not None:
            found = run.progress
            return Compared(found.compared, found.different, found.unsettled, found.percent, run.ended_at)
    return None


async def _led(conn: Connection, migration_id: UUID, token: int) -> Migration:
    # The migration first, as everybody does: the lease is only ever held for a moment.
    migration = await held(conn, migration_id)
    if not await store.holds(conn, migration_id, token):
        raise LeaseLost(f"the lease on the migration {migration.name} is lost", fix="nothing: whoever has it goes on")
    return migration


async def _move(
    conn: Connection,
    migration: Migration,
    after: Standing,
    *,
    action: Action,
    by: str,
    reason: str,
    evidence: Mapping[str, JsonValue],
    tables: Tables | None = None,
) -> Migration:
    before = migration.standing
    await store.move(conn, migration.id, after, tables or migration.tables)
    await store.audit(
        conn,
        migration.id,
        who=by,
        action=action,
        reason=reason,
        from_phase=before.phase,
        to_phase=after.phase,
        evidence=dict(evidence) | ({"moving_to": after.moving_to} if after.moving_to is not None else {}),
    )
    if after.phase is not before.phase:
        changed = MigrationPhaseChanged(
            migration_id=migration.id,
            name=migration.name,
            run=after.run,
            from_phase=before.phase.value,
            to_phase=after.phase.value,
            changed_by=by,
            reason=reason,
            changed_at=datetime.now(UTC),
        )
        await outbox.append(conn, changed, key=str(migration.id), subject=f"migration:{migration.id}")
    return await held(conn, migration.id)


async def _set_reads_of(conn: Connection, migration: Migration, rollout: float, *, by: str, reason: str) -> None:
    """What the beginning of a phase means for reads; in most of them they stay where they are."""
    phase = migration.standing.phase
    if phase is Phase.SHADOW_READS:
        known, reported = await store.facts(conn, migration.id), await store.reported(conn, migration.id)
        counted = known.model_copy(update={"reads_before": reported.report.reads})
        await store.set_facts(conn, migration.id, counted)
    if phase in (Phase.CAPTURING, Phase.SHADOW_READS, Phase.NEW_WITH_FALLBACK, Phase.NEW_ONLY):
        await set_reads(conn, migration, furthest(phase), rollout, by=by, reason=reason)


async def _audit_in_place(
    conn: Connection, migration: Migration, action: Action, *, by: str, reason: str, evidence: Mapping[str, JsonValue]
) -> None:
    phase = migration.standing.phase
    await store.audit(
        conn, migration.id, who=by, action=action, reason=reason, from_phase=phase, to_phase=phase, evidence=evidence
    )


def _as_evidence(judged: Sequence[Condition]) -> dict[str, JsonValue]:
    if not judged:
        return {}
    return {"conditions": _CONDITIONS.dump_python(list(judged), mode="json", exclude={"__all__": {"fix"}})}
