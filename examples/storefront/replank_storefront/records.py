"""The records of the key-value store: JSON as the shop has always written it, and reads it back. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from replank_storefront.model import (
    Catalog,
    Client,
    Exclusion,
    Item,
    Occurrence,
    Order,
    Product,
    Site,
    Status,
    Unreadable,
    cents,
    in_milliseconds,
)

Json = dict[str, Any]

_AMOUNT: Final = re.compile(r"-?\d{1,10}(\.\d+)?")
_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("is not a number")  # noqa: TRY004 - what pydantic takes for a fault of the value
    return cents(Decimal(str(value)))


def _number_in_text(value: Any) -> Any:
    if not isinstance(value, str) or not _AMOUNT.fullmatch(value):
        raise ValueError("is not an amount in text")
    return cents(Decimal(value))


def _iso(value: Any) -> Any:
    if not isinstance(value, str) or not _ISO.fullmatch(value):
        raise ValueError("is not a moment like 2026-03-01T12:00:00.000Z")
    return datetime.fromisoformat(value)


_Number = Annotated[Decimal, BeforeValidator(_number)]
_NumberInText = Annotated[Decimal, BeforeValidator(_number_in_text)]
_Iso = Annotated[datetime, BeforeValidator(_iso)]
_Integer = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class _Record(BaseModel):
    # Strict: the shop must not read "12" as 12 here when tables refuse it there.
    model_config = ConfigDict(strict=True, alias_generator=to_camel)


class _Branding(_Record):
    color: str | None = None


class _Site(_Record):
    client_id: str
    catalog_id: str
    name: str
    celebration: str | None = None
    branding: _Branding = _Branding()


class _Price(_Record):
    amount: _Number
    currency: str


class _Product(_Record):
    catalog_id: str
    sku: str
    name: str
    description: str | None = None
    price: _Price
    stock: _Integer
    active: bool
    tags: tuple[str, ...] = ()


class _Line(_Record):
    product_id: str
    name: str
    quantity: _Integer
    price: _Number


class _Recipient(_Record):
    name: str | None = None
    email: str | None = None


class _Address(_Record):
    city: str | None = None


class _Shipping(_Record):
    address: _Address = _Address()


class _Order(_Record):
    site_id: str
    status: Status
    total: _NumberInText
    currency: str
    created_at: _Iso
    recipient: _Recipient = _Recipient()
    shipping: _Shipping = _Shipping()
    items: tuple[_Line, ...]


_R = TypeVar("_R", bound=_Record)


def _read(record: type[_R], key: str, value: str) -> _R:
    try:
        return record.model_validate_json(value)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False))
        raise Unreadable(f"the record {key} cannot be read: {fields}", fix="correct the record") from None


def read_site(key: str, value: str) -> Site:
    """A record ``site:{id}``. Raises `Unreadable`, as all of these do."""
    found = _read(_Site, key, value)
    return Site(
        id=key.split(":")[1],
        client_id=found.client_id,
        catalog_id=found.catalog_id,
        name=found.name,
        celebration=found.celebration,
        color=found.branding.color,
    )


def read_product(key: str, value: str) -> Product:
    """A record ``product:{id}``."""
    found = _read(_Product, key, value)
    # The record was validated; once is enough for one of a thousand.
    return Product.model_construct(
        id=key.split(":")[1],
        catalog_id=found.catalog_id,
        sku=found.sku,
        name=found.name,
        description=found.description,
        price=found.price.amount,
        currency=found.price.currency,
        stock=found.stock,
        active=found.active,
        tags=found.tags,
    )


def read_order(key: str, value: str) -> Order:
    """A record ``order:{client}:{id}``."""
    found = _read(_Order, key, value)
    _, client_id, order_id = key.split(":")
    return Order(
        id=order_id,
        client_id=client_id,
        site_id=found.site_id,
        status=found.status,
        total=found.total,
        currency=found.currency,
        created_at=found.created_at,
        recipient_name=found.recipient.name,
        recipient_email=found.recipient.email,
        city=found.shipping.address.city,
        items=tuple(
            Item(product_id=line.product_id, name=line.name, quantity=line.quantity, price=line.price)
            for line in found.items
        ),
    )


def client_record(client: Client) -> Json:
    """What a client's record says of it."""
    return {"name": client.name}


def catalog_record(catalog: Catalog) -> Json:
    """What a catalog's record says of it."""
    return {"name": catalog.name}


def site_record(site: Site) -> Json:
    """What a site's record says of it."""
    return {
        "clientId": site.client_id,
        "catalogId": site.catalog_id,
        "name": site.name,
        "celebration": site.celebration,
        "branding": {"color": site.color},
    }


def product_record(product: Product) -> Json:
    """What a product's record says of it."""
    return {
        "catalogId": product.catalog_id,
        "sku": product.sku,
        "name": product.name,
        "description": product.description,
        "price": {"amount": float(product.price), "currency": product.currency},
        "stock": product.stock,
        "active": product.active,
        "tags": list(product.tags),
    }


def order_record(order: Order) -> Json:
    """What an order's record says of it."""
    return {
        "siteId": order.site_id,
        "status": order.status,
        "total": str(cents(order.total)),
        "currency": order.currency,
        "createdAt": iso(order.created_at),
        "recipient": {"name": order.recipient_name, "email": order.recipient_email},
        "shipping": {"address": {"city": order.city}},
        "items": [
            {
                "productId": item.product_id,
                "name": item.name,
                "quantity": item.quantity,
                "price": float(item.price),
            }
            for item in order.items
        ],
    }


def exclusion_record(exclusion: Exclusion) -> Json:
    """What an exclusion's record says of it."""
    return {"reason": exclusion.reason, "createdAt": iso(exclusion.created_at)}


def event_record(occurrence: Occurrence) -> Json:
    """What an event's record says of it."""
    return {"type": occurrence.type, "at": epoch_ms(occurrence.at), "actor": {"id": occurrence.actor_id}}


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> Json:
    """The old record with what the new one says: other fields stay, `None` takes a field away, and so does nothing."""
    result = dict(old)
    for name, value in new.items():
        if isinstance(value, Mapping):
            before = result.get(name)
            value = merged(before if isinstance(before, Mapping) else {}, value) or None  # noqa: PLW2901
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result


def dump(record: Mapping[str, Any]) -> str:
    """The record as the text of a jsonb parameter."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def iso(moment: datetime) -> str:
    """``2026-03-01T12:00:00.000Z``, the way JavaScript writes it."""
    return f"{in_milliseconds(moment):%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000
