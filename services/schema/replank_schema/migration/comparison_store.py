"""All SQL about comparisons. Every function runs on the caller's connection, in the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from replank.connection import Connection
from replank.migrate.comparison import Direction, Kind, Mismatch, Progress, Repaired
from replank_schema.migration.comparison_model import Consistency, KeptMismatch, Repair, Run, RunState

_LOCK_MIGRATION: Final = "select true from migration where id = $1 for update"
_ASK: Final = """
    insert into comparison (id, migration_id, asked_by, asked_at) values ($1, $2, $3, clock_timestamp())
        on conflict (migration_id) where state in ('asked', 'running') do nothing
    returning id
"""
_RUN: Final = """
    select id, state, direction, asked_by, asked_at, started_at, ended_at, progress from comparison
     where migration_id = $1 and id = $2
"""
_RUNS: Final = """
    select id, state, direction, asked_by, asked_at, started_at, ended_at, progress from comparison
     where migration_id = $1 and id < $2 order by id desc limit $3
"""
_TO_RUN: Final = """
    select id, state, direction, asked_by, asked_at, started_at, ended_at, progress from comparison
     where migration_id = $1 and state in ('asked', 'running')
"""
_STARTED: Final = """
    update comparison set state = 'running', direction = $2, started_at = clock_timestamp()
     where id = $1 and state = 'asked'
"""
_PROGRESSED: Final = """
    update comparison
       set progress = $2::jsonb, state = case when $3 then 'done' else state end,
           ended_at = case when $3 then clock_timestamp() end
     where id = $1 and state = 'running'
    returning migration_id, started_at
"""
_CANCEL: Final = """
    update comparison set state = 'cancelled', ended_at = clock_timestamp()
     where migration_id = $1 and id = $2 and state in ('asked', 'running')
    returning id
"""
_SEEN: Final = """
    insert into mismatch (id, migration_id, comparison_id, key, entity, kind, fields, trace_id, first_seen, last_seen)
    select m.id, $1, $2, m.key, m.entity, m.kind, array(select jsonb_array_elements_text(m.fields)), m.trace_id,
           clock_timestamp(), clock_timestamp()
      from unnest($3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[]::jsonb[], $8::text[])
           as m(id, key, entity, kind, fields, trace_id)
     order by md5(m.key)
        on conflict (migration_id, md5(key)) where resolved_at is null do update
       set comparison_id = excluded.comparison_id, entity = excluded.entity, kind = excluded.kind,
           fields = excluded.fields, trace_id = excluded.trace_id, last_seen = excluded.last_seen
"""
_RESOLVED: Final = """
    update mismatch set resolved_at = clock_timestamp()
     where migration_id = $1 and md5(key) = any (select md5(k) from unnest($2::text[]) as k) and resolved_at is null
"""
# A comparison of everything that did not meet a mismatch again has seen that it is gone.
_RESOLVED_BEFORE: Final = """
    update mismatch set resolved_at = clock_timestamp()
     where migration_id = $1 and resolved_at is null and last_seen < $2
"""
# Neither equal nor certainly different: what is open stays open.
_STILL_OPEN: Final = """
    update mismatch set last_seen = clock_timestamp()
     where migration_id = $1 and md5(key) = any (select md5(k) from unnest($2::text[]) as k) and resolved_at is null
"""
_MISMATCHES: Final = """
    select id, key, entity, kind, fields, trace_id, first_seen, last_seen, resolved_at from mismatch
     where migration_id = $1 and id > $2 order by id limit $3
"""
_OPEN_MISMATCHES: Final = """
    select id, key, entity, kind, fields, trace_id, first_seen, last_seen, resolved_at from mismatch
     where migration_id = $1 and id > $2 and resolved_at is null order by id limit $3
"""
_OPEN_KEYS: Final = """
    select key from mismatch
     where migration_id = $1 and resolved_at is null and kind <> 'rejected' order by id limit $2
"""
_SAMPLED: Final = "insert into comparison_sample (migration_id, compared, different) values ($1, $2, $3)"
_FORGET_SAMPLES: Final = (
    "delete from comparison_sample where migration_id = $1 and at < clock_timestamp() - $2::interval"
)
# A comparison of everything knows better than the samples that were taken before it began.
_WINDOW: Final = """
    select coalesce(sum(compared), 0)::bigint, coalesce(sum(different), 0)::bigint from comparison_sample
     where migration_id = $1 and at >= greatest(
           clock_timestamp() - $2::interval,
           (select started_at from comparison where migration_id = $1 and state = 'done' order by id desc limit 1))
