"""A mapping that uses everything there is, and records for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import asyncpg

from replank.connection import Connection
from replank.migrate.compile import Compiled
from replank.migrate.compile import compile as compiled
from replank.migrate.mapping import Mapping, load

MAPPING = """
mapping: 1
name: shop
source: {table: kv_store, key: key, value: value}
others: refuse
ignore: ["session:{id}"]
entities:
  client:
    key: "client:{id}"
    table: clients
    columns:
      id: {key: id, type: text}
      name: {path: name, type: text, null: false}
    primary_key: [id]
    rest: rest
  order:
    key: "order:{id}"
    table: orders
    columns:
      id:         {key: id, type: text}
      client_id:  {path: clientId, type: text, null: false, references: client}
      city:       {path: address.city, type: text}
      total:      {path: total, type: "numeric(12,2)"}
      weight:     {path: weight, type: "numeric(8,3)", as: string}
      created_at: {path: createdAt, type: timestamptz, as: iso8601_ms}
      email:      {path: email, type: text, clean: [trim, lower, empty_as_null], lenient: true}
      origin:     {constant: legacy, type: text}
      raw:        {path: payload, type: jsonb}
      paid:       {path: paid, type: boolean}
      ratio:      {path: ratio, type: double precision}
      day:        {path: day, type: date}
      seen_at:    {path: seenAt, type: timestamptz, as: epoch_ms}
      token:      {path: token, type: uuid}
      quantity:   {path: quantity, type: integer}
    primary_key: [id]
    rest: rest
    drop: [internalNote]
    children:
      items:
        path: items
        table: order_items
        parent: [order_id]
        columns: {sku: {path: sku, type: text}, quantity: {path: qty, type: integer, null: false}}
        rest: rest
      tags:
        path: meta.tags
        table: order_tags
        parent: [order_id]
        columns: {tag: {path: $, type: text}}
    indexes:
      idx_orders_client_created: {columns: [client_id, created_at]}
  exclusion:
    key: "excl:{site}:{product}"
    table: exclusions
    columns: {site: {key: site, type: bigint}, product: {key: product, type: text}, why: {path: why, type: text}}
    primary_key: [site, product]
"""

ORDER: dict[str, Any] = {
    "clientId": "c1",
    "address": {"city": "Lisbon", "zip": "1100"},
    "total": 12.5,
    "weight": "1.500",
    "createdAt": "2024-02-29T12:00:00.123Z",
    "payload": {"a": None},
    "paid": True,
    "ratio": Decimal("0.1"),
    "day": "2000-02-29",
    "seenAt": 1700000000123,
    "token": "00000000-0000-0000-0000-00000000000a",
    "quantity": 3,
    "extra": [1, None],
    "x": None,
    "items": [{"sku": "a", "qty": 2}, {"sku": None, "qty": 3, "gift": True}],
    "meta": {"tags": ["a", None, "b"]},
}


def shop() -> Mapping:
    return load(MAPPING)


def dumps(value: Any) -> str:
    """JSON with decimals digit for digit, and nothing of Unicode escaped."""
    match value:
        case dict():
            return "{" + ", ".join(f"{dumps(name)}: {dumps(inner)}" for name, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(dumps, value)) + "]"
        case Decimal():
            return str(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


class Target:
    """The target of a mapping, in the database of a test: its functions by name."""

    def __init__(self, conn: Connection, sql: Compiled) -> None:
        self.conn, self.sql = conn, sql

    @classmethod
    async def install(cls, conn: Connection, mapping: Mapping) -> Target:
        target = cls(conn, compiled(mapping))
        await conn.execute(target.sql.functions)
        for table in target.sql.tables:
            await conn.execute(table.create)
        return target

    async def call(self, function: str, keys: Iterable[str], values: Iterable[Any], *more: Any) -> list[asyncpg.Record]:
        """Call a function that takes keys and values, and whatever comes behind them."""
        rest = "".join(f", ${n}" for n in range(3, 3 + len(more)))
        # A backfill's functions parse the values themselves.
        given = "$2" if function.startswith("fill") else "$2::text[]::jsonb[]"
        query = f"select * from {self.sql.schema}.{function}($1, {given}{rest})"
        texts = [None if value is None else dumps(value) for value in values]
        return await self.conn.fetch(query, list(keys), texts, *more)

    async def fill(self, records: dict[str, Any]) -> dict[str, int]:
        (row,) = await self.call("fill", records, records.values())
        return dict(row)

    async def apply(self, *changes: tuple[str, Any, int]) -> list[tuple[str, str, str | None]]:
        keys, values, versions = zip(*changes, strict=True)
        rows = await self.call("apply", keys, values, list(versions), [None] * len(keys))
        return [(row["key"], row["outcome"], row["problem"]) for row in rows]

    async def compare(self, records: dict[str, Any]) -> dict[str, asyncpg.Record]:
        return {row["entity"]: row for row in await self.call("compare", records, records.values())}

    async def down(self, keys: Iterable[str]) -> dict[str, Any]:
        rows = await self.conn.fetch(f"select * from {self.sql.schema}.down($1)", list(keys))
        return {row["key"]: json.loads(row["value"], parse_float=Decimal) for row in rows}

    async def rejects(self) -> dict[str, str]:
        rows = await self.conn.fetch(f"select key, path, reason from {self.sql.schema}.reject")
        return {row["key"]: f"{row['path']}: {row['reason']}" for row in rows}
