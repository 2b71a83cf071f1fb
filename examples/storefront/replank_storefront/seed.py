"""Filling a new shop: everything in one COPY, so that there is all of it or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from replank.connection import Connection
from replank.errors import ConfigurationError
from replank_storefront.generate import Planted, Sizes, records
from replank_storefront.records import dump

_SOLD_BEFORE: Final = "select exists (select from kv_store)"


async def seed(conn: Connection, sizes: Sizes, number: int = 1) -> Planted:
    """Put the records of the shop with this seed ``number`` into ``kv_store``; returns what is dirty among them.

    Raises `ConfigurationError` when there are records already.
    """
    if await conn.fetchval(_SOLD_BEFORE):
        raise ConfigurationError("kv_store is not empty", fix="seed a new database, or empty the table first")
    planted = Planted()
    await conn.copy_records_to_table("kv_store", columns=["key", "value"], records=_rows(sizes, number, planted))
    # Plans for an empty table would be used until autovacuum comes by.
    await conn.execute("analyze kv_store")
    return planted


def _rows(sizes: Sizes, number: int, planted: Planted) -> Iterator[tuple[str, str]]:
    for key, value in records(sizes, number, planted):
        yield key, dump(value)
