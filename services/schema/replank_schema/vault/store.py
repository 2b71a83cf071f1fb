"""All SQL about schemas, versions and blobs, on the caller's connection, whose search path names the mode.

Statements are put together from constant text alone; what callers give is always bound.
"""

# ruff: noqa: S608 - what is put in are our own dataclasses' columns and constant text
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import asyncpg
from pydantic import JsonValue

from replank.connection import Connection
from replank_schema.vault.model import Blob, Changes, Consumer, Draft, Filters, Schema, Sort, Version, words_of

State = Literal["arriving", "stored"]

# --- blobs ---


@dataclass(frozen=True, slots=True)
class Volume:
    """How many contents there are, how many bytes they have, and how many their objects."""

    contents: int
    size: int
    stored_size: int


_ANNOUNCE: Final = """
    insert into blob (sha256, size, frame_size, kind, field_count, fields_exact, fields, state)
    values ($1, $2, $3, $4, $5, $6, $7, 'arriving')
    on conflict (sha256) do update set touched_at = clock_timestamp() where blob.state <> 'condemned'
    returning state
"""
_STORED: Final = """
    update blob set state = 'stored', stored_size = $2, stored_at = coalesce(stored_at, clock_timestamp()),
           touched_at = clock_timestamp()
     where sha256 = $1 and state <> 'condemned'
    returning sha256
"""
_TOUCH: Final = """
    update blob set touched_at = clock_timestamp() where sha256 = $1 and state = 'stored'
    returning sha256, size, stored_size, frame_size, kind, field_count, fields_exact, fields
"""
_BLOB: Final = """
    select sha256, size, stored_size, frame_size, kind, field_count, fields_exact, fields
      from blob where sha256 = $1 and state = 'stored'
"""
_ANNOUNCED: Final = """
    update blob set touched_at = clock_timestamp() where sha256 = $1 and state <> 'condemned'
    returning sha256, size, $2::bigint as stored_size, frame_size, kind, field_count, fields_exact, fields
"""
# What somebody refers to is never condemned; if it is nevertheless, its object must not go, for its row cannot.
_VOLUME: Final = """
    select count(*) as contents, coalesce(sum(size), 0)::bigint as size,
           coalesce(sum(stored_size), 0)::bigint as stored_size
      from blob where state = 'stored'
"""
_HOLD_CONDEMNED: Final = """
    select sha256 from blob
     where sha256 = $1 and state = 'condemned' and not exists (select from version v where v.sha256 = blob.sha256)
       and not exists (select from schema s where s.sha256 = blob.sha256)
       for update
"""
_FORGET: Final = "delete from blob where sha256 = $1"
_MISSING: Final = """
    select wanted from unnest($1::text[]) wanted
     where not exists (select from blob where sha256 = wanted and state = 'stored')
"""


async def announce(conn: Connection, blob: Blob) -> State | None:
    """Say that this content arrives, so that it is not collected; the state that it has, or None while it is being
    collected."""
    state: State | None = await conn.fetchval(
        _ANNOUNCE,
        blob.sha256,
        blob.size,
        blob.frame_size,
        blob.kind,
        blob.field_count,
        blob.fields_exact,
        blob.fields,
    )
    return state


async def stored(conn: Connection, sha256: str, stored_size: int) -> bool:
    """Say that the object is there; False if it was collected meanwhile."""
    return await conn.fetchval(_STORED, sha256, stored_size) is not None


async def touch(conn: Connection, sha256: str) -> Blob | None:
    """The blob, which from now on is not collected for the length of the grace; None if it is not there."""
    row = await conn.fetchrow(_TOUCH, sha256)
    return Blob(**row) if row else None


async def blob(conn: Connection, sha256: str) -> Blob | None:
    row = await conn.fetchrow(_BLOB, sha256)
    return Blob(**row) if row else None


async def announced(conn: Connection, sha256: str, *, stored_size: int) -> Blob | None:
    """The blob that was announced, with the size that its object has or will have; None if it was collected."""
    row = await conn.fetchrow(_ANNOUNCED, sha256, stored_size)
    return Blob(**row) if row else None


async def hold_condemned(conn: Connection, sha256: str) -> bool:
    """Hold a condemned blob that nobody refers to until the transaction ends; False if there is none."""
    return await conn.fetchval(_HOLD_CONDEMNED, sha256) is not None


async def forget(conn: Connection, sha256: str) -> None:
    """Remove the row of a condemned blob that is held, and whose object is gone."""
    await conn.execute(_FORGET, sha256)


async def volume(conn: Connection) -> Volume:
    """How much is stored."""
    row: Any = await conn.fetchrow(_VOLUME)
    return Volume(**row)


