"""HTTP in. What may be asked, and how it is answered, is the same in every phase of a migration.

An answer to a write carries the header ``x-replank-token``; a client that sends it back with its next requests reads
what it wrote, from whichever store that is answered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Final, TypeAlias, TypeVar

import asyncpg
from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi import Path as InPath
from pydantic import AwareDatetime, Field
from starlette.requests import Request

from replank.http import CurrentPrincipal, Problem, RequestModel
from replank.migrate.client import InvalidToken, NotAppliedYet, Token, WritesElsewhere, WritesHeld
from replank_storefront.model import (
    MIN_SEARCH,
    Amount,
    Body,
    Catalog,
    Client,
    DailyCounts,
    Exclusion,
    Id,
    Item,
    Missing,
    Occurrence,
    Order,
    Product,
    Refused,
    Report,
    Site,
    Status,
    Thing,
    Unreadable,
    in_milliseconds,
    new_id,
)
from replank_storefront.shop import Shop

TOKEN_HEADER: Final = "x-replank-token"  # noqa: S105 - says what was read, not who may read

T = TypeVar("T")

Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=2000)]
ClientId = Annotated[Id, InPath()]
CatalogId = Annotated[Id, InPath()]
SiteId = Annotated[Id, InPath()]
ProductId = Annotated[Id, InPath()]
OrderId = Annotated[Id, InPath()]
Month = Annotated[str, InPath(pattern=r"^[12]\d{3}-(0[1-9]|1[0-2])$")]
Day = Annotated[date, InPath()]
IdempotencyKey = Annotated[str | None, Header(pattern=r"^[\x21-\x7e]{1,255}$")]
Price = Annotated[Amount, Field(ge=0, le=Decimal(1_000_000))]


class PutNamed(RequestModel):
    """A client or a catalog."""

    name: Name


class PutSite(RequestModel):
    """A site."""

    client_id: Id
    catalog_id: Id
    name: Name
    celebration: Name | None = None
    color: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")] | None = None


class PutProduct(RequestModel):
    """A product."""

    catalog_id: Id
    sku: Name
    name: Name
    description: Text | None = None
    price: Price
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    stock: Annotated[int, Field(ge=0, lt=2**31)]
    active: bool = True
    tags: Annotated[tuple[Name, ...], Field(max_length=20)] = ()


class NewItem(RequestModel):
    """A line of a new order, at the price that the customer was shown."""

    product_id: Id
    name: Name
    quantity: Annotated[int, Field(ge=1, le=1000)]
    price: Price


class NewOrder(RequestModel):
    """A new order."""

    site_id: Id
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    recipient_name: Name | None = None
    recipient_email: Name | None = None
    city: Name | None = None
    items: Annotated[tuple[NewItem, ...], Field(min_length=1, max_length=100)]


class NewStatus(RequestModel):
    """Where an order is now."""

    status: Status


class Exclude(RequestModel):
    """Why a site does not offer a product."""

    reason: Name | None = None


class NewEvent(RequestModel):
    """What a visitor did; now, if ``at`` is left out."""

    type: Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
    at: AwareDatetime | None = None
    actor_id: Id | None = None


class Recorded(Thing):
    """The id that an event was given."""

    id: Id


class _Asked:
    """What a request says beside its body, and where its answer's token goes."""

    def __init__(self, response: Response, token: Token | None) -> None:
        self._response = response
        self.token = token

    def wrote(self, token: Token) -> None:
        self._response.headers[TOKEN_HEADER] = str(token)


async def _asked(
    response: Response, x_replank_token: Annotated[str, Header(max_length=16_384)] = ""
) -> AsyncIterator[_Asked]:
    try:
        yield _Asked(response, Token.parse(x_replank_token))
    except InvalidToken as error:
        raise Problem(400, "invalid-token", error.message, fix=error.fix) from error
    except (WritesHeld, WritesElsewhere, NotAppliedYet) as error:
        raise Problem(503, "moving", error.message, fix=error.fix, headers={"retry-after": "1"}) from error
    except Missing as error:
        raise Problem(404, "not-found", error.message, fix=error.fix) from error
    except Refused as error:
        raise Problem(409, "refused", error.message, fix=error.fix) from error
    except Unreadable as error:
        raise Problem(500, "unreadable-record", error.message, fix=error.fix) from error
    except asyncpg.TransactionRollbackError as error:
        # Two requests stood in each other's way, and Postgres has undone this one.
        raise Problem(
            503, "conflict", "another request changed the same thing", fix="retry", headers={"retry-after": "1"}
        ) from error


