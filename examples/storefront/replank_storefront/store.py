"""What the shop asks of a store. Two modules keep to it: `kv_store` and `table_store`.

Every method works on the caller's connection; those that write, in the caller's transaction. Reads answer `None` for
what is not there, so that answers of two stores can be compared; lists of products are compared to the byte. Writes
raise `Missing`. Writing the same twice is the
same as writing it once, so that any request may be repeated.
"""

from __future__ import annotations

from datetime import date
from typing import Protocol

from replank.connection import Connection
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
)


class Store(Protocol):
    """The use cases of the shop, as far as they touch data."""

    # --- reads ---

    async def sites(self, conn: Connection, client_id: str) -> list[Site] | None:
        """A client's sites in the order of their ids; None for a client that is not there."""
        ...

    async def products(self, conn: Connection, catalog_id: str) -> Body | None:
        """A catalog's products in the order of their ids; None for a catalog that is not there."""
        ...

    async def offer(self, conn: Connection, site_id: str) -> Body | None:
        """The products of a site's catalog that the site does not exclude, in the order of their ids.

        None for a site that is not there.
        """
        ...

    async def product(self, conn: Connection, product_id: str) -> Product | None:
        """One product."""
        ...

    async def search(self, conn: Connection, text: str) -> Body:
        """The first products by name and id whose name contains the text, in capitals or not."""
        ...

    async def order(self, conn: Connection, client_id: str, order_id: str) -> Order | None:
        """One order with its items."""
        ...

    async def report(self, conn: Connection, client_id: str, month: str) -> Report:
        """A client's month."""
        ...

    async def daily_counts(self, conn: Connection, site_id: str, day: date) -> DailyCounts:
        """A site's day."""
        ...

    # --- writes ---

    async def begin(self, conn: Connection) -> None:
        """Find out whether this store takes writes now, and hold on to that until the transaction ends.

        Every transaction that writes begins so. What it reads next is then the truth: in a store that takes no writes
        any more, "there is no such site" may be an old answer, and a deletion may find nothing to delete.
        """
        ...

    async def put_client(self, conn: Connection, client: Client) -> None:
        """Create or change."""
        ...

    async def put_catalog(self, conn: Connection, catalog: Catalog) -> None:
        """Create or change."""
        ...

    async def put_site(self, conn: Connection, site: Site) -> None:
        """Create or change; a site stays with its client. Raises `Missing` and `Refused`."""
        ...

    async def put_product(self, conn: Connection, product: Product) -> None:
        """Create or change; a product stays in its catalog. Raises `Missing` and `Refused`."""
        ...

    async def delete_product(self, conn: Connection, product_id: str) -> None:
        """Remove a product and its exclusions. Orders keep what was ordered."""
        ...

    async def place_order(self, conn: Connection, order: Order) -> Order:
        """Keep a new order. An order that is there under this id already is returned instead.

        Raises `Missing` when the site is not there, and `Refused` when it is not the client's.
        """
        ...

    async def set_status(self, conn: Connection, client_id: str, order_id: str, status: Status) -> Order:
        """Change an order's status, and return the order. Raises `Missing`."""
        ...

    async def exclude(self, conn: Connection, exclusion: Exclusion) -> None:
        """Take a product out of a site's offer; one that is out already stays as it is.

        Raises `Missing` for a site or a product that is not there.
        """
        ...

    async def include(self, conn: Connection, site_id: str, product_id: str) -> None:
        """Take it in again."""
        ...

    async def record(self, conn: Connection, occurrence: Occurrence) -> None:
        """Keep an event; one that is there under this id already stays as it is. Raises `Missing` for no such site."""
        ...