"""
_FULL: Final = """
    select progress, ended_at from comparison
     where migration_id = $1 and state = 'done' order by id desc limit 1
"""
_OPEN: Final = "select count(*) from mismatch where migration_id = $1 and resolved_at is null and kind <> 'rejected'"
_ALERTED: Final = "select since from consistency_alert where migration_id = $1"
_FELL: Final = """
    insert into consistency_alert (migration_id, since, percent) values ($1, clock_timestamp(), $2)
        on conflict do nothing
    returning since
"""
_CAME_BACK: Final = "delete from consistency_alert where migration_id = $1 returning since"
_ASK_REPAIR: Final = """
    insert into repair (id, migration_id, dry_run, keys, asked_by, asked_at)
    values ($1, $2, $3, $4, $5, clock_timestamp())
"""
_REPAIR: Final = (
    "select id, dry_run, keys, asked_by, asked_at, ended_at, actions from repair where migration_id = $1 and id = $2"
)
_TO_REPAIR: Final = """
    select id, dry_run, keys, asked_by, asked_at, ended_at, actions from repair
     where migration_id = $1 and state = 'asked' order by id limit 1
"""
_REPAIRED: Final = """
    update repair set state = 'done', ended_at = clock_timestamp(), actions = $2::jsonb
     where id = $1 and state = 'asked'
