"""The shop on its key-value table, the way such shops grow: get, put, delete, and scans by prefix.

To find things by anything but their key it keeps lists of ids in other records (``siteIds`` of a client, ``productIds``
of a catalog), and reads what they name one after the other. A scan by prefix finds the keys of a client's orders, which
are then read one by one too. A record that is not what the shop writes is left out of lists, and told of in the log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from datetime import date
from typing import Any, Final, TypeVar

from replank.connection import Connection
from replank_storefront import records
from replank_storefront.model import (
    SEARCH_LIMIT,
    Body,
    Catalog,
    Client,
    DailyCounts,
    Exclusion,
    Occurrence,
    Order,
    Product,
    Refused,
    Report,
    Site,
    Status,
    Unreadable,
    body_of,
    missing,
    month_bounds,
    report_of,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Writes nothing. It locks the table as every write does, and fires the triggers by which a migration refuses writes.
_BEGIN: Final = "delete from kv_store where false"
_GET: Final = "select value from kv_store where key = $1"
_LOCK: Final = "select value from kv_store where key = $1 for update"
# Holds off whoever would delete it, and nobody else.
_HOLD: Final = "select value from kv_store where key = $1 for key share"
_PUT: Final = """
insert into kv_store (key, value) values ($1, $2)
on conflict (key) do update set value = excluded.value
"""
_ADD: Final = "insert into kv_store (key, value) values ($1, $2) on conflict (key) do nothing returning true"
_DELETE: Final = "delete from kv_store where key = $1 returning true"
_KEYS: Final = "select key from kv_store where key >= $1 and key < $2 order by key"
_VALUES: Final = "select key, value from kv_store where key >= $1 and key < $2 order by key"
_EXCLUSIONS_OF: Final = """
select key from kv_store where key >= 'exclusion:' and key < 'exclusion;' and split_part(key, ':', 3) = $1 order by key
"""
_SEARCH: Final = """
select key, value from kv_store
where key >= 'product:' and key < 'product;' and value ->> 'name' ilike $1
order by value ->> 'name' collate "C", key
"""


class KvStore:
    """`replank_storefront.store.Store` on ``kv_store``."""

    # --- reads ---

    async def sites(self, conn: Connection, client_id: str) -> list[Site] | None:
        client = await self._record(conn, _GET, f"client:{client_id}")
        if client is None:
            return None
        return await self._each(conn, records.read_site, [f"site:{site}" for site in client.get("siteIds", [])])

    async def products(self, conn: Connection, catalog_id: str) -> Body | None:
        products = await self._products(conn, catalog_id)
        return None if products is None else body_of(products)

    async def offer(self, conn: Connection, site_id: str) -> Body | None:
        site = await self._record(conn, _GET, f"site:{site_id}")
        if site is None:
            return None
        excluded = {key.split(":")[2] for key in await self._keys(conn, f"exclusion:{site_id}:")}
        products = await self._products(conn, site["catalogId"])
        return body_of([product for product in products or [] if product.id not in excluded])

    async def product(self, conn: Connection, product_id: str) -> Product | None:
        key = f"product:{product_id}"
        value = await conn.fetchval(_GET, key)
        return None if value is None else records.read_product(key, value)

    async def search(self, conn: Connection, text: str) -> Body:
        rows = await conn.fetch(_SEARCH, containing(text))
        return body_of(_readable(records.read_product, ((row["key"], row["value"]) for row in rows))[:SEARCH_LIMIT])

    async def order(self, conn: Connection, client_id: str, order_id: str) -> Order | None:
        key = f"order:{client_id}:{order_id}"
        value = await conn.fetchval(_GET, key)
        return None if value is None else records.read_order(key, value)

    async def report(self, conn: Connection, client_id: str, month: str) -> Report:
        begin, end = month_bounds(month)
        orders = await self._each(conn, records.read_order, await self._keys(conn, f"order:{client_id}:"))
        return report_of(
            client_id, month, [(order.status, order.total, 1) for order in orders if begin <= order.created_at < end]
        )

    async def daily_counts(self, conn: Connection, site_id: str, day: date) -> DailyCounts:
        counts: dict[str, int] = {}
        for row in await conn.fetch(_VALUES, *_range(f"event:{site_id}:{day}:")):
            kind = json.loads(row["value"]).get("type")
            if isinstance(kind, str):
                counts[kind] = counts.get(kind, 0) + 1
        return DailyCounts(site_id=site_id, day=day, counts=dict(sorted(counts.items())))

    # --- writes ---

    async def begin(self, conn: Connection) -> None:
        await conn.execute(_BEGIN)

    async def put_client(self, conn: Connection, client: Client) -> None:
        await self._merge(conn, f"client:{client.id}", records.client_record(client), new={"siteIds": []})

    async def put_catalog(self, conn: Connection, catalog: Catalog) -> None:
        await self._merge(conn, f"catalog:{catalog.id}", records.catalog_record(catalog), new={"productIds": []})

    async def put_site(self, conn: Connection, site: Site) -> None:
        # Always first, so that two changes of one list wait for each other, and never in a circle.
        client_key, key = f"client:{site.client_id}", f"site:{site.id}"
        client = await self._record(conn, _LOCK, client_key)
        if client is None:
            raise missing("client", site.client_id)
        if await conn.fetchval(_HOLD, f"catalog:{site.catalog_id}") is None:
            raise missing("catalog", site.catalog_id)
        before = await self._record(conn, _LOCK, key)
        if before is not None and before.get("clientId") != site.client_id:
            raise Refused(f"the site {site.id} belongs to another client", fix="choose another id")
        await self._put(conn, key, records.merged(before or {}, records.site_record(site)))
        await self._list(conn, client_key, client, "siteIds", site.id)

    async def put_product(self, conn: Connection, product: Product) -> None:
        catalog_key, key = f"catalog:{product.catalog_id}", f"product:{product.id}"
        catalog = await self._record(conn, _LOCK, catalog_key)
        if catalog is None:
            raise missing("catalog", product.catalog_id)
        before = await self._record(conn, _LOCK, key)
        if before is not None and before.get("catalogId") != product.catalog_id:
            raise Refused(f"the product {product.id} is in another catalog", fix="choose another id")
        await self._put(conn, key, records.merged(before or {}, records.product_record(product)))
        await self._list(conn, catalog_key, catalog, "productIds", product.id)

    async def delete_product(self, conn: Connection, product_id: str) -> None:
        key = f"product:{product_id}"
        product = await self._record(conn, _GET, key)
        if product is None:
            return
        catalog_key = f"catalog:{product.get('catalogId')}"
        catalog = await self._record(conn, _LOCK, catalog_key)
        for row in await conn.fetch(_EXCLUSIONS_OF, product_id):
            await self._delete(conn, row["key"])
        if await self._delete(conn, key) and catalog is not None and product_id in catalog.get("productIds", []):
            left = [product for product in catalog["productIds"] if product != product_id]
            await self._put(conn, catalog_key, {**catalog, "productIds": left})

    async def place_order(self, conn: Connection, order: Order) -> Order:
        found = await self.order(conn, order.client_id, order.id)
        if found is not None:
            return found
        await self._require_site(conn, order.site_id, order.client_id)
        record = records.merged({}, records.order_record(order))
        if await self._add(conn, f"order:{order.client_id}:{order.id}", record):
            return order
        found = await self.order(conn, order.client_id, order.id)
        if found is None:
            raise missing("order", order.id)
        return found

    async def set_status(self, conn: Connection, client_id: str, order_id: str, status: Status) -> Order:
        key = f"order:{client_id}:{order_id}"
        record = await self._record(conn, _LOCK, key)
        if record is None:
            raise missing("order", order_id)
        record["status"] = status
        order = records.read_order(key, records.dump(record))
        await self._put(conn, key, record)
        return order

    async def exclude(self, conn: Connection, exclusion: Exclusion) -> None:
        await self._require_site(conn, exclusion.site_id)
        if await conn.fetchval(_HOLD, f"product:{exclusion.product_id}") is None:
            raise missing("product", exclusion.product_id)
        key = f"exclusion:{exclusion.site_id}:{exclusion.product_id}"
        await self._add(conn, key, records.merged({}, records.exclusion_record(exclusion)))

    async def include(self, conn: Connection, site_id: str, product_id: str) -> None:
        await self._delete(conn, f"exclusion:{site_id}:{product_id}")

    async def record(self, conn: Connection, occurrence: Occurrence) -> None:
        await self._require_site(conn, occurrence.site_id)
        key = f"event:{occurrence.site_id}:{occurrence.day}:{occurrence.id}"
        await self._add(conn, key, records.merged({}, records.event_record(occurrence)))

    # --- what everything is made of ---

    async def _products(self, conn: Connection, catalog_id: str) -> list[Product] | None:
        catalog = await self._record(conn, _GET, f"catalog:{catalog_id}")
        if catalog is None:
            return None
        keys = [f"product:{product}" for product in catalog.get("productIds", [])]
        return await self._each(conn, records.read_product, keys)

    async def _record(self, conn: Connection, sql: str, key: str) -> records.Json | None:
        value = await conn.fetchval(sql, key)
        return None if value is None else json.loads(value)

    async def _keys(self, conn: Connection, prefix: str) -> list[str]:
        return [row["key"] for row in await conn.fetch(_KEYS, *_range(prefix))]

    async def _each(self, conn: Connection, read: Callable[[str, str], T], keys: list[str]) -> list[T]:
        """One query a key: this is what the migration is for."""
        found = [(key, await conn.fetchval(_GET, key)) for key in sorted(keys)]
        return _readable(read, ((key, value) for key, value in found if value is not None))

    async def _put(self, conn: Connection, key: str, record: records.Json) -> None:
        await conn.execute(_PUT, key, records.dump(record))

    async def _add(self, conn: Connection, key: str, record: records.Json) -> bool:
        return bool(await conn.fetchval(_ADD, key, records.dump(record)))

    async def _delete(self, conn: Connection, key: str) -> bool:
        return bool(await conn.fetchval(_DELETE, key))

    async def _merge(self, conn: Connection, key: str, record: records.Json, *, new: records.Json) -> None:
        # Whoever creates it first wins; the other one changes it.
        if await self._add(conn, key, {**new, **record}):
            return
        before = await self._record(conn, _LOCK, key)
        await self._put(conn, key, records.merged(before if before is not None else new, record))

    async def _list(self, conn: Connection, key: str, record: records.Json, field: str, name: str) -> None:
        listed = record.get(field, [])
        if name not in listed:
            await self._put(conn, key, {**record, field: [*listed, name]})

    async def _require_site(self, conn: Connection, site_id: str, client_id: str | None = None) -> None:
        site = await self._record(conn, _HOLD, f"site:{site_id}")
        if site is None:
            raise missing("site", site_id)
        if client_id is not None and site.get("clientId") != client_id:
            raise Refused(f"the site {site_id} belongs to another client", fix="order through a site of the client's")


def containing(text: str) -> str:
    """The pattern of ``ilike`` for whatever contains the text as it is."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _range(prefix: str) -> tuple[str, str]:
    # Keys are compared byte by byte; what follows "event:x:" is below "event:x;".
    return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _readable(read: Callable[[str, str], T], found: Iterable[tuple[str, Any]]) -> list[T]:
    things: list[T] = []
    for key, value in found:
        try:
            things.append(read(key, value))
        except Unreadable as error:
            _log.warning("left out of a list: %s", error.message)
    return things
