"""A small migration on real servers: a key-value store, tables in another database, and the service that moves them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import httpx

from replank.errors import ReplankError
from replank.migrate import authority
from replank.migrate.client import DualWriter, Token, token_of
from replank.testing import eventually, servers
from replank_schema.migration import service
from replank_schema.migration.model import Item, State

PATIENCE: Final = 60.0

MAPPING: Final = """
mapping: 1
name: {name}
source: {{table: kv_store, key: key, value: value}}
others: refuse
ignore: ["session:{{id}}"]
entities:
  client:
    key: "client:{{id}}"
    table: clients
    columns:
      id: {{key: id, type: text}}
      name: {{path: name, type: text, null: false}}
    primary_key: [id]
    rest: rest
  order:
    key: "order:{{id}}"
    table: orders
    columns:
      id: {{key: id, type: text}}
      client_id: {{path: clientId, type: text, null: false, references: client}}
      total: {{path: total, type: "numeric(12,2)", null: false}}
    primary_key: [id]
    rest: rest
    children:
      items:
        path: items
        table: order_items
        parent: [order_id]
        position: position
        columns: {{sku: {{path: sku, type: text}}, quantity: {{path: qty, type: integer, null: false}}}}
        rest: rest
    indexes:
      {name}_orders_client: {{columns: [client_id]}}
