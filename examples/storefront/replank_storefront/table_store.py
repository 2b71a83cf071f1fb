"""The shop on its tables: one statement a question.

What the hand-made lists of the key-value store say (``site_ids``, ``product_ids``) is said by foreign keys here. They
are still written, because until the migration is completed the key-value store must be able to take over again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Final

from replank.connection import Connection
from replank_storefront.kv_store import containing
from replank_storefront.model import (
    SEARCH_LIMIT,
    Body,
    Catalog,
    Client,
    DailyCounts,
    Exclusion,
    Item,
    Occurrence,
    Order,
    Product,
    Refused,
    Report,
    Site,
    Status,
    missing,
    month_bounds,
    report_of,
)

_SITES: Final = """
select s.id, c.id as client_id, s.catalog_id, s.name, s.celebration, s.color
from clients c left join sites s on s.client_id = c.id
where c.id = $1
order by s.id collate "C"
"""
# Products as the shop answers them (`replank_storefront.model.Body`), to the byte: so amounts are text, and tags are an
# array of texts, since jsonb is written with blanks.
_BODIES: Final = """
select row_to_json(body)::text from (
    select p.id, p.catalog_id, p.sku, p.name, p.description, p.price::text, p.currency, p.stock, p.active,
        case jsonb_typeof(p.tags) when 'array' then array(select jsonb_array_elements_text(p.tags)) else '{{}}' end
            as tags
    from products p
    {}
) as body
"""
_PRODUCTS: Final = "select array({}) from catalogs c where c.id = $1".format(  # noqa: S608 - of two constants
    _BODIES.format("""where p.catalog_id = c.id order by p.id collate "C" """)
)
_OFFER: Final = "select array({}) from sites s where s.id = $1".format(  # noqa: S608 - of two constants
    _BODIES.format("""
    where p.catalog_id = s.catalog_id
        and not exists (select from site_product_exclusions e where e.site_id = s.id and e.product_id = p.id)
    order by p.id collate "C"
    """)
)
_PRODUCT: Final = """
select id, catalog_id, sku, name, description, price, currency, stock, active, tags from products where id = $1
"""
_SEARCH: Final = _BODIES.format("""where p.name ilike $1 order by p.name collate "C", p.id collate "C" limit $2""")
_ORDER: Final = """
select o.id, o.client_id, o.site_id, o.status, o.total, o.currency, o.created_at, o.recipient_name, o.recipient_email,
    o.city, (
        select jsonb_agg(jsonb_build_array(i.product_id, i.name, i.quantity, i.price) order by i.position)
        from order_items i
        where i.client_id = o.client_id and i.order_id = o.id
    ) as items
from orders o
where o.client_id = $1 and o.id = $2
"""
_REPORT: Final = """
select status, sum(total) as total, count(*) as count
from orders
where client_id = $1 and created_at >= $2 and created_at < $3
group by status
"""
_COUNTS: Final = """
select type, count(*) as count from analytics_events
where site_id = $1 and day = $2
group by type order by type collate "C"
"""

# As in `replank_storefront.kv_store`. Whoever holds writes holds those of all tables.
_BEGIN: Final = "delete from clients where false"
_PUT_CLIENT: Final = """
insert into clients (id, name, site_ids) values ($1, $2, '[]')
on conflict (id) do update set name = excluded.name
"""
_PUT_CATALOG: Final = """
insert into catalogs (id, name, product_ids) values ($1, $2, '[]')
on conflict (id) do update set name = excluded.name
"""
_LOCK_CLIENT: Final = "select true from clients where id = $1 for no key update"
_LOCK_CATALOG: Final = "select true from catalogs where id = $1 for no key update"
_HOLD_CATALOG: Final = "select true from catalogs where id = $1 for key share"
_HOLD_PRODUCT: Final = "select true from products where id = $1 for key share"
_HOLD_SITE: Final = "select client_id from sites where id = $1 for key share"
_CATALOG_OF: Final = "select catalog_id from products where id = $1"
_PUT_SITE: Final = """
insert into sites (id, client_id, catalog_id, name, celebration, color) values ($1, $2, $3, $4, $5, $6)
on conflict (id) do update
set catalog_id = excluded.catalog_id, name = excluded.name, celebration = excluded.celebration, color = excluded.color
where sites.client_id = excluded.client_id
returning true
"""
_LIST_SITE: Final = """
update clients set site_ids = coalesce(site_ids, '[]') || to_jsonb($2::text)
where id = $1 and not coalesce(site_ids ? $2, false)
"""
_PUT_PRODUCT: Final = """
insert into products (id, catalog_id, sku, name, description, price, currency, stock, active, tags)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (id) do update
set sku = excluded.sku, name = excluded.name, description = excluded.description, price = excluded.price,
    currency = excluded.currency, stock = excluded.stock, active = excluded.active, tags = excluded.tags
