"""The shop's data, as whoever runs the shop handles it: emptied, filled, asked about, mended."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from replank.migrate.mapping import Mapping
from replank.migrate.sql import relation
from replank_cli.connection import connect
from replank_cli.demo.calls import Calls
from replank_cli.demo.places import Places

# What a migration must not reject of what the shop's generator plants: the first becomes a row that a foreign key
# refuses, the second is cleaned as the mapping says, the third is left alone.
_NOT_REJECTED: Final = frozenset({"dangling_reference", "untrimmed_email", "session"})
_DANGLING: Final = "dangling_reference"
_ROUNDED: Final = "third_decimal"

QUESTIONS: Final = (
    ("1,000 products of a catalog", "/v1/catalogs/k00001/products"),
    ("a month of the largest client", "/v1/clients/c00001/reports/2026-03"),
    ("products named Celbrilin", "/v1/products?q=celbrilin"),
)
"""What the shop is asked before and after, of the records that it was filled with."""
_ASKED: Final = 9
_PATIENCE: Final = 1.0

_COUNT_RECORDS: Final = """
    select split_part(key, ':', 1) as kind, count(*) as records from kv_store where key <> all($1::text[]) group by 1
"""
_COUNT_ROWS: Final = "select count(*) from {}"
_EMPTY: Final = "truncate {}"
_MEND_DANGLING: Final = """
    update kv_store o set value = jsonb_set(o.value, '{siteId}', c.value -> 'siteIds' -> 0)
      from kv_store c
     where o.key = any($1) and c.key = 'client:' || split_part(o.key, ':', 2)
"""
_MEND_ROUNDED: Final = """
    update kv_store set value = jsonb_set(value, '{total}', to_jsonb(round((value ->> 'total')::numeric, 2)::text))
     where key = any($1)
"""


@dataclass(frozen=True, slots=True)
class Planted:
    """The keys of the dirty records among those that the shop was filled with, by what is wrong with them."""

    keys: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Planted:
        """What `seed` has written."""
        return cls(json.loads(path.read_text()))

    @property
    def rejected(self) -> set[str]:
        """Those that cannot become rows."""
        return {key for kind, keys in self.keys.items() if kind not in _NOT_REJECTED for key in keys}

    @property
    def mendable(self) -> list[str]:
        """Those that a person can tell the truth about: what names a site that is gone, and what has half a cent."""
        return [*self.keys[_DANGLING], *self.keys[_ROUNDED]]

    @property
    def lost(self) -> list[str]:
        """Those that cannot become rows and that nobody mends."""
        return sorted(self.rejected - set(self.mendable))


async def count(places: Places, mapping: Mapping, without: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
    """How many records and how many rows there are of each entity; the records with these keys are not counted."""
    async with connect(places.kv_dsn) as conn:
        kinds = {row["kind"]: row["records"] for row in await conn.fetch(_COUNT_RECORDS, list(without))}
    # The shop's keys begin with what they are keys of.
    records = {name: kinds.get(entity.key.partition(":")[0], 0) for name, entity in mapping.entities.items()}
    async with connect(places.tables_dsn) as conn:
        rows = {
            name: int(await conn.fetchval(_COUNT_ROWS.format(relation(entity.table))))
            for name, entity in mapping.entities.items()
        }
    return records, rows


async def size(places: Places) -> int:
    """How many records there are in the key-value store."""
    async with connect(places.kv_dsn) as conn:
        return int(await conn.fetchval("select count(*) from kv_store"))


async def empty(places: Places) -> None:
    """Remove every record. Refused by the key-value store while a migration captures what is written."""
    async with connect(places.kv_dsn) as conn:
        await conn.execute("truncate kv_store")


async def empty_tables(places: Places, mapping: Mapping) -> None:
    """Remove every row, of a shop whose tables take the writes and tell nobody of them."""
    entities = mapping.entities.values()
    tables = {entity.table for entity in entities} | {
        child.table for entity in entities for child in entity.children.values()
    }
    async with connect(places.tables_dsn) as conn:
        await conn.execute(_EMPTY.format(", ".join(map(relation, sorted(tables)))))


async def mend(places: Places, planted: Planted) -> None:
    """Correct, in the live store, what can be corrected (`Planted.mendable`)."""
    async with connect(places.kv_dsn) as conn, conn.transaction():
        await conn.execute(_MEND_DANGLING, planted.keys[_DANGLING])
        await conn.execute(_MEND_ROUNDED, planted.keys[_ROUNDED])


async def timed(calls: Calls, shop: str) -> dict[str, float]:
    """How long the shop takes over each question: the median of a few answers (one, of those that take long), in ms."""
    found = {}
    for name, path in QUESTIONS:
        took: list[float] = []
        while len(took) < _ASKED and sum(took) < _PATIENCE:
            took.append(await calls.time(f"{shop}{path}"))
        found[name] = statistics.median(took) * 1000
    return found


def order() -> dict[str, Any]:
    """An order that a customer of the largest client places."""
    return {
        "site_id": "s000001",
        "currency": "EUR",
        "recipient_name": "Ada Lindqvist",
        "city": "Bremen",
        "items": [
            {"product_id": "p0000002", "name": "Nordic Oak Lamp", "quantity": 1, "price": "79.00"},
            {"product_id": "p0000004", "name": "Heritage Linen Blanket", "quantity": 2, "price": "49.50"},
        ],
    }
