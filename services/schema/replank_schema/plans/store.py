"""All SQL about migration plans. Every function runs on the caller's connection, in the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from pydantic import JsonValue

from replank.connection import Connection
from replank.contracts.schema import Source
from replank_schema.plans.model import Item, Migration, Phase, Readiness, State

_INSERT: Final = """
    insert into migration (id, name, owner, source, plan, plan_sha256, planned_by, planned_at)
    values ($1, $2, $3, $4::jsonb, $5::jsonb, $6, $7, $8)
"""
_INSERT_CHECKLIST: Final = """
    insert into readiness (migration_id, item, changed_at)
    select $1, item, $3 from unnest($2::text[]) as item
"""
_GET: Final = """
    select id, name, owner, source, plan_sha256, phase, planned_by, planned_at, ready_at from migration where id = $1
"""
_LOCK: Final = _GET + "for update"
_PLAN: Final = "select plan from migration where id = $1"
_CHECKLIST: Final = """
    select item, state, detail, event_id, changed_at from readiness where migration_id = $1
    order by array_position(array['access', 'baseline', 'archive'], item)
"""
# Ids are UUIDv7: descending ids are the newest first, and the primary key is the page's index.
_PAGE: Final = """
    select id, name, owner, source, plan_sha256, phase, planned_by, planned_at, ready_at from migration
    where id < $1 order by id desc limit $2
"""
_SETTLE: Final = """
    update readiness set state = $3, detail = $4, event_id = $5, changed_at = $6 where migration_id = $1 and item = $2
"""
_ALL_MET: Final = "select bool_and(state = 'met') from readiness where migration_id = $1"
_SET_READY: Final = "update migration set phase = 'ready', ready_at = $2 where id = $1"

#: Above every id: where the first page starts.
NEWEST: Final = UUID(int=2**128 - 1)


async def insert(conn: Connection, migration: Migration, plan: Mapping[str, JsonValue]) -> None:
    """Add a migration with its checklist, all of it pending."""
    await conn.execute(
        _INSERT,
        migration.id,
        migration.name,
        migration.owner,
        migration.source.model_dump_json(exclude_none=True),
        json.dumps(plan),
        migration.plan_sha256,
        migration.planned_by,
        migration.planned_at,
    )
    await conn.execute(_INSERT_CHECKLIST, migration.id, [item.value for item in Item], migration.planned_at)


async def get(conn: Connection, migration_id: UUID) -> Migration | None:
    row = await conn.fetchrow(_GET, migration_id)
    return _migration(row) if row else None


async def lock(conn: Connection, migration_id: UUID) -> Migration | None:
    """Read a migration and hold it until the transaction ends, so that its checklist settles one item at a time."""
    row = await conn.fetchrow(_LOCK, migration_id)
    return _migration(row) if row else None


async def plan(conn: Connection, migration_id: UUID) -> dict[str, JsonValue]:
    """The plan of a migration that is known to exist."""
    found: dict[str, JsonValue] = json.loads(await conn.fetchval(_PLAN, migration_id))
    return found


async def checklist(conn: Connection, migration_id: UUID) -> list[Readiness]:
    rows = await conn.fetch(_CHECKLIST, migration_id)
    return [
        Readiness(Item(row["item"]), State(row["state"]), row["detail"], row["event_id"], row["changed_at"])
        for row in rows
    ]


async def page(conn: Connection, *, before: UUID, limit: int) -> list[Migration]:
    """The newest migrations that were registered before the given one."""
    return [_migration(row) for row in await conn.fetch(_PAGE, before, limit)]


async def settle(
    conn: Connection, migration_id: UUID, item: Item, state: State, *, detail: str, event_id: UUID, at: datetime
) -> bool:
    """Settle one item; tells whether the whole checklist is met now."""
    await conn.execute(_SETTLE, migration_id, item.value, state.value, detail, event_id, at)
    return bool(await conn.fetchval(_ALL_MET, migration_id))


async def set_ready(conn: Connection, migration_id: UUID, at: datetime) -> None:
    await conn.execute(_SET_READY, migration_id, at)


def _migration(row: asyncpg.Record) -> Migration:
    columns: dict[str, Any] = dict(row)
    return Migration(
        **{**columns, "source": Source.model_validate_json(columns["source"]), "phase": Phase(columns["phase"])}
    )
