"""Use cases: plan a migration, settle an item of its checklist.

They run inside the caller's transaction, so that the rows and the event that tells of them commit together.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from uuid_utils.compat import uuid7

from replank import outbox
from replank.connection import Connection
from replank.contracts.schema import MigrationPlanned, MigrationReady, plan_sha256
from replank_schema.plans import store
from replank_schema.plans.model import Draft, Item, Migration, Phase, State


class Settled(StrEnum):
    """What came of an event about a migration's checklist."""

    UNKNOWN_MIGRATION = "unknown_migration"
    #: The migration is ready already: the checklist is closed.
    CLOSED = "closed"
    #: It speaks of somebody who is not the migration's owner.
    NOT_THE_OWNER = "not_the_owner"
    NOTED = "noted"
    READY = "ready"


async def plan(conn: Connection, draft: Draft, *, planned_by: str) -> Migration:
    """Register a migration and say so. Raises `ValueError` for a plan that cannot be kept (`canonical_plan`)."""
    migration = Migration(
        id=uuid7(),
        name=draft.name,
        owner=draft.owner,
        source=draft.source,
        plan_sha256=plan_sha256(draft.plan),
        phase=Phase.PLANNED,
        planned_by=planned_by,
        planned_at=datetime.now(UTC),
        ready_at=None,
    )
    await store.insert(conn, migration, draft.plan)
    planned = MigrationPlanned(
        migration_id=migration.id,
        name=migration.name,
        owner=migration.owner,
        source=migration.source,
        plan=dict(draft.plan),
        plan_sha256=migration.plan_sha256,
        planned_by=planned_by,
        planned_at=migration.planned_at,
    )
    await outbox.append(conn, planned, key=str(migration.id), subject=f"migration:{migration.id}")
    return migration


async def settle(
    conn: Connection, migration_id: UUID, item: Item, state: State, *, detail: str, event_id: UUID
) -> Settled:
    """Note what an event says about one item; with the last one the migration becomes ready, and says so once."""
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
    if migration.phase is not Phase.PLANNED:
        return Settled.CLOSED
    now = datetime.now(UTC)
    if not await store.settle(conn, migration.id, item, state, detail=detail, event_id=event_id, at=now):
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
