"""All SQL about migrations in the service's own database. Every function runs on the caller's connection.

Those that write belong into the caller's transaction; what a leader writes names its lease, and says whether it held.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from pydantic import JsonValue

from replank.connection import Connection
from replank_schema.migration.model import (
    Action,
    AuditLine,
    Draft,
    Item,
    Migration,
    Mode,
    Options,
    Phase,
    Plan,
    Readiness,
    Route,
    Settings,
    Standing,
    State,
    Tables,
)
from replank_schema.migration.report import Facts, Report

_INSERT: Final = """
    insert into migration
        (id, name, owner, source, target, plan, plan_sha256, settings, planned_by, planned_at, phase_since)
    values ($1, $2, $3, $4::jsonb, $5, $6::jsonb, $7, $8::jsonb, $9, $10, $10)
"""
_INSERT_CHECKLIST: Final = """
    insert into readiness (migration_id, item, changed_at)
    select $1, item, $3 from unnest($2::text[]) as item
"""
_INSERT_ROUTES: Final = """
    insert into read_route (migration_id, endpoint, mode, rollout)
    select $1, endpoint, 'kv', 100 from unnest($2::text[]) as endpoint
"""
_COLUMNS: Final = """
    select id, name, owner, source ->> 'target' as source, coalesce(source ->> 'table', '') as "table", target,
           plan_sha256, phase, moving_to, paused, run, tables, phase_since, settings, planned_by, planned_at, ready_at
      from migration
"""
_GET: Final = _COLUMNS + "where id = $1"
_LOCK: Final = _GET + " for update"
_PLAN: Final = "select plan from migration where id = $1"
_CHECKLIST: Final = """
    select item, state, detail, event_id, changed_at from readiness where migration_id = $1
    order by array_position(array['access', 'baseline', 'archive'], item)
"""
# Ids are UUIDv7: descending ids are the newest first, and the primary key is the page's index.
_PAGE: Final = _COLUMNS + "where id < $1 and ($3::text is null or name = $3) order by id desc limit $2"
_SETTLE: Final = """
    update readiness set state = $3, detail = $4, event_id = $5, changed_at = $6 where migration_id = $1 and item = $2
"""
_ALL_MET: Final = "select bool_and(state = 'met') from readiness where migration_id = $1"
_SET_READY: Final = "update migration set ready_at = $2 where id = $1"
_SAME_NAME: Final = """
    select id from migration
     where name = $1 and id <> $2 and phase not in ('planned', 'rolled_back', 'cancelled', 'retired')
"""
_MOVE: Final = """
    update migration
       set phase = $2, moving_to = $3, paused = $4, run = $5, tables = $6,
           phase_since = case when phase = $2 then phase_since else clock_timestamp() end,
           facts = case when run = $5 then facts else '{}' end
     where id = $1
"""
_SET_SETTINGS: Final = "update migration set settings = $2::jsonb where id = $1"
_FACTS: Final = "select facts from migration where id = $1"
_SET_FACTS: Final = "update migration set facts = $2::jsonb where id = $1"
_AUDIT: Final = """
    insert into audit (migration_id, who, action, reason, from_phase, to_phase, evidence)
    values ($1, $2, $3, $4, $5, $6, $7::jsonb)
"""
_AUDIT_PAGE: Final = """
    select seq, at, who, action, reason, from_phase, to_phase, evidence from audit
     where migration_id = $1 and seq < $2 order by seq desc limit $3
"""
_ROUTES: Final = """
    select endpoint, mode, rollout::float8 as rollout from read_route where migration_id = $1 order by endpoint
"""
_SET_ROUTES: Final = """
    update read_route set mode = $2, rollout = $3::float8::numeric(6, 3)
     where migration_id = $1 and ($4::text is null or endpoint = $4)
    returning endpoint
"""
_ACCEPT_REJECTS: Final = """
    insert into accepted_reject (migration_id, run, key, accepted_by, reason)
    select $1, $2, key, $4, $5 from unnest($3::text[]) as key order by key
    on conflict do nothing returning key
"""
_ACCEPTED_REJECTS: Final = """
    select key from accepted_reject where migration_id = $1 and run = $2 and ($3::text[] is null or key = any ($3))
