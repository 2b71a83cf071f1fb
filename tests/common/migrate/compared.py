"""Two stores to compare, on a real server: a small shop, with every change carried over by hand.

Changes do not go through Kafka here, so that a test can lose, repeat and reorder them as it likes: `Stores.carry` is
what the applier does with them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from replank import outbox
from replank.connection import Connection
from replank.migrate import authority, capture, compile, reverse  # noqa: A004 - the module
from replank.migrate.comparison import Comparison, ComparisonSettings, Direction, Findings, Mismatch, Progress
from replank.migrate.mapping import Mapping, load
from replank.migrate.session import session
from replank.testing import servers

SHOP = """
mapping: 1
name: shop
source: {table: kv_store, key: key, value: value}
ignore: ["session:{id}"]
entities:
  client:
    key: "client:{id}"
    table: clients
    columns:
      id: {key: id, type: text}
      name: {path: name, type: text}
      city: {path: address.city, type: text}
      email: {path: email, type: text, clean: [trim, lower], lenient: true}
    primary_key: [id]
    rest: rest
    drop: [internalNote]
  order:
    key: "order:{id}"
    table: orders
    columns:
      id: {key: id, type: text}
      client_id: {path: clientId, type: text, null: false, references: client}
      total: {path: total, type: "numeric(12,2)"}
      created_at: {path: createdAt, type: timestamptz, as: iso8601_ms}
      note: {path: note, type: text}
      points: {path: points, type: bigint}
    primary_key: [id]
    rest: rest
    children:
      items:
        path: items
        table: order_items
        parent: [order_id]
        position: position
        columns:
          sku: {path: sku, type: text}
          quantity: {path: qty, type: integer, null: false}
        rest: rest
