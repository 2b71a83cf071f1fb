"""All SQL about relation tuples. Every function runs on the caller's connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from replank.connection import Connection
from replank_auth_cache.tuples.model import Answer, RelationTuple

_CREATE: Final = "insert into store (name) select name from unnest($1::text[]) as name on conflict do nothing"
_REVISION: Final = "select incarnation, revision from store where name = $1"
# One statement, so that the revision and the answer are of one snapshot.
_CHECK: Final = """
    select incarnation, revision, exists (
        select from relation_tuple
        where store = $1 and object = $2 and relation = $3 and actor = $4
    ) as allowed
    from store where name = $1
"""
# The row lock makes writers of one store take turns: revisions are given in commit order.
_NEXT_REVISION: Final = "update store set revision = revision + 1 where name = $1 returning incarnation, revision"
_INSERT: Final = """
    insert into relation_tuple (store, object, relation, actor, revision, written_by, written_at)
    select $1, object, relation, actor, $5, $6, $7
    from unnest($2::text[], $3::text[], $4::text[]) as given (object, relation, actor)
    on conflict do nothing
    returning actor, relation, object
"""
_DELETE: Final = """
    delete from relation_tuple
    using unnest($2::text[], $3::text[], $4::text[]) as given (object, relation, actor)
    where relation_tuple.store = $1 and relation_tuple.object = given.object
      and relation_tuple.relation = given.relation and relation_tuple.actor = given.actor
    returning relation_tuple.actor, relation_tuple.relation, relation_tuple.object
"""


async def create_stores(conn: Connection, names: Iterable[str]) -> None:
    """Add the stores that are not there yet."""
    await conn.execute(_CREATE, list(names))


async def revision(conn: Connection, store: str) -> tuple[UUID, int] | None:
    """The store's incarnation and revision, or None if there is no such store."""
    row = await conn.fetchrow(_REVISION, store)
    return (row["incarnation"], row["revision"]) if row else None


async def check(conn: Connection, store: str, wanted: RelationTuple) -> Answer | None:
    """Whether the tuple is there, and at which revision; None if there is no such store."""
    row = await conn.fetchrow(_CHECK, store, wanted.object, wanted.relation, wanted.user)
    return Answer(row["incarnation"], row["revision"], row["allowed"]) if row else None


async def next_revision(conn: Connection, store: str) -> tuple[UUID, int] | None:
    """Begin a change of the store, and hold it until the transaction ends.

    Returns the store's incarnation and new revision, or None if there is no such store.
    """
    row = await conn.fetchrow(_NEXT_REVISION, store)
    return (row["incarnation"], row["revision"]) if row else None


async def insert(
    conn: Connection, store: str, tuples: Sequence[RelationTuple], *, revision: int, by: str, at: datetime
) -> set[RelationTuple]:
    """Add tuples; returns those that were not there before."""
    rows = await conn.fetch(_INSERT, store, *_columns(tuples), revision, by, at)
    return {RelationTuple(row["actor"], row["relation"], row["object"]) for row in rows}


async def delete(conn: Connection, store: str, tuples: Sequence[RelationTuple]) -> set[RelationTuple]:
    """Remove tuples; returns those that were there."""
    rows = await conn.fetch(_DELETE, store, *_columns(tuples))
    return {RelationTuple(row["actor"], row["relation"], row["object"]) for row in rows}


def _columns(tuples: Sequence[RelationTuple]) -> tuple[list[str], list[str], list[str]]:
    return [item.object for item in tuples], [item.relation for item in tuples], [item.user for item in tuples]
