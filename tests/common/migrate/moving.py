"""A small migration on real servers: a key-value table in one database, orders with their items in another."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
from aiokafka import AIOKafkaProducer

from replank import outbox
from replank.contracts.schema import RecordChanged
from replank.migrate import capture, ddl, mapping, reverse, topics
from replank.migrate.compile import Compiled
from replank.migrate.compile import compile as compiled
from replank.migrate.flip import Stores
from replank.migrate.mapping import Mapping
from replank.testing import servers

MAPPING = """
mapping: 1
name: {name}
source: {{table: kv_store}}
ignore: ["session:{{id}}"]
entities:
  client:
    key: "client:{{id}}"
    table: clients
    columns:
      id: {{key: id, type: text}}
      name: {{path: name, type: text}}
    primary_key: [id]
    rest: rest
  order:
    key: "order:{{id}}"
    table: orders
    columns:
      id: {{key: id, type: text}}
      client_id: {{path: clientId, type: text, "null": false, references: client}}
      total: {{path: total, type: "numeric(12,2)"}}
      note: {{path: note, type: text}}
    primary_key: [id]
    rest: rest
    children:
      items:
        path: items
        table: order_items
        parent: [order_id]
        position: position
        columns:
          sku: {{path: sku, type: text}}
          quantity: {{path: qty, type: integer}}
        rest: rest
    indexes:
      idx_orders_client: {{columns: [client_id], method: btree}}
"""


@dataclass(frozen=True)
class Move:
    """A migration whose tables are made, and whose capture is installed unless told otherwise."""

    mapping: Mapping
    compiled: Compiled
    source: str
    target: str
    kafka: str

    @property
    def name(self) -> str:
        return self.mapping.name

    @property
    def schema(self) -> str:
        return self.mapping.schema_name

    @property
    def stores(self) -> Stores:
        return Stores(self.name, self.source, self.target, self.kafka)


def order(number: int, **changes: Any) -> dict[str, Any]:
    """The value of an order, with two items."""
    value = {
        "clientId": f"c{number % 7}",
        "total": number / 4,
        "note": f"order number {number}",
        "items": [{"sku": f"s{number}", "qty": 1}, {"sku": "gift", "qty": number % 5, "wrap": True}],
        "channel": "web",
    }
    return {**value, **changes}


@asynccontextmanager
async def migration(postgres_server: str, kafka: str, *, installed: bool = True) -> AsyncIterator[Move]:
    """Two fresh databases and two fresh topics. ``installed``: with the tables, the functions and both captures."""
    described = mapping.load(MAPPING.format(name=f"t{uuid4().hex[:12]}"))
    async with servers.database(postgres_server) as source, servers.database(postgres_server) as target:
        move = Move(described, compiled(described), source, target, kafka)
        async with connected(source) as conn:
            await conn.execute("create table kv_store (key text primary key, value jsonb not null)")
            await outbox.install(conn)
        async with connected(target) as conn:
            await outbox.install(conn)
        if not installed:
            yield move
            return
        await ddl.create_tables(target, move.compiled)
        async with connected(source) as conn:
            await capture.install(conn, described)
        async with connected(target) as conn:
            await reverse.install(conn, described)
        await topics.ensure_topics(kafka, described.name, 3)
        try:
            yield move
        finally:
            await topics.remove_topics(kafka, described.name)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    conn = await asyncpg.connect(dsn)
    try:
        yield conn
    finally:
        await conn.close()


async def put(conn: asyncpg.Connection[Any], records: Iterable[tuple[str, Any]]) -> None:
    """Write records as the application does."""
    await conn.executemany(
        "insert into kv_store values ($1, $2::text::jsonb) on conflict (key) do update set value = excluded.value",
        [(key, json.dumps(value)) for key, value in records],
    )


async def put_before_capture(move: Move, records: Iterable[tuple[str, Any]]) -> None:
    """Write records that no trigger sees, as those that were there before the migration."""
    async with connected(move.source) as conn, conn.transaction():
        await conn.execute("alter table kv_store disable trigger user")
        await put(conn, records)
        await conn.execute("alter table kv_store enable trigger user")


async def differences(move: Move) -> list[str]:
    """Keys whose record is not what the tables make of it, either way; both sides are at rest."""
    async with connected(move.source) as source, connected(move.target) as target:
        records = {row["key"]: row["value"] for row in await source.fetch("select key, value from kv_store")}
        roots = [
            row["key"]
            for row in await target.fetch(
                "select 'order:' || id as key from orders union select 'client:' || id from clients"
            )
        ]
        keys = sorted({*records, *roots})
        down = {
            row["key"]: row["value"]
            for row in await target.fetch(f"select key, value from {move.schema}.down($1::text[])", keys)
        }
    return [
        key
        for key in keys
        if not key.startswith("session:")
        and ((key in records) != (key in down) or json.loads(records[key]) != json.loads(down[key]))
    ]


@asynccontextmanager
async def producer(kafka: str) -> AsyncIterator[AIOKafkaProducer]:
    started = AIOKafkaProducer(bootstrap_servers=kafka)
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


async def publish(
    sending: AIOKafkaProducer,
    topic: str,
    key: str,
    version: int,
    value: Any = None,
    *,
    op: str = "upsert",
    fetch: bool = False,
    traceparent: str | None = None,
) -> None:
    """Send one change as the relay does."""
    change = {"key": key, "op": op, "version": version, "fetch": fetch}
    if value is not None:
        change["value"] = value
    headers = [("ce_id", str(uuid4()).encode()), ("ce_type", RecordChanged.event_type.encode())]
    if traceparent:
        headers.append(("traceparent", traceparent.encode()))
    await sending.send_and_wait(topic, json.dumps(change).encode(), key=key.encode(), headers=headers)