"""

_CLAIM: Final = """
    insert into lease as held (migration_id, owner, token, held_until)
    select id, $1, 1, clock_timestamp() + make_interval(secs => $2)
      from migration m
     where phase not in ('planned', 'rolled_back', 'cancelled', 'retired')
       and not (phase = 'completed' and coalesce((facts ->> 'reverse_removed')::boolean, false))
       and not exists (select from lease l where l.migration_id = m.id and l.held_until > clock_timestamp())
     order by id
    on conflict (migration_id) do update
       set owner = excluded.owner, token = held.token + 1, held_until = excluded.held_until
     where held.held_until <= clock_timestamp()
    returning migration_id, token
"""
_RENEW: Final = """
    update lease
       set held_until = clock_timestamp() + make_interval(secs => $3),
           report = $4::jsonb, reported_at = clock_timestamp()
     where migration_id = $1 and token = $2 and held_until > clock_timestamp()
    returning true
"""
_RELEASE: Final = "update lease set held_until = '-infinity' where migration_id = $1 and token = $2"
_HOLDS: Final = """
    select true from lease where migration_id = $1 and token = $2 and held_until > clock_timestamp() for share
"""
_REPORT: Final = """
    select owner, report, extract(epoch from clock_timestamp() - reported_at)::float8 as age,
           held_until > clock_timestamp() as held
      from lease where migration_id = $1
