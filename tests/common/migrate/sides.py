"""Two databases as the sides of a migration, or one that is both, with everything installed and no Kafka between them.

Changes are carried by hand, from one database's outbox into the other's functions, so that a test decides when.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg

from replank import outbox
from replank.connection import Connection
from replank.migrate import authority, capture, reverse
from replank.migrate import compile as compiler
from replank.migrate.authority import Side
from replank.migrate.mapping import Mapping, load
from replank.testing import servers

MAPPING = """
mapping: 1
name: shop
source: {table: kv_store}
ignore: ["session:{id}"]
entities:
  order:
    key: "order:{id}"
    table: orders
    columns:
      id: {key: id, type: text}
      total: {path: total, type: "numeric(12,2)"}
    primary_key: [id]
    rest: rest
    children:
      items:
        path: items
        table: order_items
        parent: [order_id]
        columns: {sku: {path: sku, type: text}, quantity: {path: qty, type: integer}}
        rest: rest
"""
PUT = "insert into kv_store values ($1, $2::text::jsonb) on conflict (key) do update set value = excluded.value"

_CHANGES = """
    select event_id, key, convert_from(value, 'UTF8') as change, traceparent
      from replank_outbox.event where topic = $1 order by id
"""
_READ_SOURCE = "select key, value::text from kv_store where key = any($1::text[])"
_READ_TARGET = "select key, value::text from {schema}.down($1)"


class Change(NamedTuple):
    """A captured change. ``value`` is JSON as the database wrote it, with every digit."""

    key: str
    op: str
    version: int
    value: str | None
    fetch: bool
    traceparent: str | None


def shop() -> Mapping:
    return load(MAPPING)


@dataclass
class Sides:
    """Pools of the application's, and connections of the migration's own."""

    mapping: Mapping
    source: asyncpg.Pool
    target: asyncpg.Pool
    _carried: set[Any] = field(default_factory=set)

    @property
    def schema(self) -> str:
        return self.mapping.schema_name

    def pool(self, side: Side) -> asyncpg.Pool:
        return self.source if side == "source" else self.target

    async def put(self, key: str, value: Any) -> None:
        await self.source.execute(PUT, key, json.dumps(value))

    async def value(self, key: str) -> Any:
        """What the key-value store has of a key."""
        text = await self.source.fetchval("select value::text from kv_store where key = $1", key)
        return None if text is None else json.loads(text)

    async def record(self, key: str) -> Any:
        """What the tables have of a key, as a record."""
        text = await self.target.fetchval(f"select value::text from {self.schema}.down($1)", [key])
        return None if text is None else json.loads(text)

    async def changes(self, side: Side = "source") -> list[Change]:
        """Every change that was captured on a side, oldest first."""
        topic = self.mapping.change_topic if side == "source" else self.mapping.reverse_topic
        return [_change(row) for row in await self.pool(side).fetch(_CHANGES, topic)]

    async def carry(self, side: Side = "source") -> None:
        """Do to the other side what an applier does with the changes of this one that were committed by now.

        Transactions commit out of order, so what was carried is remembered one by one.
        """
        topic = self.mapping.change_topic if side == "source" else self.mapping.reverse_topic
        rows = [r for r in await self.pool(side).fetch(_CHANGES, topic) if r["event_id"] not in self._carried]
        changes = [_change(row) for row in rows]
        read = _READ_SOURCE if side == "source" else _READ_TARGET.format(schema=self.schema)
        large = await self.pool(side).fetch(read, [change.key for change in changes if change.fetch])
        fetched = {row["key"]: row["value"] for row in large}
        function = "apply" if side == "source" else "restore"
        await self.pool("target" if side == "source" else "source").execute(
            f"select {self.schema}.{function}($1, $2::text[]::jsonb[], $3, $4)",
            [change.key for change in changes],
            [fetched.get(change.key) if change.fetch else change.value for change in changes],
            [change.version for change in changes],
            [change.traceparent for change in changes],
        )
        self._carried.update(row["event_id"] for row in rows)

    async def flip(self, leaving: Side) -> None:
        """Move the authority, and everything written with it."""
        taking: Side = "target" if leaving == "source" else "source"
        async with self.pool(leaving).acquire() as ours, self.pool(taking).acquire() as theirs:
            await authority.hold(ours, self.mapping.name, leaving)
            await self.carry(leaving)
            await authority.open(theirs, self.mapping.name, taking)
            await authority.close(ours, self.mapping.name, leaving)


@asynccontextmanager
async def both_sides(server: str, *, databases: int = 2, same_transaction: bool = False) -> AsyncIterator[Sides]:
    """The shop's two sides in one database or two, empty, the key-value store open."""
    async with AsyncExitStack() as stack:
        pools = []
        for _ in range(databases):
            dsn = await stack.enter_async_context(servers.database(server))
            pools.append(await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=1, max_size=20)))
        source, target = pools[0], pools[-1]
        sides = Sides(shop(), source, target)
        async with source.acquire() as ours, target.acquire() as theirs:
            await install(ours, theirs, sides.mapping, same_transaction=same_transaction)
        yield sides


async def install(source: Connection, target: Connection, mapping: Mapping, *, same_transaction: bool) -> None:
    """What a migration installs in its databases, in its order."""
    await source.execute("create table kv_store (key text primary key, value jsonb not null)")
    compiled = compiler.compile(mapping)
    for table in compiled.tables:
        await target.execute(table.create)
    await target.execute(compiled.functions)
    await outbox.install(source)
    await outbox.install(target)
    await capture.install(source, mapping, same_transaction=same_transaction)
    await reverse.install(target, mapping, same_transaction=same_transaction)


def _change(row: Any) -> Change:
    change = json.loads(row["change"])
    value = None
    if "value" in change:
        value = row["change"].partition('"value": ')[2][:-1]
    return Change(change["key"], change["op"], change["version"], value, change.get("fetch", False), row["traceparent"])