async def missing(conn: Connection, digests: Sequence[str]) -> list[str]:
    """Those of these contents that are not in the vault."""
    return [row["wanted"] for row in await conn.fetch(_MISSING, list(digests))]


# --- schemas ---

_SCHEMA: Final = ", ".join(column.name for column in fields(Schema))
_INSERT: Final = f"""
    insert into schema (id, name, kind, field_count, size, sha256, owner, description, tags, metadata, words,
                        created_by, updated_by)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb, $11, $12, $12)
    on conflict (name) where status = 'active' do nothing
    returning {_SCHEMA}
"""
_INSERT_VERSION: Final = """
    insert into version (schema_id, version, sha256, note, backward, forward, created_by)
    values ($1, $2, $3, $4, $5, $6, $7)
"""
_GET: Final = f"select {_SCHEMA} from schema where id = $1"
_HELD: Final = f"select {_SCHEMA} from schema where id = $1 for update"
_ACTIVE: Final = f"select {_SCHEMA} from schema where name = $1 and status = 'active'"
_PUBLISH: Final = f"""
    update schema
       set version = version + 1, revision = revision + 1, kind = $2, field_count = $3, size = $4, sha256 = $5,
           words = $6, updated_at = clock_timestamp(), updated_by = $7
     where id = $1
    returning {_SCHEMA}
"""
_CHANGE: Final = f"""
    update schema
       set revision = revision + 1, owner = coalesce($2, owner), description = coalesce($3, description),
           tags = coalesce($4, tags), metadata = coalesce($5::text::jsonb, metadata), words = coalesce($6, words),
           updated_at = clock_timestamp(), updated_by = $7
     where id = $1
    returning {_SCHEMA}
"""
_DELETE: Final = f"""
    update schema
       set status = 'deleted', revision = revision + 1, deleted_at = clock_timestamp(), deleted_by = $2,
           updated_at = clock_timestamp(), updated_by = $2
     where id = $1
    returning {_SCHEMA}
"""
_RESTORE: Final = f"""
    update schema
       set status = 'active', revision = revision + 1, deleted_at = null, deleted_by = null,
           updated_at = clock_timestamp(), updated_by = $2
     where id = $1
    returning {_SCHEMA}
"""
_VERSION: Final = """
    select v.schema_id, v.version, v.sha256, b.size, b.kind, b.field_count, b.fields_exact, v.note, v.backward,
           v.forward, v.created_at, v.created_by
      from version v join blob b using (sha256)
"""
_ONE_VERSION: Final = f"{_VERSION} where v.schema_id = $1 and v.version = $2"
_VERSIONS: Final = f"{_VERSION} where v.schema_id = $1 and v.version < $2 order by v.version desc limit $3"

LATEST: Final = 2**31 - 1
"""A version that no schema reaches: the page before it is the first."""


async def insert(conn: Connection, schema_id: UUID, draft: Draft, content: Blob, *, by: str) -> Schema | None:
    """Insert a schema with its first version; None if an active one has the name."""
    row = await conn.fetchrow(
        _INSERT,
        schema_id,
        draft.name,
        content.kind,
        content.field_count,
        content.size,
        content.sha256,
        draft.owner,
        draft.description,
        list(draft.tags),
        encoded(draft.metadata),
        words_of([*draft.tags, *content.fields]),
        by,
    )
    if row is None:
        return None
    await conn.execute(_INSERT_VERSION, schema_id, 1, content.sha256, draft.note, None, None, by)
    return schema_of(row)


async def publish(
    conn: Connection,
    schema: Schema,
    content: Blob,
    *,
    note: str,
    backward: bool | None,
    forward: bool | None,
    by: str,
) -> Schema:
    """Give a schema that is held its next version."""
    words = words_of([*schema.tags, *content.fields])
    row = await conn.fetchrow(
        _PUBLISH, schema.id, content.kind, content.field_count, content.size, content.sha256, words, by
    )
    published = schema_of(row)
    await conn.execute(_INSERT_VERSION, schema.id, published.version, content.sha256, note, backward, forward, by)
    return published


async def get(conn: Connection, schema_id: UUID) -> Schema | None:
    row = await conn.fetchrow(_GET, schema_id)
    return schema_of(row) if row else None


async def held(conn: Connection, schema_id: UUID) -> Schema | None:
    """The schema, which nobody else changes before the transaction ends."""
    row = await conn.fetchrow(_HELD, schema_id)
    return schema_of(row) if row else None


async def active(conn: Connection, name: str) -> Schema | None:
    """The active schema of this name."""
    row = await conn.fetchrow(_ACTIVE, name)
    return schema_of(row) if row else None


