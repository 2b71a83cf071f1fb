"""Records that could not be converted: looked at in the target, where they are kept, and sent again from the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from replank.connection import Connection
from replank.migrate.comparison import repair
from replank.migrate.sql import schema_of
from replank_schema.migration import plans
from replank_schema.migration.databases import Databases
from replank_schema.migration.model import Migration, Plan

_PAGE: Final = """
    select key, path, reason, version, attempts, first_at, last_at from {schema}.reject
     where key collate "C" > $1 order by key collate "C" limit $2
"""
_KEYS: Final = "select key from {schema}.reject where $1::text[] is null or key = any ($1) order by key"
_COUNT: Final = """
    select count(*) as all, count(*) filter (where key = any ($1::text[])) as accepted from {schema}.reject
"""
# Writers are held while so many are read.
_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that is not in the tables. ``path`` is the field at fault."""

    key: str
    path: str | None
    reason: str
    version: int | None
    attempts: int
    first_at: datetime
    last_at: datetime


async def page(target: Connection, name: str, *, after: str, limit: int) -> list[Reject]:
    """The rejects of a migration by key; none where nothing was set up yet."""
    try:
        rows = await target.fetch(_of(name, _PAGE), after, limit)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return []
    return [Reject(**dict(row)) for row in rows]


async def keys(target: Connection, name: str, among: Sequence[str] | None = None) -> list[str]:
    """The keys of all rejects, or of those ``among`` them; none where nothing was set up yet."""
    try:
        rows = await target.fetch(_of(name, _KEYS), None if among is None else list(among))
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return []
    return [row["key"] for row in rows]


async def count(target: Connection, name: str, accepted: Sequence[str]) -> tuple[int, int]:
    """How many rejects there are that nobody settled, and how many that were accepted."""
    row = await target.fetchrow(_of(name, _COUNT), list(accepted))
    return (row["all"] - row["accepted"], row["accepted"]) if row else (0, 0)


async def retry(databases: Databases, migration: Migration, plan: Plan, wanted: Sequence[str] | None) -> int:
    """Carry rejected records to the tables again as they are now, deletions included; returns how many.

    They go by the way of every change, under new versions (`replank.migrate.comparison.repair`). What becomes of them
    shows in the rejects a moment later.
    """
    async with databases.connect(migration.target) as target:
        rejected = await keys(target, migration.name, wanted)
    source, following = databases.dsn(migration.source), databases.dsn(migration.target)
    mapping = plans.from_json(plan.mapping)
    for start in range(0, len(rejected), _BATCH):
        await repair(source, following, mapping, rejected[start : start + _BATCH])
    return len(rejected)


def _of(name: str, statement: str) -> str:
    return statement.format(schema=schema_of(name))