"""

#: Above and below every id: where pages start.
NEWEST: Final = UUID(int=2**128 - 1)
OLDEST: Final = UUID(int=0)


async def lock(conn: Connection, migration_id: UUID) -> bool:
    """Hold a migration until the transaction ends; tells whether there is such a one."""
    return bool(await conn.fetchval(_LOCK_MIGRATION, migration_id))


# --- comparisons ---


async def ask(conn: Connection, migration_id: UUID, *, asked_by: str) -> UUID | None:
    """Ask for a comparison; nothing where one is asked for already or runs."""
    found: UUID | None = await conn.fetchval(_ASK, uuid7(), migration_id, asked_by)
    return found


async def run(conn: Connection, migration_id: UUID, run_id: UUID) -> Run | None:
    row = await conn.fetchrow(_RUN, migration_id, run_id)
    return _run(row) if row else None


async def runs(conn: Connection, migration_id: UUID, *, before: UUID, limit: int) -> list[Run]:
    """The newest comparisons that were asked for before the given one."""
    return [_run(row) for row in await conn.fetch(_RUNS, migration_id, before, limit)]


async def to_run(conn: Connection, migration_id: UUID) -> Run | None:
    """The comparison that is asked for, or runs and goes on."""
    row = await conn.fetchrow(_TO_RUN, migration_id)
    return _run(row) if row else None


async def started(conn: Connection, run_id: UUID, direction: Direction) -> None:
    await conn.execute(_STARTED, run_id, direction)


async def progressed(conn: Connection, run_id: UUID, progress: Progress) -> datetime | None:
    """Keep how far a run is; gives when it started, or nothing if it runs no more because it was cancelled."""
    row = await conn.fetchrow(_PROGRESSED, run_id, progress.model_dump_json(), progress.stage == "done")
    return row["started_at"] if row else None


async def cancel(conn: Connection, migration_id: UUID, run_id: UUID) -> bool:
    """Cancel a comparison that has not ended; tells whether there was one."""
    return await conn.fetchval(_CANCEL, migration_id, run_id) is not None


# --- mismatches ---


async def seen(conn: Connection, migration_id: UUID, run_id: UUID | None, mismatches: Sequence[Mismatch]) -> None:
    """Keep mismatches: one that is open already is seen again."""
    if mismatches:
        await conn.execute(
            _SEEN,
            migration_id,
            run_id,
            [uuid7() for _ in mismatches],
            [mismatch.key for mismatch in mismatches],
            [mismatch.entity for mismatch in mismatches],
            [mismatch.kind.value for mismatch in mismatches],
            [json.dumps(mismatch.fields) for mismatch in mismatches],
            [mismatch.trace_id for mismatch in mismatches],
        )


async def resolved(conn: Connection, migration_id: UUID, keys: Sequence[str]) -> None:
    """Close the open mismatches of keys that were seen equal."""
    if keys:
        await conn.execute(_RESOLVED, migration_id, keys)


async def still_open(conn: Connection, migration_id: UUID, keys: Sequence[str]) -> None:
    """Note that nothing new can be said of keys: their open mismatches count as seen again."""
    if keys:
        await conn.execute(_STILL_OPEN, migration_id, keys)


async def resolved_before(conn: Connection, migration_id: UUID, at: datetime) -> None:
    """Close the open mismatches that were last seen before ``at``."""
    await conn.execute(_RESOLVED_BEFORE, migration_id, at)


async def mismatches(
    conn: Connection, migration_id: UUID, *, after: UUID, limit: int, only_open: bool
) -> list[KeptMismatch]:
    """Mismatches in the order in which they were found."""
    rows = await conn.fetch(_OPEN_MISMATCHES if only_open else _MISMATCHES, migration_id, after, limit)
    return [KeptMismatch(**{**row, "kind": Kind(row["kind"])}) for row in rows]


async def open_keys(conn: Connection, migration_id: UUID, limit: int) -> list[str]:
    """The keys of open mismatches that a repair can mend: a record that was rejected has to be changed first."""
    return [key for (key,) in await conn.fetch(_OPEN_KEYS, migration_id, limit)]


# --- consistency ---


async def sampled(conn: Connection, migration_id: UUID, *, compared: int, different: int, window: timedelta) -> None:
    """Keep what a sample found, and forget what is older than the window."""
    await conn.execute(_SAMPLED, migration_id, compared, different)
    await conn.execute(_FORGET_SAMPLES, migration_id, window)


async def consistency(conn: Connection, migration_id: UUID, *, window: timedelta) -> Consistency:
    full = await conn.fetchrow(_FULL, migration_id)
    ((compared, different),) = await conn.fetch(_WINDOW, migration_id, window)
    return Consistency(
        full=Progress.model_validate_json(full["progress"]).percent if full else None,
        full_ended_at=full["ended_at"] if full else None,
        samples=100.0 * (compared - different) / compared if compared else None,
        samples_compared=compared,
        open_mismatches=await conn.fetchval(_OPEN, migration_id),
        inconsistent_since=await conn.fetchval(_ALERTED, migration_id),
    )


async def fell(conn: Connection, migration_id: UUID, percent: float) -> datetime | None:
    """Note that consistency fell below its threshold; nothing if that was noted already."""
    found: datetime | None = await conn.fetchval(_FELL, migration_id, percent)
    return found


async def came_back(conn: Connection, migration_id: UUID) -> datetime | None:
    """Note that consistency is back; gives since when it was not, or nothing if it never fell."""
    found: datetime | None = await conn.fetchval(_CAME_BACK, migration_id)
    return found


# --- repairs ---


async def ask_repair(
    conn: Connection, migration_id: UUID, keys: Sequence[str], *, dry_run: bool, asked_by: str
) -> UUID:
    repair_id = uuid7()
    await conn.execute(_ASK_REPAIR, repair_id, migration_id, dry_run, keys, asked_by)
    return repair_id


async def repair(conn: Connection, migration_id: UUID, repair_id: UUID) -> Repair | None:
    row = await conn.fetchrow(_REPAIR, migration_id, repair_id)
    return _repair(row) if row else None


async def to_repair(conn: Connection, migration_id: UUID) -> Repair | None:
    """The oldest repair that is asked for and not done."""
    row = await conn.fetchrow(_TO_REPAIR, migration_id)
    return _repair(row) if row else None


async def repaired(conn: Connection, repair_id: UUID, actions: Sequence[Repaired]) -> None:
    await conn.execute(_REPAIRED, repair_id, json.dumps([{"key": done.key, "op": done.op} for done in actions]))


def _run(row: asyncpg.Record) -> Run:
    progress = row["progress"]
    return Run(
        **{
            **row,
            "state": RunState(row["state"]),
            "progress": None if progress is None else Progress.model_validate_json(progress),
        }
    )


def _repair(row: asyncpg.Record) -> Repair:
    actions = row["actions"]
    return Repair(
        **{
            **row,
            "actions": None if actions is None else [Repaired(**action) for action in json.loads(actions)],
        }
    )