"""

#: Above every id: where the first page starts.
NEWEST: Final = UUID(int=2**128 - 1)
#: Above every audit line.
LATEST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Reported:
    """What the work says of itself, and how long ago in seconds."""

    report: Report
    age: float | None
    leader: str | None


async def insert(conn: Connection, migration: Migration, draft: Draft) -> None:
    """Add a migration with its checklist, all of it pending, and its endpoints, all of them on the key-value store."""
    await conn.execute(
        _INSERT,
        migration.id,
        migration.name,
        migration.owner,
        json.dumps({"target": migration.source, "table": migration.table}),
        migration.target,
        json.dumps(draft.plan),
        migration.plan_sha256,
        migration.settings.model_dump_json(),
        migration.planned_by,
        migration.planned_at,
    )
    await conn.execute(_INSERT_CHECKLIST, migration.id, [item.value for item in Item], migration.planned_at)
    await conn.execute(_INSERT_ROUTES, migration.id, list(draft.options.endpoints))


async def get(conn: Connection, migration_id: UUID) -> Migration | None:
    row = await conn.fetchrow(_GET, migration_id)
    return _migration(row) if row else None


async def lock(conn: Connection, migration_id: UUID) -> Migration | None:
    """Read a migration and hold it until the transaction ends, so that it is changed by one at a time."""
    row = await conn.fetchrow(_LOCK, migration_id)
    return _migration(row) if row else None


async def plan(conn: Connection, migration_id: UUID) -> Plan:
    """The plan of a migration that is known to exist."""
    found = json.loads(await conn.fetchval(_PLAN, migration_id))
    return Plan(found.get("mapping", {}), Options.model_validate(found.get("options", {})))


async def checklist(conn: Connection, migration_id: UUID) -> list[Readiness]:
    rows = await conn.fetch(_CHECKLIST, migration_id)
    return [
        Readiness(Item(row["item"]), State(row["state"]), row["detail"], row["event_id"], row["changed_at"])
        for row in rows
    ]


async def page(conn: Connection, *, before: UUID, limit: int, name: str | None = None) -> list[Migration]:
    """The newest migrations that were registered before the given one."""
    return [_migration(row) for row in await conn.fetch(_PAGE, before, limit, name)]


async def settle(
    conn: Connection, migration_id: UUID, item: Item, state: State, *, detail: str, event_id: UUID, at: datetime
) -> bool:
    """Settle one item; tells whether the whole checklist is met now."""
    await conn.execute(_SETTLE, migration_id, item.value, state.value, detail, event_id, at)
    return bool(await conn.fetchval(_ALL_MET, migration_id))


async def set_ready(conn: Connection, migration_id: UUID, at: datetime) -> None:
    await conn.execute(_SET_READY, migration_id, at)


async def same_name(conn: Connection, migration: Migration) -> UUID | None:
    """Another migration of this name whose parts are in the databases."""
    found: UUID | None = await conn.fetchval(_SAME_NAME, migration.name, migration.id)
    return found


async def move(conn: Connection, migration_id: UUID, standing: Standing, tables: Tables) -> None:
    """Let a migration stand elsewhere. A new run begins without facts."""
    await conn.execute(
        _MOVE, migration_id, standing.phase, standing.moving_to, standing.paused, standing.run, tables.value
    )


async def set_settings(conn: Connection, migration_id: UUID, settings: Settings) -> None:
    await conn.execute(_SET_SETTINGS, migration_id, settings.model_dump_json())


async def facts(conn: Connection, migration_id: UUID) -> Facts:
    """The facts of the present run of a migration that is known to exist."""
    return Facts.model_validate_json(await conn.fetchval(_FACTS, migration_id))


async def set_facts(conn: Connection, migration_id: UUID, facts: Facts) -> None:
    """Replace the facts. The caller holds the migration (`lock`) and knows that they are of its present run."""
    await conn.execute(_SET_FACTS, migration_id, facts.model_dump_json(exclude_defaults=True))


async def audit(
    conn: Connection,
    migration_id: UUID,
    *,
    who: str,
    action: Action,
    reason: str,
    from_phase: Phase,
    to_phase: Phase,
    evidence: Mapping[str, JsonValue],
) -> None:
    await conn.execute(_AUDIT, migration_id, who, action, reason, from_phase, to_phase, json.dumps(evidence))


async def audit_page(conn: Connection, migration_id: UUID, *, before: int, limit: int) -> list[AuditLine]:
    """The newest audit lines before the given one."""
    return [
        AuditLine(
            **{
                **dict(row),
                "from_phase": Phase(row["from_phase"]),
                "to_phase": Phase(row["to_phase"]),
                "evidence": json.loads(row["evidence"]),
            }
        )
        for row in await conn.fetch(_AUDIT_PAGE, migration_id, before, limit)
    ]


async def routes(conn: Connection, migration_id: UUID) -> list[Route]:
    rows = await conn.fetch(_ROUTES, migration_id)
    return [Route(row["endpoint"], Mode(row["mode"]), row["rollout"]) for row in rows]


async def set_routes(
    conn: Connection, migration_id: UUID, mode: Mode, rollout: float, *, endpoint: str | None = None
) -> list[str]:
    """Set one endpoint, or all; returns those that were set: none for one that is not there."""
    rows = await conn.fetch(_SET_ROUTES, migration_id, mode.value, rollout, endpoint)
    return [row["endpoint"] for row in rows]


async def accept_rejects(
    conn: Connection, migration: Migration, keys: Sequence[str], *, by: str, reason: str
) -> list[str]:
    """Accept the loss of records; returns the keys that were not accepted before."""
    rows = await conn.fetch(_ACCEPT_REJECTS, migration.id, migration.standing.run, list(keys), by, reason)
    return [row["key"] for row in rows]


async def accepted_rejects(conn: Connection, migration: Migration, keys: Sequence[str] | None = None) -> list[str]:
    """The keys whose loss was accepted in this run: all, or those among ``keys``."""
    rows = await conn.fetch(
        _ACCEPTED_REJECTS, migration.id, migration.standing.run, None if keys is None else list(keys)
    )
    return [row["key"] for row in rows]


# --- who does the work ---


async def claim(conn: Connection, owner: str, seconds: float) -> list[tuple[UUID, int]]:
    """Take the lease of every migration that has work and nobody who does it: (migration, token)."""
    rows = await conn.fetch(_CLAIM, owner, seconds)
    return [(row["migration_id"], row["token"]) for row in rows]


async def renew(conn: Connection, migration_id: UUID, token: int, seconds: float, report: Report) -> bool:
    """Keep a lease and tell how the work is; false when it is lost."""
    text = report.model_dump_json(exclude_defaults=True)
    return bool(await conn.fetchval(_RENEW, migration_id, token, seconds, text))


async def release(conn: Connection, migration_id: UUID, token: int) -> None:
    await conn.execute(_RELEASE, migration_id, token)


async def holds(conn: Connection, migration_id: UUID, token: int) -> bool:
    """Whether a lease is still held, and stays with its holder until the transaction ends."""
    return bool(await conn.fetchval(_HOLDS, migration_id, token))


async def reported(conn: Connection, migration_id: UUID) -> Reported:
    row = await conn.fetchrow(_REPORT, migration_id)
    if row is None:
        return Reported(Report(), None, None)
    return Reported(Report.model_validate_json(row["report"]), row["age"], row["owner"] if row["held"] else None)


def _migration(row: asyncpg.Record) -> Migration:
    columns: dict[str, Any] = dict(row)
    moving_to = columns.pop("moving_to")
    standing = Standing(
        phase=Phase(columns.pop("phase")),
        moving_to=Phase(moving_to) if moving_to is not None else None,
        paused=columns.pop("paused"),
        run=columns.pop("run"),
    )
    return Migration(
        **{
            **columns,
            "standing": standing,
            "tables": Tables(columns["tables"]),
            "settings": Settings.model_validate_json(columns["settings"]),
        }
    )