"""

_PUT = "insert into kv_store (key, value) values ($1, $2::jsonb) on conflict (key) do update set value = excluded.value"


@dataclass(slots=True)
class Shop:
    """A key-value store (``source``) and a database for its tables (``target``), with the truth about what is in it."""

    source_dsn: str
    target_dsn: str
    source: asyncpg.Pool
    target: asyncpg.Pool
    name: str = field(default_factory=lambda: f"shop_{uuid4().hex[:12]}")
    truth: dict[str, Any] = field(default_factory=dict)
    by_writer: bool = False
    """Whether it writes to the key-value store by a `DualWriter`."""

    @property
    def mapping(self) -> str:
        return MAPPING.format(name=self.name)

    async def seed(self, orders: int) -> None:
        """So many orders of 20 clients, and a session that nobody moves."""
        for number in range(20):
            self.truth[f"client:{number}"] = {"name": f"client {number}"}
        for number in range(orders):
            self.truth[f"order:{number}"] = order(number)
        records = [(key, json.dumps(value)) for key, value in self.truth.items()]
        await self.source.executemany(_PUT, [*records, ("session:1", "{}")])

    async def put(self, number: int) -> None:
        """Write an order where writes go now, as an application with a write router does."""
        value = order(number)
        await self._write(number, value)
        self.truth[f"order:{number}"] = value

    async def delete(self, number: int) -> None:
        await self._write(number, None)
        self.truth.pop(f"order:{number}", None)

    async def _write(self, number: int, value: dict[str, Any] | None) -> None:
        async def written() -> bool:
            for write in (self.to_key_value, self.to_tables):
                try:
                    await write(number, value)
                except (asyncpg.PostgresError, ReplankError) as error:
                    if authority.refusal(error) is None:
                        raise
                else:
                    return True
            return False

        await eventually(written, "one of the stores takes the write", within=PATIENCE, interval=0.01)

    async def to_key_value(self, number: int, value: dict[str, Any] | None) -> Token:
        key = f"order:{number}"
        async with self.source.acquire() as conn, conn.transaction():
            if self.by_writer:
                writer = DualWriter(self.name, table="kv_store")
                await (writer.delete(conn, key) if value is None else writer.put(conn, key, value))
            elif value is None:
                await conn.execute("delete from kv_store where key = $1", key)
            else:
                await conn.execute(_PUT, key, json.dumps(value))
            return await token_of(conn)

    async def to_tables(self, number: int, value: dict[str, Any] | None) -> Token:
        async with self.target.acquire() as conn, conn.transaction():
            await conn.execute("delete from order_items where order_id = $1", str(number))
            await conn.execute("delete from orders where id = $1", str(number))
            if value is not None:
                await conn.execute(
                    "insert into orders (id, client_id, total, rest) values ($1, $2, $3::text::numeric, $4::jsonb)",
                    str(number),
                    value["clientId"],
                    str(value["total"]),
                    json.dumps({"note": value["note"]}),
                )
                await conn.executemany(
                    "insert into order_items (order_id, position, sku, quantity) values ($1, $2, $3, $4)",
                    [(str(number), place, item["sku"], item["qty"]) for place, item in enumerate(value["items"])],
                )
            return await token_of(conn)

    async def key_value(self) -> dict[str, Any]:
        rows = await self.source.fetch("select key, value from kv_store where key not like 'session:%'")
        return {row["key"]: json.loads(row["value"]) for row in rows}

    async def tables(self) -> dict[str, Any]:
        """The records that the tables hold, put together by hand: not by what is tested."""
        async with self.target.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            clients = await conn.fetch("select id, name from clients")
            orders = await conn.fetch("select id, client_id, total::float8, rest from orders")
            items = await conn.fetch("select order_id, sku, quantity from order_items order by order_id, position")
        found: dict[str, Any] = {f"client:{row['id']}": {"name": row["name"]} for row in clients}
        for row in orders:
            found[f"order:{row['id']}"] = {
                "clientId": row["client_id"],
                "total": row["total"],
                "items": [],
                **json.loads(row["rest"]),
            }
        for row in items:
            found[f"order:{row['order_id']}"]["items"].append({"sku": row["sku"], "qty": row["quantity"]})
        return found

    async def traces(self) -> list[str]:
        """Whatever of a migration is in the databases."""
        left = []
        for pool in (self.source, self.target):
            left += [
                row[0] for row in await pool.fetch("select nspname from pg_namespace where nspname ^@ 'replank_m_'")
            ]
            left += [row[0] for row in await pool.fetch("select tgname from pg_trigger where tgname ^@ 'replank_m_'")]
            left += [
                row[0] for row in await pool.fetch("select nspname from pg_namespace where nspname = 'replank_outbox'")
            ]
        left += [
            row[0] for row in await self.target.fetch("select tablename from pg_tables where schemaname = 'public'")
        ]
        return left


def order(number: int) -> dict[str, Any]:
    """An order like any other, another one each time."""
    return {
        "clientId": str(number % 20),
        "total": random.randrange(10_000) / 100,
        "items": [{"sku": f"sku-{place}", "qty": random.randrange(1, 9)} for place in range(1, number % 3 + 2)],
        "note": f"n{random.randrange(1_000_000)}",
    }


@asynccontextmanager
async def a_shop(postgres_server: str, *, databases: int = 2) -> AsyncIterator[Shop]:
    async with servers.database(postgres_server) as source_dsn, AsyncExitStack() as stack:
        target_dsn = source_dsn
        if databases == 2:
            target_dsn = await stack.enter_async_context(servers.database(postgres_server))
        source = await asyncpg.create_pool(source_dsn, min_size=1, max_size=5)
        target = await asyncpg.create_pool(target_dsn, min_size=1, max_size=5)
        await source.execute("create table kv_store (key text primary key, value jsonb not null)")
        try:
            yield Shop(source_dsn, target_dsn, source, target)
        finally:
            await source.close()
            await target.close()


@dataclass(slots=True)
class Planner:
    """Asks the service about one migration, over HTTP."""

    client: httpx.AsyncClient
    database: asyncpg.Pool
    id: str = ""

    async def plan(self, shop: Shop, **given: Any) -> dict[str, Any]:
        body = {
            "owner": "user:ben",
            "source": "source",
            "target": "target",
            "mapping": shop.mapping,
            "options": {"endpoints": ["orders.list"], "partitions": 2},
            **given,
        }
        answer = await self.client.post("/v1/migrations", json=body, headers={"idempotency-key": str(uuid4())})
        assert answer.status_code == 201, answer.text
        self.id = answer.json()["id"]
        async with self.database.acquire() as conn, conn.transaction():
            for item in Item:
                await service.settle(conn, UUID(self.id), item, State.MET, detail="seen", event_id=uuid4())
        return await self.view()

    async def view(self) -> dict[str, Any]:
        answer = await self.client.get(f"/v1/migrations/{self.id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def ask(self, command: str, **body: Any) -> httpx.Response:
        return await self.client.post(f"/v1/migrations/{self.id}/{command}", json={"reason": "a test", **body})

    async def do(self, command: str, **body: Any) -> dict[str, Any]:
        answer = await self.ask(command, **body)
        assert answer.status_code in (200, 202), answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def settings(self, **changed: Any) -> dict[str, Any]:
        body = {"settings": changed, "reason": "a test"}
        answer = await self.client.put(f"/v1/migrations/{self.id}/settings", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def reaches(self, phase: str, within: float = PATIENCE) -> dict[str, Any]:
        async def there() -> dict[str, Any]:
            found = await self.view()
            assert (found["phase"], found["moving_to"]) == (phase, None), found | {"mapping": ...}
            return found

        return await eventually(there, f"it is {phase}", within=within)

    async def is_idle(self) -> bool:
        """Whether there is nothing more to do, and nobody who leads it."""
        held = await self.database.fetchval(
            "select held_until > clock_timestamp() from lease where migration_id = $1", UUID(self.id)
        )
        return held is False

    async def may_advance(self, within: float = PATIENCE) -> dict[str, Any]:
        async def allowed() -> dict[str, Any]:
            found = await self.view()
            assert found["next"]["allowed"], {name: found[name] for name in ("phase", "next", "work", "problem")}
            return found

        return await eventually(allowed, "it may advance", within=within)

    async def advance(self) -> dict[str, Any]:
        """Wait until it may, then advance by one phase, and wait until it is there."""
        before = await self.may_advance()
        await self.do("advance", expected=before["phase"])
        return await self.reaches(before["next"]["to"])

    async def advance_to(self, phase: str) -> dict[str, Any]:
        while (found := await self.view())["phase"] != phase:
            found = await self.advance()
        return found


@asynccontextmanager
async def traffic(shop: Shop, numbers: range) -> AsyncIterator[None]:
    """Writes orders, and deletes some, until the block ends; every write is made or the test fails."""
    done = asyncio.Event()

    async def write(mine: list[int]) -> None:
        while not done.is_set():
            number = random.choice(mine)
            await (shop.delete(number) if random.random() < 0.2 else shop.put(number))

    # Each order has one writer, so that the truth about it is known.
    writers = [asyncio.create_task(write(list(numbers[part::3]))) for part in range(3)]
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*writers)