Asked: TypeAlias = Annotated[_Asked, Depends(_asked)]


def router(shop: Shop) -> APIRouter:
    """The routes. Whoever holds a token of this shop may use them all."""
    routes = APIRouter(prefix="/v1")
    for part in (_clients, _sites, _products, _orders, _analytics):
        routes.include_router(part(shop))
    return routes


def _clients(shop: Shop) -> APIRouter:
    routes = APIRouter(tags=["clients"])

    @routes.put("/clients/{client_id}")
    async def put_client(client_id: ClientId, body: PutNamed, asked: Asked) -> Client:
        """Create or rename a client."""
        client = Client(id=client_id, name=body.name)
        asked.wrote(await shop.put_client(client, asked.token))
        return client

    @routes.get("/clients/{client_id}/sites")
    async def list_sites(client_id: ClientId, asked: Asked) -> list[Site]:
        """A client's sites."""
        return _there(await shop.sites(client_id, asked.token), "client", client_id)

    @routes.get("/clients/{client_id}/reports/{month}")
    async def report(client_id: ClientId, month: Month, asked: Asked) -> Report:
        """A client's orders of a month (``YYYY-MM``, UTC) in numbers."""
        return await shop.report(client_id, month, asked.token)

    return routes


def _sites(shop: Shop) -> APIRouter:
    routes = APIRouter(tags=["sites"])

    @routes.put("/sites/{site_id}")
    async def put_site(site_id: SiteId, body: PutSite, asked: Asked) -> Site:
        """Create or change a site. It stays with its client."""
        site = Site(id=site_id, **body.model_dump())
        asked.wrote(await shop.put_site(site, asked.token))
        return site

    @routes.get("/sites/{site_id}/products", response_model=list[Product])
    async def offer(site_id: SiteId, asked: Asked) -> Response:
        """The products of the site's catalog that the site does not exclude."""
        return _answer(_there(await shop.offer(site_id, asked.token), "site", site_id))

    @routes.put("/sites/{site_id}/exclusions/{product_id}", status_code=204)
    async def exclude(site_id: SiteId, product_id: ProductId, body: Exclude, asked: Asked) -> None:
        """Take a product out of the site's offer."""
        exclusion = Exclusion(site_id=site_id, product_id=product_id, reason=body.reason, created_at=datetime.now(UTC))
        asked.wrote(await shop.exclude(exclusion, asked.token))

    @routes.delete("/sites/{site_id}/exclusions/{product_id}", status_code=204)
    async def include(site_id: SiteId, product_id: ProductId, asked: Asked) -> None:
        """Take it in again."""
        asked.wrote(await shop.include(site_id, product_id, asked.token))

    return routes


def _products(shop: Shop) -> APIRouter:
    routes = APIRouter(tags=["products"])

    @routes.put("/catalogs/{catalog_id}")
    async def put_catalog(catalog_id: CatalogId, body: PutNamed, asked: Asked) -> Catalog:
        """Create or rename a catalog."""
        catalog = Catalog(id=catalog_id, name=body.name)
        asked.wrote(await shop.put_catalog(catalog, asked.token))
        return catalog

    @routes.get("/catalogs/{catalog_id}/products", response_model=list[Product])
    async def list_products(catalog_id: CatalogId, asked: Asked) -> Response:
        """All products of a catalog."""
        return _answer(_there(await shop.products(catalog_id, asked.token), "catalog", catalog_id))

    @routes.get("/products", response_model=list[Product])
    async def search(q: Annotated[str, Query(min_length=MIN_SEARCH, max_length=100)], asked: Asked) -> Response:
        """The first products, by name, whose name contains ``q``."""
        return _answer(await shop.search(q, asked.token))

    @routes.get("/products/{product_id}")
    async def get_product(product_id: ProductId, asked: Asked) -> Product:
        """One product."""
        return _there(await shop.product(product_id, asked.token), "product", product_id)

    @routes.put("/products/{product_id}")
    async def put_product(product_id: ProductId, body: PutProduct, asked: Asked) -> Product:
        """Create or change a product. It stays in its catalog."""
        product = Product(id=product_id, **body.model_dump())
        asked.wrote(await shop.put_product(product, asked.token))
        return product

    @routes.delete("/products/{product_id}", status_code=204)
    async def delete_product(product_id: ProductId, asked: Asked) -> None:
        """Remove a product; orders keep what was ordered. Removing what is not there is no error."""
        asked.wrote(await shop.delete_product(product_id, asked.token))

    return routes


