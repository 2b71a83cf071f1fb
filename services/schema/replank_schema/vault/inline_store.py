"""All SQL of the old pattern, where a row has everything: what `replank_schema.vault.store` has of the new one.

A listing reads whole rows, contents included, as it always did.
"""

# ruff: noqa: S608 - what is put in are our own dataclasses' columns and constant text
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final
from uuid import UUID

import asyncpg

from replank.connection import Connection
from replank_schema.vault.codec import FRAME
from replank_schema.vault.model import Blob, Changes, Draft, Filters, Schema, Sort, Version
from replank_schema.vault.store import encoded, listing, schema_of

_COLUMNS: Final = tuple(column.name for column in fields(Schema))
_SCHEMA: Final = ", ".join(_COLUMNS)
_INSERT: Final = f"""
    insert into inline_schema (id, version, name, kind, field_count, fields_exact, size, sha256, owner, description,
                               tags, metadata, note, content, created_by, updated_by, published_by)
    values ($1, 1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text::jsonb, $12, $13, $14, $14, $14)
    on conflict (name) where is_current and status = 'active' do nothing
    returning {_SCHEMA}
"""
_GET: Final = f"select {_SCHEMA} from inline_schema where id = $1 and is_current"
# The first version's row stands for the schema: which one is current changes while one waits for its lock.
_HOLD: Final = "select version from inline_schema where id = $1 order by version limit 1 for update"
_ACTIVE: Final = f"select {_SCHEMA} from inline_schema where name = $1 and is_current and status = 'active'"
_PAGE: Final = "inline_schema where is_current and"
_RETIRE: Final = "update inline_schema set is_current = false where id = $1 and is_current"
_PUBLISH: Final = f"""
    insert into inline_schema (id, version, name, status, revision, kind, field_count, fields_exact, size, sha256,
                               owner, description, tags, metadata, note, backward, forward, content, created_at,
                               created_by, updated_by, published_by)
    select id, version + 1, name, status, revision + 1, $3, $4, $5, $6, $7, owner, description, tags, metadata, $8, $9,
           $10, $11, created_at, created_by, $12, $12
      from inline_schema where id = $1 and version = $2
    returning {_SCHEMA}
"""
_CHANGE: Final = f"""
    update inline_schema
       set revision = revision + 1, owner = coalesce($2, owner), description = coalesce($3, description),
           tags = coalesce($4, tags), metadata = coalesce($5::text::jsonb, metadata),
           updated_at = clock_timestamp(), updated_by = $6
     where id = $1 and is_current
    returning {_SCHEMA}
"""
_DELETE: Final = f"""
    update inline_schema
       set status = 'deleted', revision = revision + 1, deleted_at = clock_timestamp(), deleted_by = $2,
           updated_at = clock_timestamp(), updated_by = $2
     where id = $1 and is_current
    returning {_SCHEMA}
"""
_RESTORE: Final = f"""
    update inline_schema
       set status = 'active', revision = revision + 1, deleted_at = null, deleted_by = null,
           updated_at = clock_timestamp(), updated_by = $2
     where id = $1 and is_current
    returning {_SCHEMA}
"""
_VERSION: Final = """
    select id as schema_id, version, sha256, size, kind, field_count, fields_exact, note, backward, forward,
           published_at as created_at, published_by as created_by
      from inline_schema
"""
_ONE_VERSION: Final = f"{_VERSION} where id = $1 and version = $2"
_VERSIONS: Final = f"{_VERSION} where id = $1 and version < $2 order by version desc limit $3"
_CONTENT: Final = """
    select sha256, size, kind, field_count, fields_exact, content from inline_schema
     where id = $1 and case when $2::integer is null then is_current else version = $2 end
"""
_CONTENT_OF: Final = """
    select sha256, size, kind, field_count, fields_exact, content from inline_schema where sha256 = $1 limit 1
"""
_MISSING: Final = """
    select wanted from unnest($1::text[]) wanted where not exists (select from inline_schema where sha256 = wanted)
"""
# What the other pattern decided of a row that is in both: times, and what a content is made of.
_MIRROR: Final = f"""
    update inline_schema i set ({_SCHEMA}) = (select {_SCHEMA} from schema s where s.id = $1)
     where i.id = $1 and i.is_current
"""
_MIRROR_VERSION: Final = """
    update inline_schema i
       set published_at = v.created_at, published_by = v.created_by, backward = v.backward, forward = v.forward
      from version v
     where i.id = $1 and i.is_current and v.schema_id = i.id and v.version = i.version
"""


@dataclass(frozen=True, slots=True)
class Inline:
    """A content as its row has it. ``blob`` says what is known of it, as if it was an object; there may be none."""

    blob: Blob
    text: str


async def insert(conn: Connection, schema_id: UUID, draft: Draft, content: Inline, *, by: str) -> Schema | None:
    """Insert a schema with its first version; None if an active one has the name."""
    blob = content.blob
    row = await conn.fetchrow(
        _INSERT,
        schema_id,
        draft.name,
        blob.kind,
        blob.field_count,
        blob.fields_exact,
        blob.size,
        blob.sha256,
        draft.owner,
        draft.description,
        list(draft.tags),
        encoded(draft.metadata),
        draft.note,
        content.text,
        by,
    )
    return schema_of(row) if row else None


