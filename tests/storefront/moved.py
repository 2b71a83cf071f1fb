"""A shop in both stores: its tables made and filled by the compiled mapping, without a migration around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import asyncpg

from replank.migrate import mapping
from replank.migrate.compile import Compiled
from replank.migrate.compile import compile as compile_mapping

MAPPING: Final = Path(__file__).parents[2] / "examples/storefront/mapping.yaml"

_RECORDS: Final = "select array_agg(key) as keys, array_agg(value::text) as vals from kv_store"
_FILL: Final = "select filled, kept, rejected from replank_m_storefront.fill($1, $2)"
_REJECTS: Final = "select key from replank_m_storefront.reject order by key"
_COMPARE: Final = """
select entity, records, source_fingerprint = target_fingerprint as same, different
from replank_m_storefront.compare($1, $2::text[]::jsonb[])
"""


def compiled() -> Compiled:
    """The shop's mapping."""
    return compile_mapping(mapping.load(MAPPING.read_text()))


async def make_tables(tables: asyncpg.Connection, shop: Compiled) -> None:
    """Empty tables with their indexes."""
    await tables.execute("create extension if not exists pg_trgm")
    for table in shop.tables:
        await tables.execute(table.create)
    await tables.execute(shop.functions)
    for index in shop.indexes:
        await tables.execute(index.create)


async def records(kv: asyncpg.Connection) -> tuple[list[str], list[str]]:
    """All keys and values, as the text of JSON."""
    row = await kv.fetchrow(_RECORDS)
    assert row is not None
    return row["keys"] or [], row["vals"] or []


async def fill(kv: asyncpg.Connection, tables: asyncpg.Connection) -> set[str]:
    """Take all records into the tables; returns the keys of those that were rejected."""
    await tables.fetch(_FILL, *await records(kv))
    await tables.execute("analyze")
    return {row["key"] for row in await tables.fetch(_REJECTS)}


async def constrain(tables: asyncpg.Connection, shop: Compiled) -> None:
    """Add and validate everything that the tables promise."""
    for constraint in shop.constraints:
        await tables.execute(constraint.add)
        await tables.execute(constraint.validate)


async def different(kv: asyncpg.Connection, tables: asyncpg.Connection, rejected: Sequence[str] | set[str]) -> set[str]:
    """The keys whose record and rows differ, beside those that were rejected."""
    found = await tables.fetch(_COMPARE, *await records(kv))
    assert all(row["same"] == (not row["different"]) for row in found)
    return {key for row in found for key in row["different"]} - set(rejected)
