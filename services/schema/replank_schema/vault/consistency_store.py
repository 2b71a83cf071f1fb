"""All SQL of checking and repairing, on the caller's connection, whose search path names the mode."""

# ruff: noqa: S608 - what is put in are our own dataclasses' columns and constant text
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from replank.connection import Connection
from replank_schema.vault.model import Blob, Kind

FindingState = Literal["open", "repaired", "gone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRow:
    """A content's row as it is, whatever its state. ``untouched`` is for how long nobody sent or referred to it."""

    sha256: str
    state: Literal["arriving", "stored", "condemned"]
    stored_size: int | None
    untouched: timedelta
    referenced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFacts:
    """What a content's row says of the content. All but the encoding may be unknown of one that is collected."""

    encoding: str
    size: int | None
    frame_size: int | None
    kind: Kind | None
    field_count: int | None
    fields_exact: bool | None
    fields: Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaRow:
    """A schema beside what its versions and their contents say. ``highest`` and ``versions`` are of the version rows;
    ``highest_sha256`` is the content of the highest, and what begins with ``blob_`` is of the schema's own content.

    ``words`` and ``blob_fields`` are None where they were not asked for.
    """

    id: UUID
    name: str
    version: int
    sha256: str
    kind: str
    field_count: int
    size: int
    tags: Sequence[str]
    words: str | None
    highest: int | None
    highest_sha256: str | None
    versions: int
    blob_kind: str | None
    blob_field_count: int | None
    blob_size: int | None
    blob_fields: Sequence[str] | None

    @property
    def is_ahead(self) -> bool:
        """Whether its current version has no row. One whose content is that of the highest is only misnumbered: no
        version is published with the content of the one before."""
        return self.highest is None or (self.version > self.highest and self.sha256 != self.highest_sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that does not agree. ``thing`` is what it is about: a content's digest, a schema's id or a key."""

    id: UUID
    kind: str
    thing: str
    detail: str
    schemas: Sequence[UUID]
    affected: int
    state: FindingState
    found_at: datetime
    found_by: UUID
    closed_at: datetime | None
    closed_by: UUID | None
    remedy: str


# --- what there is ---

_TOTAL: Final = "select (select count(*) from blob) + (select count(*) from schema)"
_BLOB_ROW: Final = """
    select sha256, state, stored_size, clock_timestamp() - touched_at as untouched,
           exists (select from version v where v.sha256 = b.sha256)
           or exists (select from schema s where s.sha256 = b.sha256) as referenced
      from blob b
"""
# Locked by a statement of its own: one that had to wait for a row would see the rest as it was before.
_LOCK_BLOB: Final = "select from blob where sha256 = $1 for update"
_LOCK_SCHEMA: Final = "select from schema where id = $1 for update"
_BLOB_ROWS: Final = f"{_BLOB_ROW} where sha256 > $1 order by sha256 limit $2"
_ONE_BLOB: Final = f"{_BLOB_ROW} where sha256 = $1"
_FACTS: Final = """
    select encoding, size, frame_size, kind, field_count, fields_exact, fields from blob where sha256 = $1
"""
_SCHEMA_ROW: Final = """
    select s.id, s.name, s.version, s.sha256, s.kind, s.field_count, s.size, s.tags,
           case when $1 then s.words end as words,
           counted.highest, v.sha256 as highest_sha256, counted.versions,
           b.kind as blob_kind, b.field_count as blob_field_count, b.size as blob_size,
           case when $1 then b.fields end as blob_fields
      from schema s
      cross join lateral (
            select max(version) as highest, count(*) as versions from version where schema_id = s.id) counted
      left join version v on v.schema_id = s.id and v.version = counted.highest
      left join blob b on b.sha256 = s.sha256
"""
# The page is cut before anything is joined to it.
_SCHEMA_ROWS: Final = f"""
    {_SCHEMA_ROW} where s.id in (select id from schema where $2::uuid is null or id > $2 order by id limit $3)
    order by s.id
"""
_ONE_SCHEMA: Final = f"{_SCHEMA_ROW} where s.id = $2"
_SCHEMAS_OF: Final = "select distinct schema_id from version where sha256 = $1 order by schema_id limit $2"
_HOW_MANY_OF: Final = "select count(distinct schema_id) from version where sha256 = $1"
_CURRENT_OF: Final = "select id from schema where sha256 = $1 and id > $2 order by id limit $3"


async def total(conn: Connection) -> int:
    """How many contents and schemas there are."""
    counted: int = await conn.fetchval(_TOTAL)
    return counted


async def blob_rows(conn: Connection, *, after: str, limit: int) -> list[BlobRow]:
    """Contents behind ``after``, in the order of their digests."""
    return [BlobRow(**row) for row in await conn.fetch(_BLOB_ROWS, after, limit)]


async def held_blob(conn: Connection, sha256: str) -> BlobRow | None:
    """The row of a content, which nobody else changes before the transaction ends."""
    await conn.execute(_LOCK_BLOB, sha256)
    row = await conn.fetchrow(_ONE_BLOB, sha256)
    return BlobRow(**row) if row else None


async def facts(conn: Connection, sha256: str) -> BlobFacts | None:
    """What the row of a content says of it."""
    row = await conn.fetchrow(_FACTS, sha256)
    return BlobFacts(**row) if row else None


async def schema_rows(conn: Connection, *, after: UUID | None, limit: int, words: bool) -> list[SchemaRow]:
    """Schemas behind ``after``, in the order of their ids; ``words``: with what they are searched by."""
    return [SchemaRow(**row) for row in await conn.fetch(_SCHEMA_ROWS, words, after, limit)]


async def held_schema(conn: Connection, schema_id: UUID) -> SchemaRow | None:
    """The row of a schema, with its words, which nobody else changes before the transaction ends."""
    await conn.execute(_LOCK_SCHEMA, schema_id)
    row = await conn.fetchrow(_ONE_SCHEMA, True, schema_id)
    return SchemaRow(**row) if row else None


async def schemas_of(conn: Connection, sha256: str, *, limit: int) -> tuple[list[UUID], int]:
    """Some of the schemas that have a content in any version, and how many there are."""
    some = [row["schema_id"] for row in await conn.fetch(_SCHEMAS_OF, sha256, limit)]
    return some, len(some) if len(some) < limit else await conn.fetchval(_HOW_MANY_OF, sha256)


async def current_of(conn: Connection, sha256: str, *, after: UUID, limit: int) -> list[UUID]:
    """Schemas whose current content it is, in the order of their ids."""
    return [row["id"] for row in await conn.fetch(_CURRENT_OF, sha256, after, limit)]


# --- what is found ---

_FINDING: Final = ", ".join(column.name for column in fields(Finding))
_OPEN: Final = f"""
    insert into finding (id, kind, thing, detail, schemas, affected, found_by, remedy)
    values ($1, $2, $3, $4, $5, $6, $7, $8)
    on conflict (kind, thing) where state = 'open' do nothing
    returning {_FINDING}
"""
_CLOSE: Final = """
    update finding
       set state = $4, closed_at = clock_timestamp(), closed_by = $3, remedy = coalesce($5, remedy)
     where thing = $1 and kind = any($2) and state = 'open'
"""
_REMEDY: Final = "update finding set remedy = $2 where id = $1 and state = 'open'"
_OPEN_FINDINGS: Final = f"""
    select {_FINDING} from finding
     where state = 'open' and kind = any($1) and ($2::uuid[] is null or id = any($2)) and id > $3
     order by id limit $4
"""
_PAGE: Final = f"""
    select {_FINDING} from finding
     where ($1::text is null or state = $1) and ($2::text is null or kind = $2)
       and ($3::timestamptz is null or (found_at, id) < ($3, $4::uuid))
     order by found_at desc, id desc limit $5
"""
_COUNT_OPEN: Final = "select kind, count(*) as findings from finding where state = 'open' group by kind"
_COUNT_FOUND: Final = "select kind, count(*) as findings from finding where found_by = $1 group by kind"
_COUNT_CLOSED: Final = """
    select kind, count(*) as findings from finding where closed_by = $1 and state = $2 group by kind
"""
_COUNT_LEFT: Final = """
    select kind, count(*) as findings from finding
     where state = 'open' and ($2::uuid[] is null or id = any($2) or found_by = $1)
     group by kind
"""
_NOT_OPEN: Final = """
    select wanted from unnest($1::uuid[]) wanted
     where not exists (select from finding where id = wanted and state = 'open')
"""


async def open_finding(
    conn: Connection,
    finding_id: UUID,
    kind: str,
    thing: str,
    *,
    detail: str,
    schemas: Sequence[UUID],
    affected: int,
    found_by: UUID,
    remedy: str,
) -> Finding | None:
    """Keep a finding; None if it is open already."""
    row = await conn.fetchrow(_OPEN, finding_id, kind, thing, detail, list(schemas), affected, found_by, remedy)
    return Finding(**row) if row else None


async def close_findings(
    conn: Connection,
    thing: str,
    kinds: Sequence[str],
    *,
    state: Literal["repaired", "gone"],
    closed_by: UUID,
    how: str | None = None,
) -> None:
    """Close what is open of these kinds about one thing; ``how`` says how it was repaired."""
    await conn.execute(_CLOSE, thing, list(kinds), closed_by, state, how)


async def set_remedy(conn: Connection, finding_id: UUID, remedy: str) -> None:
    """Say what helps against a finding that stays open."""
    await conn.execute(_REMEDY, finding_id, remedy)


async def open_findings(
    conn: Connection, kinds: Sequence[str], *, only: Sequence[UUID] | None, after: UUID, limit: int
) -> list[Finding]:
    """Open findings of these kinds behind ``after``, in the order of their ids; ``only``: those of these."""
    rows = await conn.fetch(_OPEN_FINDINGS, list(kinds), None if only is None else list(only), after, limit)
    return [Finding(**row) for row in rows]


async def findings(
    conn: Connection, *, state: FindingState | None, kind: str | None, before: tuple[datetime, UUID] | None, limit: int
) -> list[Finding]:
    """A page of findings, the latest first."""
    found_at, finding_id = before or (None, None)
    return [Finding(**row) for row in await conn.fetch(_PAGE, state, kind, found_at, finding_id, limit)]


async def count_open(conn: Connection) -> dict[str, int]:
    """How many findings are open, by kind."""
    return _counted(await conn.fetch(_COUNT_OPEN))


async def count_found(conn: Connection, job_id: UUID) -> dict[str, int]:
    """How many findings a job opened, by kind."""
    return _counted(await conn.fetch(_COUNT_FOUND, job_id))


async def count_closed(conn: Connection, job_id: UUID, state: Literal["repaired", "gone"]) -> dict[str, int]:
    """How many findings a job closed so, by kind."""
    return _counted(await conn.fetch(_COUNT_CLOSED, job_id, state))


async def count_left(conn: Connection, job_id: UUID, only: Sequence[UUID] | None) -> dict[str, int]:
    """How many findings are open by kind: of these, or that this job opened itself; of all if none are named."""
    return _counted(await conn.fetch(_COUNT_LEFT, job_id, None if only is None else list(only)))


async def not_open(conn: Connection, finding_ids: Sequence[UUID]) -> list[UUID]:
    """Those of these that are no open findings."""
    return [row["wanted"] for row in await conn.fetch(_NOT_OPEN, list(finding_ids))]


# --- repairing ---

_CORRECT_BLOB: Final = """
    update blob
       set state = 'stored', encoding = 'zstd', size = $2, stored_size = $3, frame_size = $4, kind = $5,
           field_count = $6, fields_exact = $7, fields = $8, stored_at = coalesce(stored_at, clock_timestamp()),
           touched_at = clock_timestamp()
     where sha256 = $1
"""
_EXPECT: Final = """
    update blob set state = 'arriving'
     where sha256 = $1 and state = 'condemned'
       and num_nulls(size, frame_size, kind, field_count, fields_exact, fields) = 0
"""
_CORRECT_SCHEMA: Final = """
    update schema
       set version = $2, sha256 = $3, kind = $4, field_count = $5, size = $6, words = $7, revision = revision + 1,
           updated_at = clock_timestamp(), updated_by = $8
     where id = $1
"""
_RETURN_VERSION: Final = """
    insert into version (schema_id, version, sha256, created_at, created_by)
    select id, version, sha256, updated_at, updated_by from schema where id = $1
    on conflict do nothing
"""


async def correct_blob(conn: Connection, proven: Blob) -> None:
    """Have the row of a content, which is held, say what was proven of it."""
    await conn.execute(
        _CORRECT_BLOB,
        proven.sha256,
        proven.size,
        proven.stored_size,
        proven.frame_size,
        proven.kind,
        proven.field_count,
        proven.fields_exact,
        list(proven.fields),
    )


async def expect(conn: Connection, sha256: str) -> None:
    """Take back that a content was condemned: it may be sent again."""
    await conn.execute(_EXPECT, sha256)


async def correct_schema(
    conn: Connection, schema_id: UUID, *, version: int, content: Blob, words: str, by: str
) -> None:
    """Have a schema, which is held, say what its current version does."""
    await conn.execute(
        _CORRECT_SCHEMA,
        schema_id,
        version,
        content.sha256,
        content.kind,
        content.field_count,
        content.size,
        words,
        by,
    )


async def return_version(conn: Connection, schema_id: UUID) -> None:
    """Make the row of the current version anew from the schema, which is held; its note is lost."""
    await conn.execute(_RETURN_VERSION, schema_id)


def _counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {row["kind"]: row["findings"] for row in rows}