async def publish(
    conn: Connection,
    schema: Schema,
    content: Inline,
    *,
    note: str,
    backward: bool | None,
    forward: bool | None,
    by: str,
) -> Schema:
    """Give a schema that is held its next version: a row of its own."""
    await conn.execute(_RETIRE, schema.id)
    blob = content.blob
    row = await conn.fetchrow(
        _PUBLISH,
        schema.id,
        schema.version,
        blob.kind,
        blob.field_count,
        blob.fields_exact,
        blob.size,
        blob.sha256,
        note,
        backward,
        forward,
        content.text,
        by,
    )
    return schema_of(row)


async def mirror(conn: Connection, schema_id: UUID) -> None:
    """Say of a schema what the new pattern says of it, which was changed in the same transaction."""
    await conn.execute(_MIRROR, schema_id)
    await conn.execute(_MIRROR_VERSION, schema_id)


async def get(conn: Connection, schema_id: UUID) -> Schema | None:
    row = await conn.fetchrow(_GET, schema_id)
    return schema_of(row) if row else None


async def hold(conn: Connection, schema_id: UUID) -> None:
    """Let nobody else change the schema before the transaction ends. What it is has to be read afterwards."""
    await conn.execute(_HOLD, schema_id)


async def held(conn: Connection, schema_id: UUID) -> Schema | None:
    """The schema, which nobody else changes before the transaction ends."""
    await hold(conn, schema_id)
    return await get(conn, schema_id)


async def active(conn: Connection, name: str) -> Schema | None:
    """The active schema of this name."""
    row = await conn.fetchrow(_ACTIVE, name)
    return schema_of(row) if row else None


async def change(conn: Connection, schema: Schema, changes: Changes, *, by: str) -> Schema:
    """Change what people said of a schema that is held."""
    row = await conn.fetchrow(
        _CHANGE,
        schema.id,
        changes.owner,
        changes.description,
        None if changes.tags is None else list(changes.tags),
        None if changes.metadata is None else encoded(changes.metadata),
        by,
    )
    return schema_of(row)


async def delete(conn: Connection, schema_id: UUID, *, by: str) -> Schema:
    """Delete a schema that is held, softly."""
    return schema_of(await conn.fetchrow(_DELETE, schema_id, by))


async def restore(conn: Connection, schema_id: UUID, *, by: str) -> Schema | None:
    """Bring a deleted schema that is held back; None if an active one has its name by now."""
    try:
        async with conn.transaction():
            return schema_of(await conn.fetchrow(_RESTORE, schema_id, by))
    except asyncpg.UniqueViolationError:
        return None


async def page(
    conn: Connection, filters: Filters, sort: Sort, *, after: tuple[Any, UUID] | None, limit: int
) -> list[Schema]:
    """Schemas in order, from behind ``after``. Knows no words."""
    statement, values = listing(filters, sort, after=after, limit=limit, columns="*", source=_PAGE)
    return [_whole(row) for row in await conn.fetch(statement, *values)]


async def version(conn: Connection, schema_id: UUID, number: int) -> Version | None:
    row = await conn.fetchrow(_ONE_VERSION, schema_id, number)
    return Version(**row) if row else None


async def versions(conn: Connection, schema_id: UUID, *, before: int, limit: int) -> list[Version]:
    """Versions below ``before``, the latest first."""
    return [Version(**row) for row in await conn.fetch(_VERSIONS, schema_id, before, limit)]


async def content(conn: Connection, schema_id: UUID, number: int | None) -> Inline | None:
    """The content of a version; of the current one where ``number`` is None."""
    row = await conn.fetchrow(_CONTENT, schema_id, number)
    return _inline(row) if row else None


async def known(conn: Connection, sha256: str) -> Inline | None:
    """Some row's content that has this digest, as the row says; whoever trusts it has to look."""
    row = await conn.fetchrow(_CONTENT_OF, sha256)
    return _inline(row) if row else None


async def content_of(conn: Connection, sha256: str) -> str | None:
    """The text of a content by its digest, where a row of the old pattern has it. To be proven by the caller."""
    found = await known(conn, sha256)
    return found.text if found is not None else None


async def missing(conn: Connection, digests: Sequence[str]) -> list[str]:
    """Those of these contents that no row has."""
    return [row["wanted"] for row in await conn.fetch(_MISSING, list(digests))]


def _whole(row: Mapping[str, Any]) -> Schema:
    return schema_of({name: row[name] for name in _COLUMNS})


def _inline(row: Mapping[str, Any]) -> Inline:
    blob = Blob(
        sha256=row["sha256"],
        size=row["size"],
        stored_size=0,
        frame_size=FRAME,
        kind=row["kind"],
        field_count=row["field_count"],
        fields_exact=row["fields_exact"],
        fields=(),
    )
    return Inline(blob, row["content"])
