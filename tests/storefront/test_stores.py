"""The two stores are the same shop: they answer alike, and leave behind what the mapping says is the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from pydantic import TypeAdapter

from replank_storefront import table_store
from replank_storefront.generate import LARGEST_CLIENT, LARGEST_MONTH, Dirt, Planted, Sizes, Verdict
from replank_storefront.kv_store import KvStore
from replank_storefront.model import (
    SEARCH_LIMIT,
    Body,
    Catalog,
    Client,
    Exclusion,
    Item,
    Missing,
    Occurrence,
    Order,
    Product,
    Refused,
    Site,
    Status,
    Unreadable,
    month_bounds,
)
from replank_storefront.seed import seed
from replank_storefront.store import Store
from replank_storefront.table_store import TableStore

from . import moved
from .conftest import Databases

PRODUCTS = TypeAdapter(list[Product])


def products(body: Body) -> list[Product]:
    """What an answer says. Raises for one that is not to the byte what the shop makes of it."""
    found = PRODUCTS.validate_json(body)
    assert PRODUCTS.dump_json(found) == body
    return found


@dataclass
class Both:
    """The same shop twice. What was planted in it was rejected by the tables."""

    kv: asyncpg.Connection
    tables: asyncpg.Connection
    planted: Planted
    rejected: set[str]

    async def read(self, ask: Callable[[Store, asyncpg.Connection], Awaitable[Any]]) -> Any:
        """The answer that both give."""
        kv, tables = await ask(KvStore(), self.kv), await ask(TableStore(), self.tables)
        assert kv == tables
        return kv

    async def mend_exclusions(self) -> None:
        """The old shop heeds exclusions that the tables have rejected: here, and only here, dirt changes an answer."""
        await self.kv.execute("delete from kv_store where key = any($1)", self.planted.keys[Dirt.UNKNOWN_FIELD])

    async def write(self, do: Callable[[Store, asyncpg.Connection], Awaitable[Any]]) -> Any:
        """What both do: return a value, or refuse for the same reason."""
        kv = await self._in_transaction(self.kv, lambda: do(KvStore(), self.kv))
        tables = await self._in_transaction(self.tables, lambda: do(TableStore(), self.tables))
        assert kv == tables
        return kv

    @staticmethod
    async def _in_transaction(conn: asyncpg.Connection, do: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with conn.transaction():
                return await do()
        except (Missing, Refused) as error:
            return type(error), error.message


@pytest_asyncio.fixture
async def both(databases: Databases, kv: asyncpg.Connection) -> AsyncIterator[Both]:
    planted = await seed(kv, Sizes.of(3_000), 7)
    tables = await asyncpg.connect(databases.tables)
    await moved.make_tables(tables, moved.compiled())
    yield Both(kv, tables, planted, await moved.fill(kv, tables))
    await tables.close()


async def test_the_migration_rejects_exactly_what_was_planted_to_be_rejected(both: Both) -> None:
    assert both.rejected == set(both.planted.of(Verdict.REJECTED))
    assert await moved.different(both.kv, both.tables, both.rejected) == set()
    for key in both.planted.of(Verdict.CLEANED):
        email = await both.tables.fetchval("select email from clients where id = $1", key.split(":")[1])
        assert email == email.strip().lower()
    assert not both.rejected.intersection(both.planted.of(Verdict.IGNORED))


async def test_foreign_keys_find_exactly_the_references_that_were_planted_to_dangle(both: Both) -> None:
    shop = moved.compiled()
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await moved.constrain(both.tables, shop)
    dangling = {f"order:{row['client_id']}:{row['id']}" for row in await both.tables.fetch(
        "select client_id, id from orders where not exists (select from sites where sites.id = orders.site_id)"
    )}  # fmt: skip
    assert dangling == set(both.planted.keys[Dirt.DANGLING_REFERENCE])
    await both.tables.execute(
        "delete from order_items where order_id = any($1)", [key.split(":")[2] for key in dangling]
    )
    await both.tables.execute("delete from orders where id = any($1)", [key.split(":")[2] for key in dangling])
    for constraint in shop.constraints:
        for statement in constraint.drop:
            await both.tables.execute(statement)
    await moved.constrain(both.tables, shop)


async def test_both_stores_answer_every_question_alike(both: Both) -> None:
    await both.mend_exclusions()
    catalog = products(await both.read(lambda store, conn: store.products(conn, "k00001")))
    assert len(catalog) > 550
    assert catalog == sorted(catalog, key=lambda product: product.id)
    for number in range(1, 10):
        assert len(await both.read(lambda store, conn: store.sites(conn, f"c{(number - 1) // 3 + 1:05d}"))) == 3  # noqa: B023
        assert await both.read(lambda store, conn: store.offer(conn, f"s{number:06d}")) is not None  # noqa: B023
    report = await both.read(lambda store, conn: store.report(conn, LARGEST_CLIENT, LARGEST_MONTH))
    assert report.orders > 250
    assert set(report.by_status) == {"placed", "paid", "shipped", "delivered", "cancelled"}
    assert (await both.read(lambda store, conn: store.report(conn, LARGEST_CLIENT, "2026-04"))).orders == 0
    for text in ("Oak", "OAK LAMP", "%", "_a", "\\", "no such thing", catalog[0].name):
        found = products(await both.read(lambda store, conn: store.search(conn, text)))  # noqa: B023
        assert all(text.lower() in product.name.lower() for product in found)
    days = await both.kv.fetch(
        "select distinct split_part(key, ':', 2) as site, split_part(key, ':', 3) as day from kv_store"
        " where key like 'event:%' order by site, day limit 30"
    )
    for site, day in days:
        counts = await both.read(lambda store, conn: store.daily_counts(conn, site, date.fromisoformat(day)))  # noqa: B023
        assert counts.day.isoformat() == day
    for order in await both.tables.fetch("select client_id, id from orders limit 200"):
        assert await both.read(lambda store, conn: store.order(conn, order["client_id"], order["id"])) is not None  # noqa: B023


async def test_lists_are_alike_to_the_byte_whatever_is_in_their_texts(both: Both) -> None:
    """One store has its JSON made by the application, the other one by the database."""
    odd = (
        "plain",
        'a "quote", "two"',
        ", ",
        '", ',
        "back\\slash",
        "</script>",
        "tab\tand\nline\x07\x1f\x7f",
        "Zoë 東京 🎁",
        " ",
        "a,b",
    )
    catalog = Catalog(id="odd", name="Odd")
    await both.write(lambda store, conn: store.put_catalog(conn, catalog))
    assert await both.read(lambda store, conn: store.products(conn, "odd")) == b"[]"
    for number, text in enumerate(odd):
        product = Product(
            id=f"odd-{number}", catalog_id="odd", sku=text, name=f"Odd {text}", description=(None, text)[number % 2],
            price=Decimal(number * 10 ** (number % 9)) / 100, currency="EUR", stock=-number, active=number % 2 == 0,
            tags=odd[:number],
        )  # fmt: skip
        await both.write(lambda store, conn: store.put_product(conn, product))  # noqa: B023
    # What an old record may lack, or have in another form; tables have neither more nor less than it.
    await both.kv.execute("update kv_store set value = value - 'tags' where key = 'product:odd-3'")
    await both.tables.execute("update products set tags = null where id = 'odd-3'")
    listed = products(await both.read(lambda store, conn: store.products(conn, "odd")))
    assert [product.tags for product in listed] == [odd[:number] if number != 3 else () for number in range(len(odd))]
    assert [product.sku for product in listed] == [*odd]
    assert await both.read(lambda store, conn: store.search(conn, "Odd ")) != b"[]"


async def test_tags_that_are_no_array_spoil_no_list_of_the_tables(both: Both) -> None:
    """Rows may hold whatever the column's type lets in; the old shop leaves such a record out, and says so."""
    await both.tables.execute("update products set tags = '\"gift\"' where id = 'p0000050'")
    listed = await TableStore().products(both.tables, "k00001")
    assert listed is not None
    assert {product.id: product.tags for product in products(listed)}["p0000050"] == ()