"""
PUT = "insert into kv_store values ($1, $2::text::jsonb) on conflict (key) do update set value = excluded.value"
CLIENTS = 4
ORDERS = 12

#: Every captured change counts as lost if it is not applied, at once: so that tests need not wait.
AT_ONCE = ComparisonSettings(in_flight=0, pause=0.01, patience=2)


def client(number: int, **changes: Any) -> dict[str, Any]:
    value = {"name": f"Client {number}", "address": {"city": f"City {number}"}, "email": f"c{number}@example.com"}
    return {**value, **changes}


def order(number: int, **changes: Any) -> dict[str, Any]:
    value = {
        "clientId": f"c{number % CLIENTS}",
        "total": 10.25 + number,
        "createdAt": f"2026-01-{number + 1:02}T10:00:00.000Z",
        "note": f"note {number}",
        "points": number - 2,
        "gift": None,
        "source": "web",
        "readings": [1] * 64,
        "options": {f"k{place:02}": place for place in range(1, 21)},
        "items": [{"sku": f"sku-{number}-{place}", "qty": place + 1, "colour": "red"} for place in range(3)],
    }
    return {**value, **changes}


@dataclass
class Stores:
    """A source with records and a target with tables. ``target`` is a connection of the applier's."""

    source_dsn: str
    target_dsn: str
    mapping: Mapping
    source: Connection
    target: Connection
    same_transaction: bool = False
    _carried: int = field(default=0)
    _carried_back: int = field(default=0)

    @property
    def schema(self) -> str:
        return self.mapping.schema_name

    async def put(self, key: str, value: Any) -> None:
        await self.source.execute(PUT, key, json.dumps(value))

    async def delete(self, key: str) -> None:
        await self.source.execute("delete from kv_store where key = $1", key)

    async def carry(self, *, lose: Collection[str] = ()) -> None:
        """Apply every captured change that was not looked at yet, but for those of some keys, which are lost."""
        rows = await self.source.fetch(
            """
            select id, key, convert_from(value, 'UTF8') as change, traceparent from replank_outbox.event
             where topic = $1 and id > $2 order by id
            """,
            self.mapping.change_topic,
            self._carried,
        )
        await self.apply([row for row in rows if row["key"] not in lose])
        self._carried = rows[-1]["id"] if rows else self._carried

    async def apply(self, rows: Sequence[Any]) -> None:
        changes = [(row["key"], json.loads(row["change"]), row["change"], row["traceparent"]) for row in rows]
        await self.target.execute(
            f"select {self.schema}.apply($1, $2::text[]::jsonb[], $3, $4)",
            [key for key, _, _, _ in changes],
            [json.dumps(change["value"]) if change["op"] == "upsert" else None for _, change, _, _ in changes],
            [change["version"] for _, change, _, _ in changes],
            [traceparent for _, _, _, traceparent in changes],
        )

    async def fill(self) -> None:
        """What a backfill does, in one chunk."""
        rows = await self.source.fetch("select key, value::text from kv_store")
        await self.target.execute(
            f"select {self.schema}.fill($1, $2)",
            *(list(column) for column in zip(*rows, strict=True)),
        )

    async def carry_back(self, *, lose: Collection[str] = ()) -> None:
        """As `carry`, for what was written to the tables after the cut-over."""
        rows = await self.target.fetch(
            """
            select id, key, (convert_from(value, 'UTF8')::jsonb ->> 'version')::bigint as version, traceparent
              from replank_outbox.event where topic = $1 and id > $2 order by id
            """,
            self.mapping.reverse_topic,
            self._carried_back,
        )
        self._carried_back = rows[-1]["id"] if rows else self._carried_back
        changes = [row for row in rows if row["key"] not in lose]
        keys = [row["key"] for row in changes]
        values = dict(await self.target.fetch(f"select key, value::text from {self.schema}.down($1)", keys))
        async with session(self.source_dsn, "test", timeout=30, applier=self.mapping.name) as conn:
            await conn.execute(
                f"select {self.schema}.restore($1, $2::text[]::jsonb[], $3, $4)",
                keys,
                [values.get(key) for key in keys],
                [row["version"] for row in changes],
                [row["traceparent"] for row in changes],
            )

    async def reset(self) -> None:
        """Make both sides what they were at first."""
        for table in ("clients", "orders", "order_items", f"{self.schema}.applied", f"{self.schema}.reject"):
            await self.target.execute(f"delete from {table}")
        await self.source.execute("alter table kv_store disable trigger user")
        await self.source.execute("delete from kv_store")
        await self.seed()
        await self.source.execute("alter table kv_store enable trigger user")
        await self.fill()
        self._carried = await self.source.fetchval("select coalesce(max(id), 0) from replank_outbox.event")

    async def seed(self) -> None:
        """The records that there are at first."""
        records = {f"client:c{number}": client(number) for number in range(CLIENTS)}
        records |= {f"order:o{number}": order(number) for number in range(ORDERS)}
        for key, value in {**records, "session:1": {"user": 1}}.items():
            await self.put(key, value)

    async def change(self, key: str) -> Any:
        """The first change of a key since the last `reset`."""
        return await self.source.fetchrow(
            """
            select key, convert_from(value, 'UTF8') as change, traceparent from replank_outbox.event
             where key = $1 and id > $2 order by id limit 1
            """,
            key,
            self._carried,
        )

    async def compare(
        self, settings: ComparisonSettings = AT_ONCE, direction: Direction = "forward", start: Progress | None = None
    ) -> tuple[Progress, list[Mismatch]]:
        """Compare everything: the final progress, and all mismatches in the order of their keys."""
        found: list[Mismatch] = []

        async def report(_: Progress, findings: Findings) -> None:
            found.extend(findings.mismatches)

        comparison = Comparison(
            self.source_dsn,
            self.target_dsn,
            self.mapping,
            report=report,
            direction=direction,
            settings=lambda: settings,
        )
        done = await comparison.run(start)
        return done, sorted(found, key=lambda mismatch: mismatch.key)

    async def move_writes_to_tables(self) -> None:
        """The cut-over, with nobody writing."""
        await authority.hold(self.source, self.mapping.name, "source")
        await authority.close(self.source, self.mapping.name, "source")
        await authority.open(self.target, self.mapping.name, "target")


@asynccontextmanager
async def shop(
    server: str, *, same_transaction: bool = False, mapping: str = SHOP, collation: str = ""
) -> AsyncIterator[Stores]:
    """The shop, filled and equal on both sides. ``collation`` is that of the key column."""
    loaded = load(mapping)
    async with servers.database(server) as source_dsn, servers.database(server) as other_dsn:
        target_dsn = source_dsn if same_transaction else other_dsn
        async with (
            session(source_dsn, "test", timeout=30) as source,
            session(target_dsn, "test", timeout=30, applier=loaded.name) as target,
        ):
            collate = f'collate "{collation}"' if collation else ""
            await source.execute(f"create table kv_store (key text {collate} primary key, value jsonb not null)")
            stores = Stores(source_dsn, target_dsn, loaded, source, target, same_transaction)
            await stores.seed()
            await install(stores)
            await stores.fill()
            yield stores


async def install(stores: Stores) -> None:
    """Everything that a migration installs in its databases."""
    await outbox.install(stores.source)
    await outbox.install(stores.target)
    compiled = compile.compile(stores.mapping)
    for table in compiled.tables:
        await stores.target.execute(table.create)
    await stores.target.execute(compiled.functions)
    await capture.install(stores.source, stores.mapping, same_transaction=stores.same_transaction)
    await reverse.install(stores.target, stores.mapping, same_transaction=stores.same_transaction)
