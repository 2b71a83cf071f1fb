"""All SQL about the phase of a mode, and about moving its rows. Names are found by the search path."""

# ruff: noqa: S608 - what is put in are our own dataclasses' columns and constant text
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from replank.connection import Connection
from replank.contracts.schema import VaultMode
from replank_schema.vault.pattern import Phase

# Writers share it, and who changes the phase has it alone: so no write is on its way by an older phase. Advisory, not
# the row's own: sharing a row's lock would write to the row, and could keep a change waiting for ever.
_LOCK: Final = "replank_schema.vault.pattern."
_SHARE: Final = "select pg_advisory_xact_lock_shared(hashtextextended($1, 0))"
_ALONE: Final = "select pg_advisory_xact_lock(hashtextextended($1, 0))"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a mode is. ``run`` counts how often a migration was started; ``job_id`` is the one that moves rows."""

    phase: Phase
    run: int
    job_id: UUID | None
    rows_verified: int | None
    verified_at: datetime | None
    changed_at: datetime
    changed_by: str


@dataclass(frozen=True, slots=True)
class Reject:
    """A version that was not moved, or differs after it was."""

    schema_id: UUID
    version: int
    name: str
    step: Literal["backfill", "verify"]
    reason: str


_STANDING: Final = ", ".join(column.name for column in fields(Standing))
_GET: Final = f"select {_STANDING} from pattern"
_BEGIN: Final = "insert into pattern (phase, changed_by) values ($1, $2) on conflict do nothing returning phase"
_MOVE: Final = f"""
    update pattern set phase = $1, changed_at = clock_timestamp(), changed_by = $2 returning {_STANDING}
"""
_START: Final = f"""
    update pattern
       set phase = 'backfilling', run = run + 1, job_id = $1, rows_verified = null, verified_at = null,
           changed_at = clock_timestamp(), changed_by = $2
    returning {_STANDING}
"""
_VERIFIED: Final = """
    update pattern
       set phase = 'new_with_fallback', rows_verified = $2, verified_at = clock_timestamp(),
           changed_at = clock_timestamp()
     where job_id = $1 and phase = 'verifying'
"""
_FORGET_REJECTS: Final = "delete from pattern_reject"
_FORGET_READS: Final = "delete from pattern_read"
_REJECT: Final = """
    insert into pattern_reject (schema_id, version, name, step, reason) values ($1, $2, $3, $4, $5)
    on conflict (schema_id, version) do update
       set name = excluded.name, step = excluded.step, reason = excluded.reason, found_at = clock_timestamp()
"""
_ACCEPT: Final = "delete from pattern_reject where schema_id = $1"
_REJECTS: Final = """
    select schema_id, version, name, step, reason from pattern_reject order by schema_id, version limit $1
"""
_REJECTED: Final = "select count(*) from pattern_reject"
_REJECTED_OF: Final = """
    select distinct schema_id from pattern_reject where step = 'backfill' and schema_id = any($1)
"""
_ROWS: Final = "select count(*) from inline_schema"
# Of the schemas behind $1: those that are not in the new pattern.
_WAITING: Final = """
    select id from inline_schema i
     where is_current and id > $1 and not exists (select from schema s where s.id = i.id)
     order by id limit $2
"""
_VERSIONS: Final = """
    select version, name, is_current, sha256 from inline_schema where id = $1 order by version
"""
_COPY_SCHEMA: Final = """
    insert into schema (id, name, status, revision, version, kind, field_count, size, sha256, owner, description, tags,
                        metadata, words, created_at, created_by, updated_at, updated_by, deleted_at, deleted_by)
    select id, name, status, revision, version, $2, $3, $4, sha256, owner, description, tags, metadata, $5, created_at,
           created_by, updated_at, updated_by, deleted_at, deleted_by
      from inline_schema where id = $1 and is_current
"""
_COPY_VERSIONS: Final = """
    insert into version (schema_id, version, sha256, note, backward, forward, created_at, created_by)
    select id, version, sha256, note, backward, forward, published_at, published_by from inline_schema where id = $1
"""
# The facts of a content are those that were found in it, whoever wrote the row.
_FACTS: Final = """
    update inline_schema set kind = $3, field_count = $4, fields_exact = $5, size = $6
     where id = $1 and version = $2
       and (kind, field_count, fields_exact, size) is distinct from ($3, $4, $5, $6)
"""
_TAGS: Final = "select tags from inline_schema where id = $1 and is_current"
# Every row with what the new pattern says of the same version.
_PAIRS: Final = """
    select i.id as schema_id, i.version, i.name, i.content, b.sha256, b.size, b.stored_size, b.frame_size, b.kind,
           b.field_count, b.fields_exact, b.state,
           v.schema_id is not null as there,
           coalesce((i.sha256, i.note, i.backward, i.forward, i.published_at, i.published_by, i.size, i.kind,
                     i.field_count)
                    is not distinct from
                    (v.sha256, v.note, v.backward, v.forward, v.created_at, v.created_by, b.size, b.kind,
                     b.field_count), false) as version_agrees,
           not i.is_current or coalesce(
               (i.name, i.status, i.revision, i.version, i.kind, i.field_count, i.size, i.sha256, i.owner,
                i.description, i.tags, i.metadata, i.created_at, i.created_by, i.updated_at, i.updated_by,
                i.deleted_at, i.deleted_by)
               is not distinct from
               (s.name, s.status, s.revision, s.version, s.kind, s.field_count, s.size, s.sha256, s.owner,
                s.description, s.tags, s.metadata, s.created_at, s.created_by, s.updated_at, s.updated_by,
                s.deleted_at, s.deleted_by), false) as schema_agrees
      from inline_schema i
      left join schema s on s.id = i.id
      left join version v on v.schema_id = i.id and v.version = i.version
      left join blob b on b.sha256 = v.sha256