async def change(conn: Connection, schema: Schema, changes: Changes, *, names: Sequence[str], by: str) -> Schema:
    """Change what people said of a schema that is held; ``names`` are those of its fields."""
    row = await conn.fetchrow(
        _CHANGE,
        schema.id,
        changes.owner,
        changes.description,
        None if changes.tags is None else list(changes.tags),
        None if changes.metadata is None else encoded(changes.metadata),
        None if changes.tags is None else words_of([*changes.tags, *names]),
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


async def version(conn: Connection, schema_id: UUID, number: int) -> Version | None:
    row = await conn.fetchrow(_ONE_VERSION, schema_id, number)
    return Version(**row) if row else None


async def versions(conn: Connection, schema_id: UUID, *, before: int, limit: int) -> list[Version]:
    """Versions below ``before``, the latest first."""
    return [Version(**row) for row in await conn.fetch(_VERSIONS, schema_id, before, limit)]


# --- listing ---

# Each order has an index that begins with the status. The direction is part of the text: a bound one could not use it.
_AFTER: Final[Mapping[Sort, str]] = {
    sort: f"({sort.column}, id) {'<' if sort.descending else '>'} ({{key}}, {{id}})" for sort in Sort
}
_ORDER: Final[Mapping[Sort, str]] = {
    sort: f"{sort.column} {'desc' if sort.descending else 'asc'}, id {'desc' if sort.descending else 'asc'}"
    for sort in Sort
}
# The name's collation is that of bytes: names that begin so are those up to the same with the greatest character.
_PREFIX: Final = "name >= {prefix} and name < {prefix} || chr(1114111)"


class _Bound:
    """Collects the values of a statement, and says where each stands in it."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def __call__(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"


async def page(
    conn: Connection, filters: Filters, sort: Sort, *, after: tuple[Any, UUID] | None, limit: int
) -> list[Schema]:
    """Schemas in order, from behind ``after`` (the sort's value and the id of one). One statement."""
    statement, values = listing(filters, sort, after=after, limit=limit)
    return [schema_of(row) for row in await conn.fetch(statement, *values)]


def listing(
    filters: Filters,
    sort: Sort,
    *,
    after: tuple[Any, UUID] | None,
    limit: int,
    columns: str = _SCHEMA,
    source: str = "schema where",
) -> tuple[str, list[Any]]:
    """The statement of a listing, with its values. ``columns`` and ``source`` are constant text."""
    bound = _Bound()
    conditions = [f"status = {bound(filters.status)}"]
    if filters.prefix is not None:
        conditions.append(_PREFIX.format(prefix=bound(filters.prefix) + "::text"))
    if filters.owner is not None:
        conditions.append(f"owner = {bound(filters.owner)}")
    if filters.tags:
        conditions.append(f"tags @> {bound(list(filters.tags))}")
    if filters.kind is not None:
        conditions.append(f"kind = {bound(filters.kind)}")
    if filters.words is not None:
        conditions.append(f"search @@ websearch_to_tsquery('english', {bound(filters.words)})")
    if filters.metadata is not None:
        conditions.append(f"metadata @> {bound(encoded(filters.metadata))}::text::jsonb")
    if after is not None:
        conditions.append(_AFTER[sort].format(key=bound(after[0]), id=bound(after[1])))
    statement = (
        f"select {columns} from {source} {' and '.join(conditions)} order by {_ORDER[sort]} limit {bound(limit)}"
    )
    return statement, bound.values


# --- who uses it ---

# With its schema: it belongs into the transaction of an event, on the service's own connection. Event contracts are
# schemas of the standard mode.
_CONTRACT_USED: Final = """
    insert into vault_standard.consumer (name, consumer, events, first_at, last_at) values ($1, $2, $3, $4, $5)
    on conflict (name, consumer) do update
       set events = consumer.events + excluded.events, first_at = least(consumer.first_at, excluded.first_at),
           last_at = greatest(consumer.last_at, excluded.last_at)
"""
_CONSUMERS: Final = """
    select consumer, events, first_at, last_at from consumer where name = $1 and last_at >= $2 order by last_at desc
"""


async def contract_used(conn: Connection, name: str, by: Consumer) -> None:
    """Somebody was seen using an event contract, so often since it was told last."""
    await conn.execute(_CONTRACT_USED, name, by.consumer, by.events, by.first_at, by.last_at)


async def consumers(conn: Connection, name: str, *, since: datetime) -> list[Consumer]:
    """Who was seen using it since then, the latest first."""
    return [Consumer(**row) for row in await conn.fetch(_CONSUMERS, name, since)]


def schema_of(row: Any) -> Schema:
    """A schema from a row that has its columns and no others."""
    return Schema(**{**row, "metadata": json.loads(row["metadata"])})


def encoded(value: Mapping[str, JsonValue]) -> str:
    """An object as it is bound to a statement."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