def _orders(shop: Shop) -> APIRouter:
    routes = APIRouter(tags=["orders"])

    @routes.post("/clients/{client_id}/orders", status_code=201)
    async def place_order(
        *,
        request: Request,
        client_id: ClientId,
        body: NewOrder,
        principal: CurrentPrincipal,
        asked: Asked,
        idempotency_key: IdempotencyKey = None,
    ) -> Order:
        """Place an order. With an ``Idempotency-Key`` it may be sent again, and is placed once."""
        order = Order(
            id=new_id(principal.subject, request.url.path, idempotency_key),
            client_id=client_id,
            status="placed",
            total=sum((item.price * item.quantity for item in body.items), Decimal(0)),
            created_at=datetime.now(UTC),
            items=tuple(Item(**item.model_dump()) for item in body.items),
            **body.model_dump(exclude={"items"}),
        )
        placed, token = await shop.place_order(order, asked.token)
        asked.wrote(token)
        return placed

    @routes.get("/clients/{client_id}/orders/{order_id}")
    async def get_order(client_id: ClientId, order_id: OrderId, asked: Asked) -> Order:
        """One order."""
        return _there(await shop.order(client_id, order_id, asked.token), "order", order_id)

    @routes.put("/clients/{client_id}/orders/{order_id}/status")
    async def set_status(client_id: ClientId, order_id: OrderId, body: NewStatus, asked: Asked) -> Order:
        """Say where an order is now."""
        order, token = await shop.set_status(client_id, order_id, body.status, asked.token)
        asked.wrote(token)
        return order

    return routes


def _analytics(shop: Shop) -> APIRouter:
    routes = APIRouter(tags=["analytics"])

    @routes.post("/sites/{site_id}/events", status_code=201)
    async def record(
        *,
        request: Request,
        site_id: SiteId,
        body: NewEvent,
        principal: CurrentPrincipal,
        asked: Asked,
        idempotency_key: IdempotencyKey = None,
    ) -> Recorded:
        """Record what a visitor did. With an ``Idempotency-Key`` it may be sent again, and is counted once.

        It is sent again as it was: ``at`` is needed then, because another day is another event.
        """
        if idempotency_key is not None and body.at is None:
            raise Problem(
                422, "event-without-time", "an event with an Idempotency-Key needs its time", fix="send `at` with it"
            )
        event_id = new_id(principal.subject, request.url.path, idempotency_key)
        at = in_milliseconds(body.at or datetime.now(UTC))
        occurrence = Occurrence(id=event_id, site_id=site_id, type=body.type, at=at, actor_id=body.actor_id)
        asked.wrote(await shop.record(occurrence, asked.token))
        return Recorded(id=event_id)

    @routes.get("/sites/{site_id}/events/{day}")
    async def daily_counts(site_id: SiteId, day: Day, asked: Asked) -> DailyCounts:
        """How often each type of event occurred on a day (UTC)."""
        return await shop.daily_counts(site_id, day, asked.token)

    return routes


def _answer(body: Body) -> Response:
    return Response(body, media_type="application/json")


def _there(found: T | None, kind: str, name: str) -> T:
    if found is None:
        raise Problem(404, f"{kind}-not-found", f"there is no {kind} {name}", fix="check its id")
    return found
