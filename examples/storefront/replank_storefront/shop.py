"""The use cases, each of them on whichever store the migration says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import date
from typing import TypeVar

from replank.connection import Connection
from replank.migrate.client import ReadRouter, Token, WriteRouter, carry_trace, token_of
from replank.postgres import Pool
from replank_storefront.kv_store import KvStore
from replank_storefront.model import (
    Body,
    Catalog,
    Client,
    DailyCounts,
    Exclusion,
    Occurrence,
    Order,
    Product,
    Report,
    Site,
    Status,
    as_json,
)
from replank_storefront.store import Store
from replank_storefront.table_store import TableStore

T = TypeVar("T")

Use = Callable[[Store, Connection], Awaitable[T]]
Flags = Callable[[], Awaitable[object]]
"""Returns once the flags are known."""


class Shop:
    """Two stores, and the routers that choose between them.

    Reads take the caller's token and answer with what it wrote; writes return the caller's next token.
    """

    def __init__(self, *, kv: Pool, tables: Pool, reads: ReadRouter, writes: WriteRouter, flags: Flags) -> None:
        self._kv = kv
        self._tables = tables
        self._reads = reads
        self._writes = writes
        # Without them, every read would go to the key-value store, which may be long out of use.
        self._flags = flags

    # --- reads: the first argument names the flag that moves them ---

    async def sites(self, client_id: str, token: Token | None) -> list[Site] | None:
        return await self._read("site.list", lambda store, conn: store.sites(conn, client_id), client_id, token)

    async def products(self, catalog_id: str, token: Token | None) -> Body | None:
        return await self._read("product.list", lambda store, conn: store.products(conn, catalog_id), catalog_id, token)

    async def offer(self, site_id: str, token: Token | None) -> Body | None:
        return await self._read("site.offer", lambda store, conn: store.offer(conn, site_id), site_id, token)

    async def product(self, product_id: str, token: Token | None) -> Product | None:
        return await self._read("product.get", lambda store, conn: store.product(conn, product_id), product_id, token)

    async def search(self, text: str, token: Token | None) -> Body:
        return await self._read("product.search", lambda store, conn: store.search(conn, text), text, token)

    async def order(self, client_id: str, order_id: str, token: Token | None) -> Order | None:
        return await self._read(
            "order.get", lambda store, conn: store.order(conn, client_id, order_id), client_id, token
        )

    async def report(self, client_id: str, month: str, token: Token | None) -> Report:
        return await self._read(
            "client.report", lambda store, conn: store.report(conn, client_id, month), client_id, token
        )

    async def daily_counts(self, site_id: str, day: date, token: Token | None) -> DailyCounts:
        return await self._read(
            "event.counts", lambda store, conn: store.daily_counts(conn, site_id, day), site_id, token
        )

    # --- writes ---

    async def put_client(self, client: Client, token: Token | None) -> Token:
        return await self._do(lambda store, conn: store.put_client(conn, client), token)

    async def put_catalog(self, catalog: Catalog, token: Token | None) -> Token:
        return await self._do(lambda store, conn: store.put_catalog(conn, catalog), token)

    async def put_site(self, site: Site, token: Token | None) -> Token:
        return await self._do(lambda store, conn: store.put_site(conn, site), token)

    async def put_product(self, product: Product, token: Token | None) -> Token:
        return await self._do(lambda store, conn: store.put_product(conn, product), token)

    async def delete_product(self, product_id: str, token: Token | None) -> Token:
        return await self._do(lambda store, conn: store.delete_product(conn, product_id), token)

    async def exclude(self, exclusion: Exclusion, token: Token | None) -> Token:
        return await self._do(lambda store, conn: store.exclude(conn, exclusion), token)

    async def include(self, site_id: str, product_id: str, token: Token | None) -> Token:
        return await self._do(lambda store, conn: store.include(conn, site_id, product_id), token)

    async def record(self, occurrence: Occurrence, token: Token | None) -> Token:
        return await self._do(lambda store, conn: store.record(conn, occurrence), token)

    async def place_order(self, order: Order, token: Token | None) -> tuple[Order, Token]:
        return await self._write(lambda store, conn: store.place_order(conn, order), token)

    async def set_status(
        self, client_id: str, order_id: str, status: Status, token: Token | None
    ) -> tuple[Order, Token]:
        return await self._write(lambda store, conn: store.set_status(conn, client_id, order_id, status), token)

    # --- what everything goes through ---

    async def _read(self, endpoint: str, use: Use[T], key: str, token: Token | None) -> T:
        async def kv() -> T:
            async with self._kv.acquire() as conn:
                return await use(KvStore(), conn)

        async def tables() -> T:
            async with self._tables.acquire() as conn:
                return await use(TableStore(), conn)

        await self._flags()
        return await self._reads.read(endpoint, kv=kv, tables=tables, key=key, token=token, form=as_json)

    async def _do(self, use: Use[None], token: Token | None) -> Token:
        _, following = await self._write(use, token)
        return following

    async def _write(self, use: Use[T], token: Token | None) -> tuple[T, Token]:
        async def kv() -> tuple[T, Token]:
            return await _in_transaction(self._kv, KvStore(), use)

        async def tables() -> tuple[T, Token]:
            return await _in_transaction(self._tables, TableStore(), use)

        answer, written = await self._writes.write(kv=kv, tables=tables)
        return answer, token.then(written) if token is not None else written


async def _in_transaction(pool: Pool, store: Store, use: Use[T]) -> tuple[T, Token]:
    async with pool.acquire() as conn, conn.transaction():
        await carry_trace(conn)
        await store.begin(conn)
        return await use(store, conn), await token_of(conn)