"""
_PAIRS_AFTER: Final = f"{_PAIRS} where (i.id, i.version) > ($1, $2) order by i.id, i.version limit $3"
_COUNT_READS: Final = """
    insert into pattern_read as known (endpoint, outcome, reads)
    select * from unnest($1::text[], $2::text[], $3::bigint[]) as counted (endpoint, outcome, reads)
     order by endpoint, outcome
    on conflict (endpoint, outcome) do update set reads = known.reads + excluded.reads
"""
_READS: Final = "select endpoint, outcome, reads from pattern_read order by endpoint, outcome"


async def share(conn: Connection, mode: VaultMode) -> Standing | None:
    """How far the mode is, and will be until this transaction ends; None: nothing was ever written."""
    await conn.execute(_SHARE, _LOCK + mode)
    return await get(conn)


async def alone(conn: Connection, mode: VaultMode) -> Standing | None:
    """As `share`, to change it: every write of an earlier phase has ended. To be called before anything is locked."""
    await conn.execute(_ALONE, _LOCK + mode)
    return await get(conn)


async def get(conn: Connection) -> Standing | None:
    row = await conn.fetchrow(_GET)
    return _standing(row) if row else None


async def begin(conn: Connection, phase: Phase, *, by: str) -> Phase:
    """Say with which pattern a mode begins; the one that it has, if somebody else was first."""
    await conn.execute(_BEGIN, phase, by)
    standing = await get(conn)
    if standing is None:
        raise AssertionError("the row is there, or was put there by this statement")
    return standing.phase


async def move(conn: Connection, phase: Phase, *, by: str) -> Standing:
    return _standing(await conn.fetchrow(_MOVE, phase, by))


async def start(conn: Connection, job_id: UUID, *, by: str) -> Standing:
    return _standing(await conn.fetchrow(_START, job_id, by))


async def verified(conn: Connection, job_id: UUID, rows: int) -> None:
    """Every row that was moved was found again."""
    await conn.execute(_VERIFIED, job_id, rows)


async def forget_copies(conn: Connection) -> None:
    """Drop what the new pattern has: rows that were not written since a rollback. Contents stay for the collector."""
    await conn.execute("delete from version")
    await conn.execute("delete from schema")


async def forget_run(conn: Connection) -> None:
    """Drop what earlier runs found."""
    await conn.execute(_FORGET_REJECTS)
    await conn.execute(_FORGET_READS)


async def reject(conn: Connection, found: Reject) -> None:
    await conn.execute(_REJECT, found.schema_id, found.version, found.name, found.step, found.reason)


async def accept(conn: Connection, schema_id: UUID) -> None:
    """Nothing is wrong with it any more."""
    await conn.execute(_ACCEPT, schema_id)


async def rejects(conn: Connection, limit: int) -> list[Reject]:
    return [Reject(**row) for row in await conn.fetch(_REJECTS, limit)]


async def rejected(conn: Connection) -> int:
    """How many versions are rejected."""
    count: int = await conn.fetchval(_REJECTED)
    return count


async def rejected_of(conn: Connection, schema_ids: Sequence[UUID]) -> set[UUID]:
    """Those of these schemas that were not moved, because a version of them could not be."""
    return {row["schema_id"] for row in await conn.fetch(_REJECTED_OF, list(schema_ids))}


async def rows(conn: Connection) -> int:
    """How many rows the old pattern has: each a version."""
    count: int = await conn.fetchval(_ROWS)
    return count


async def waiting(conn: Connection, after: UUID, limit: int) -> list[UUID]:
    """Schemas behind ``after`` that are not in the new pattern."""
    return [row["id"] for row in await conn.fetch(_WAITING, after, limit)]


async def versions(conn: Connection, schema_id: UUID) -> Sequence[Any]:
    """All rows of a schema, without their contents."""
    return await conn.fetch(_VERSIONS, schema_id)


async def facts(conn: Connection, schema_id: UUID, version: int, blob: Any) -> None:
    """Correct what a row says of its content."""
    await conn.execute(_FACTS, schema_id, version, blob.kind, blob.field_count, blob.fields_exact, blob.size)


async def tags(conn: Connection, schema_id: UUID) -> list[str]:
    found: list[str] = await conn.fetchval(_TAGS, schema_id)
    return found


async def copy(conn: Connection, schema_id: UUID, current: Any, words: str) -> None:
    """Make the rows of the new pattern from those of the old one; ``current`` is the content of the current version."""
    await conn.execute(_COPY_SCHEMA, schema_id, current.kind, current.field_count, current.size, words)
    await conn.execute(_COPY_VERSIONS, schema_id)


async def pairs(conn: Connection, after: tuple[UUID, int], limit: int) -> Sequence[Any]:
    """Rows of the old pattern beside what the new one says of the same versions."""
    return await conn.fetch(_PAIRS_AFTER, *after, limit)


async def count_reads(
    conn: Connection, endpoints: Sequence[str], outcomes: Sequence[str], counts: Sequence[int]
) -> None:
    await conn.execute(_COUNT_READS, list(endpoints), list(outcomes), list(counts))


async def reads(conn: Connection) -> dict[str, dict[str, int]]:
    """How compared reads came out: by endpoint, by outcome."""
    found: dict[str, dict[str, int]] = {}
    for row in await conn.fetch(_READS):
        found.setdefault(row["endpoint"], {})[row["outcome"]] = row["reads"]
    return found


def _standing(row: Any) -> Standing:
    return Standing(**{**row, "phase": Phase(row["phase"])})