async def test_both_stores_say_of_what_is_not_there_that_it_is_not(both: Both) -> None:
    assert await both.read(lambda store, conn: store.sites(conn, "nobody")) is None
    assert await both.read(lambda store, conn: store.products(conn, "nothing")) is None
    assert await both.read(lambda store, conn: store.offer(conn, "nowhere")) is None
    assert await both.read(lambda store, conn: store.product(conn, "nothing")) is None
    assert await both.read(lambda store, conn: store.order(conn, LARGEST_CLIENT, "nothing")) is None
    assert (await both.read(lambda store, conn: store.report(conn, "nobody", "2026-03"))).orders == 0
    assert (await both.read(lambda store, conn: store.daily_counts(conn, "nowhere", date(2026, 3, 1)))).counts == {}


async def test_a_record_that_the_tables_reject_is_left_out_of_lists_and_refused_alone(both: Both) -> None:
    key = both.planted.keys[Dirt.NUMBER_AS_TEXT][0]
    product_id = key.split(":")[1]
    listed = products(await both.read(lambda store, conn: store.products(conn, "k00001")))
    assert product_id not in {product.id for product in listed}
    with pytest.raises(Unreadable, match=r"price\.amount"):
        await KvStore().product(both.kv, product_id)


@pytest.mark.parametrize("number", range(4))
async def test_whatever_is_done_to_both_stores_leaves_them_alike(both: Both, number: int) -> None:
    """Random operations, some of them nonsense; then every record is compared with its rows by the mapping itself."""
    await both.mend_exclusions()
    chance = Random(number)
    clients = ["c00001", "c00002", "new-client", "nobody"]
    catalogs = ["k00001", "k00002", "new-catalog", "nothing"]
    sites = ["s000001", "s000002", "s000004", "new-site", "nowhere"]
    products = [f"p{index:07d}" for index in range(20, 28)] + ["new-1", "new-2", "none"]
    orders = [f"new-order-{index}" for index in range(6)]
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)

    async def one() -> Any:
        pick = chance.choice
        client, catalog, site, product, order = pick(clients), pick(catalogs), pick(sites), pick(products), pick(orders)
        when = at + timedelta(milliseconds=chance.randrange(10**9))
        price = Decimal(chance.randrange(10**6)) / 100
        made: list[Callable[[Store, asyncpg.Connection], Awaitable[Any]]] = [
            lambda store, conn: store.put_client(conn, Client(id=client, name=f"Client {price}")),
            lambda store, conn: store.put_catalog(conn, Catalog(id=catalog, name=f"Catalog {price}")),
            lambda store, conn: store.put_site(conn, new_site),
            lambda store, conn: store.put_product(conn, new_product),
            lambda store, conn: store.put_product(conn, new_product),
            lambda store, conn: store.delete_product(conn, product),
            lambda store, conn: store.place_order(conn, new_order),
            lambda store, conn: store.place_order(conn, new_order),
            lambda store, conn: store.set_status(conn, client, order, status),
            lambda store, conn: store.exclude(conn, exclusion),
            lambda store, conn: store.include(conn, site, product),
            lambda store, conn: store.record(conn, event),
        ]
        status: Status = pick(("placed", "paid", "cancelled"))
        new_site = Site(
            id=site, client_id=client, catalog_id=catalog, name="Site", celebration=pick((None, "birth")),
            color=pick((None, "#112233")),
        )  # fmt: skip
        new_product = Product(
            id=product, catalog_id=catalog, sku="X", name=f"Thing {price}", description=pick((None, "Text")),
            price=price, currency="EUR", stock=chance.randrange(100), active=pick((True, False)),
            tags=pick(((), ("a", "b"))),
        )  # fmt: skip
        items = tuple(
            Item(product_id=pick(products), name="Thing", quantity=chance.randint(1, 9), price=price)
            for _ in range(chance.randint(1, 4))
        )
        new_order = Order(
            id=order, client_id=client, site_id=site, status="placed", total=price, currency="EUR", created_at=when,
            recipient_name=pick((None, "Zoë")), city=pick((None, "東京")), items=items,
        )  # fmt: skip
        exclusion = Exclusion(site_id=site, product_id=product, reason=pick((None, "cost")), created_at=when)
        event = Occurrence(id=order, site_id=site, type="search", at=when, actor_id=pick((None, "v1")))
        return await both.write(pick(made))

    outcomes = [await one() for _ in range(300)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
    assert 10 < len(refused) < 290
    assert await moved.different(both.kv, both.tables, both.rejected) == set()
    for catalog in catalogs:
        await both.read(lambda store, conn: store.products(conn, catalog))  # noqa: B023
    for site in sites:
        await both.read(lambda store, conn: store.offer(conn, site))  # noqa: B023
    for client in clients:
        await both.read(lambda store, conn: store.sites(conn, client))  # noqa: B023
        await both.read(lambda store, conn: store.report(conn, client, "2026-05"))  # noqa: B023


MORE = """
insert into catalogs (id, name) select 'more-' || c, 'More' from generate_series(1, 20) as c;
insert into products (id, catalog_id, sku, name, price, currency, stock, active)
select format('more-%s-%s', c, p), 'more-' || c, 'M', 'Oak ' || md5(p::text), 1, 'EUR', 1, true
from generate_series(1, 20) as c, generate_series(1, 1000) as p;
insert into orders (client_id, id, site_id, status, total, currency, created_at)
select 'c00002', 'more-' || o, 's000004', 'paid', 1, 'EUR', timestamptz '2025-01-01' + o * interval '1 hour'
from generate_series(1, 20000) as o
"""


async def test_the_tables_answer_by_an_index_and_read_no_table_whole(both: Both) -> None:
    await both.tables.execute(MORE)
    await both.tables.execute("vacuum analyze")

    async def plan(query: str, *given: object) -> str:
        return "\n".join(row[0] for row in await both.tables.fetch(f"explain (costs off) {query}", *given))

    for name, owner in (("_PRODUCTS", "more-7"), ("_OFFER", "s000001")):
        listing = await plan(getattr(table_store, name), owner)
        assert "idx_products_catalog_id" in listing, listing
        assert "Scan on products" not in listing.replace("Bitmap Heap Scan on products", ""), listing
    report = await plan(table_store._REPORT, "c00002", *month_bounds("2025-07"))
    assert "Index Only Scan using idx_orders_client_created on orders" in report, report
    search = await plan(table_store._SEARCH, "%Walnut Teapot%", SEARCH_LIMIT)
    assert "idx_products_name_trgm" in search, search
    await both.tables.execute("set enable_seqscan = off")  # so few sites are read whole
    assert "idx_sites_client_id" in await plan(table_store._SITES, "c00001")