where products.catalog_id = excluded.catalog_id
returning true
"""
_LIST_PRODUCT: Final = """
update catalogs set product_ids = coalesce(product_ids, '[]') || to_jsonb($2::text)
where id = $1 and not coalesce(product_ids ? $2, false)
"""
_UNLIST_PRODUCT: Final = "update catalogs set product_ids = product_ids - $2 where id = $1 and product_ids ? $2"
_DELETE_EXCLUSIONS: Final = "delete from site_product_exclusions where product_id = $1"
_DELETE_PRODUCT: Final = "delete from products where id = $1"
_ADD_ORDER: Final = """
insert into orders (id, client_id, site_id, status, total, currency, created_at, recipient_name, recipient_email, city)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (client_id, id) do nothing
returning true
"""
_ADD_ITEMS: Final = """
insert into order_items (client_id, order_id, position, product_id, name, quantity, price)
select $1, $2, line.ordinality - 1, line.product_id, line.name, line.quantity, line.price
from unnest($3::text[], $4::text[], $5::integer[], $6::numeric[])
    with ordinality as line (product_id, name, quantity, price, ordinality)
"""
_SET_STATUS: Final = "update orders set status = $3 where client_id = $1 and id = $2 returning true"
_EXCLUDE: Final = """
insert into site_product_exclusions (site_id, product_id, reason, created_at) values ($1, $2, $3, $4)
on conflict (site_id, product_id) do nothing
"""
_INCLUDE: Final = "delete from site_product_exclusions where site_id = $1 and product_id = $2"
_RECORD: Final = """
insert into analytics_events (site_id, day, id, type, occurred_at, actor_id) values ($1, $2, $3, $4, $5, $6)
on conflict (site_id, day, id) do nothing
"""


class TableStore:
    """`replank_storefront.store.Store` on tables."""

    # --- reads ---

    async def sites(self, conn: Connection, client_id: str) -> list[Site] | None:
        rows = await conn.fetch(_SITES, client_id)
        if not rows:
            return None
        return [Site(**row) for row in rows if row["id"] is not None]

    async def products(self, conn: Connection, catalog_id: str) -> Body | None:
        found = await conn.fetchval(_PRODUCTS, catalog_id)
        return None if found is None else _array(found)

    async def offer(self, conn: Connection, site_id: str) -> Body | None:
        found = await conn.fetchval(_OFFER, site_id)
        return None if found is None else _array(found)

    async def product(self, conn: Connection, product_id: str) -> Product | None:
        row = await conn.fetchrow(_PRODUCT, product_id)
        return None if row is None else Product(**{**row, "tags": json.loads(row["tags"] or "[]")})

    async def search(self, conn: Connection, text: str) -> Body:
        return _array([body for (body,) in await conn.fetch(_SEARCH, containing(text), SEARCH_LIMIT)])

    async def order(self, conn: Connection, client_id: str, order_id: str) -> Order | None:
        row = await conn.fetchrow(_ORDER, client_id, order_id)
        if row is None:
            return None
        lines = json.loads(row["items"] or "[]", parse_float=Decimal)
        return Order(
            **{name: value for name, value in row.items() if name != "items"},
            items=tuple(
                Item(product_id=product, name=name, quantity=quantity, price=Decimal(price))
                for product, name, quantity, price in lines
            ),
        )

    async def report(self, conn: Connection, client_id: str, month: str) -> Report:
        rows = await conn.fetch(_REPORT, client_id, *month_bounds(month))
        return report_of(client_id, month, [(row["status"], row["total"], row["count"]) for row in rows])

    async def daily_counts(self, conn: Connection, site_id: str, day: date) -> DailyCounts:
        rows = await conn.fetch(_COUNTS, site_id, str(day))
        return DailyCounts(site_id=site_id, day=day, counts={row["type"]: row["count"] for row in rows})

    # --- writes ---

    async def begin(self, conn: Connection) -> None:
        await conn.execute(_BEGIN)

    async def put_client(self, conn: Connection, client: Client) -> None:
        await conn.execute(_PUT_CLIENT, client.id, client.name)

    async def put_catalog(self, conn: Connection, catalog: Catalog) -> None:
        await conn.execute(_PUT_CATALOG, catalog.id, catalog.name)

    async def put_site(self, conn: Connection, site: Site) -> None:
        # Always first, so that two changes of one list wait for each other, and never in a circle.
        if not await conn.fetchval(_LOCK_CLIENT, site.client_id):
            raise missing("client", site.client_id)
        if not await conn.fetchval(_HOLD_CATALOG, site.catalog_id):
            raise missing("catalog", site.catalog_id)
        if not await conn.fetchval(
            _PUT_SITE, site.id, site.client_id, site.catalog_id, site.name, site.celebration, site.color
        ):
            raise Refused(f"the site {site.id} belongs to another client", fix="choose another id")
        await conn.execute(_LIST_SITE, site.client_id, site.id)

    async def put_product(self, conn: Connection, product: Product) -> None:
        if not await conn.fetchval(_LOCK_CATALOG, product.catalog_id):
            raise missing("catalog", product.catalog_id)
        if not await conn.fetchval(
            _PUT_PRODUCT,
            product.id,
            product.catalog_id,
            product.sku,
            product.name,
            product.description,
            product.price,
            product.currency,
            product.stock,
            product.active,
            json.dumps(product.tags),
        ):
            raise Refused(f"the product {product.id} is in another catalog", fix="choose another id")
        await conn.execute(_LIST_PRODUCT, product.catalog_id, product.id)

    async def delete_product(self, conn: Connection, product_id: str) -> None:
        catalog_id = await conn.fetchval(_CATALOG_OF, product_id)
        if catalog_id is None:
            return
        await conn.fetchval(_LOCK_CATALOG, catalog_id)
        await conn.execute(_DELETE_EXCLUSIONS, product_id)
        await conn.execute(_DELETE_PRODUCT, product_id)
        await conn.execute(_UNLIST_PRODUCT, catalog_id, product_id)

    async def place_order(self, conn: Connection, order: Order) -> Order:
        found = await self.order(conn, order.client_id, order.id)
        if found is not None:
            return found
        await self._require_site(conn, order.site_id, order.client_id)
        added = await conn.fetchval(
            _ADD_ORDER,
            order.id,
            order.client_id,
            order.site_id,
            order.status,
            order.total,
            order.currency,
            order.created_at,
            order.recipient_name,
            order.recipient_email,
            order.city,
        )
        if added:
            await conn.execute(_ADD_ITEMS, order.client_id, order.id, *_columns(order.items))
            return order
        found = await self.order(conn, order.client_id, order.id)
        if found is None:
            raise missing("order", order.id)
        return found

    async def set_status(self, conn: Connection, client_id: str, order_id: str, status: Status) -> Order:
        changed = await conn.fetchval(_SET_STATUS, client_id, order_id, status)
        order = await self.order(conn, client_id, order_id)
        if not changed or order is None:
            raise missing("order", order_id)
        return order

    async def exclude(self, conn: Connection, exclusion: Exclusion) -> None:
        site_id, product_id = exclusion.site_id, exclusion.product_id
        await self._require_site(conn, site_id)
        if not await conn.fetchval(_HOLD_PRODUCT, product_id):
            raise missing("product", product_id)
        await conn.execute(_EXCLUDE, site_id, product_id, exclusion.reason, exclusion.created_at)

    async def include(self, conn: Connection, site_id: str, product_id: str) -> None:
        await conn.execute(_INCLUDE, site_id, product_id)

    async def record(self, conn: Connection, occurrence: Occurrence) -> None:
        await self._require_site(conn, occurrence.site_id)
        await conn.execute(
            _RECORD,
            occurrence.site_id,
            str(occurrence.day),
            occurrence.id,
            occurrence.type,
            occurrence.at,
            occurrence.actor_id,
        )

    async def _require_site(self, conn: Connection, site_id: str, client_id: str | None = None) -> None:
        owner = await conn.fetchval(_HOLD_SITE, site_id)
        if owner is None:
            raise missing("site", site_id)
        if client_id is not None and owner != client_id:
            raise Refused(f"the site {site_id} belongs to another client", fix="order through a site of the client's")


def _array(bodies: Sequence[str]) -> Body:
    return Body(f"[{','.join(bodies)}]".encode())


def _columns(items: Sequence[Item]) -> tuple[list[str], list[str], list[int], list[Decimal]]:
    return (
        [item.product_id for item in items],
        [item.name for item in items],
        [item.quantity for item in items],
        [item.price for item in items],
    )
