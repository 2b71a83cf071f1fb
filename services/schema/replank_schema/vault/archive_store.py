"""All SQL about giving the rows of the old pattern to the archiver. Names are found by the search path."""

# ruff: noqa: S608 - what is put in are our own dataclasses' columns and constant text
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from replank.connection import Connection

Row = tuple[UUID, int, int]
"""A row and its state: the schema's id, the version, and how often the row was changed."""


@dataclass(frozen=True, slots=True)
class Request:
    """Rows that were offered to the archiver: an object that has them as lines. ``sha256`` is of those lines."""

    id: UUID
    state: Literal["requested", "archived", "withdrawn"]
    rows: int
    sha256: str
    stored_size: int
    deleted: int | None
    bucket: str | None
    object_key: str | None
    requested_at: datetime
    requested_by: str
    settled_at: datetime | None


_REQUEST: Final = ", ".join(column.name for column in fields(Request))
# The text of jsonb has its members in one order, so equal rows are equal lines.
_LINES: Final = """
    select id, version, row_version, (to_jsonb(i) - 'row_version')::text as line
      from inline_schema i where (id, version) > ($1, $2) order by id, version limit $3
"""
_INSERT: Final = f"""
    insert into archive_request (id, state, rows, sha256, stored_size, requested_by)
    values ($1, 'requested', $2, $3, $4, $5)
    returning {_REQUEST}
"""
_INSERT_ROWS: Final = """
    insert into archive_row (request_id, schema_id, version, row_version)
    select $1, * from unnest($2::uuid[], $3::integer[], $4::bigint[])
"""
_GET: Final = f"select {_REQUEST} from archive_request where id = $1"
_LATEST: Final = f"select {_REQUEST} from archive_request order by requested_at desc limit 1"
_OPEN: Final = "select id from archive_request where state = 'requested' and id = any($1)"
_WITHDRAW: Final = """
    update archive_request set state = 'withdrawn', settled_at = clock_timestamp() where state = 'requested'
"""
_DELETE: Final = """
    with gone as (
        delete from inline_schema i using archive_row a
         where a.request_id = $1 and i.id = a.schema_id and i.version = a.version and i.row_version = a.row_version
        returning 1
    )
    select count(*) from gone
"""
_FORGET_ROWS: Final = "delete from archive_row where request_id = $1"
_SETTLE: Final = """
    update archive_request
       set state = 'archived', deleted = $2, bucket = $3, object_key = $4, settled_at = clock_timestamp()
     where id = $1
"""


async def lines(conn: Connection, after: tuple[UUID, int], limit: int) -> Sequence[Any]:
    """Rows as JSON, in order, with how often each was changed."""
    return await conn.fetch(_LINES, *after, limit)


async def insert(
    conn: Connection, request_id: UUID, rows: Sequence[Row], *, sha256: str, stored_size: int, by: str
) -> Request:
    """Remember what is offered. Raises `asyncpg.UniqueViolationError` while another request is open."""
    row = await conn.fetchrow(_INSERT, request_id, len(rows), sha256, stored_size, by)
    await conn.execute(_INSERT_ROWS, request_id, *([one[at] for one in rows] for at in range(3)))
    return _request(row)


async def get(conn: Connection, request_id: UUID) -> Request | None:
    row = await conn.fetchrow(_GET, request_id)
    return _request(row) if row else None


async def latest(conn: Connection) -> Request | None:
    row = await conn.fetchrow(_LATEST)
    return _request(row) if row else None


async def are_open(conn: Connection, request_ids: Sequence[UUID]) -> set[UUID]:
    """Those of these requests that the archiver may still ask for."""
    return {row["id"] for row in await conn.fetch(_OPEN, list(request_ids))}


async def withdraw(conn: Connection) -> None:
    """Whatever was offered is not given away any more."""
    await conn.execute(_WITHDRAW)


async def settle(conn: Connection, request: Request, *, bucket: str, object_key: str) -> int:
    """Delete the rows that are kept elsewhere now, each only as it was offered; how many those were."""
    deleted: int = await conn.fetchval(_DELETE, request.id)
    await conn.execute(_FORGET_ROWS, request.id)
    await conn.execute(_SETTLE, request.id, deleted, bucket, object_key)
    return deleted


def _request(row: Any) -> Request:
    return Request(**row)
