"""What the shop deals in, whichever store it comes from. Pure.

Both stores answer with these, and two answers are alike when they are equal: amounts are decimals of two places,
moments are UTC of millisecond precision, lists have one order. Lists of products may be long, and are answered as the
JSON that goes over the wire (`Body`): to make a thousand objects takes longer than to read them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NewType
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, TypeAdapter

from replank.errors import ReplankError

Status = Literal["placed", "paid", "shipped", "delivered", "cancelled"]

SEARCH_LIMIT: Final = 50
"""How many products a search shows."""
MIN_SEARCH: Final = 3
"""Shorter texts have no trigram to look up."""

_CENT: Final = Decimal("0.01")


def cents(amount: Decimal) -> Decimal:
    """The amount with exactly two places. Raises ValueError when that would round it."""
    try:
        exact = amount.quantize(_CENT)
    except ArithmeticError:
        raise ValueError("is no amount of money") from None
    if exact != amount:
        raise ValueError("has more than two decimal places")
    return exact


def in_milliseconds(moment: datetime) -> datetime:
    """The moment in UTC, cut to what the records keep."""
    return moment.astimezone(UTC).replace(microsecond=moment.microsecond // 1000 * 1000)


Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
# Text in JSON: a float would be another number for whoever reads it back.
Amount = Annotated[Decimal, Field(max_digits=12), AfterValidator(cents), PlainSerializer(str, when_used="json")]
Moment = Annotated[AwareDatetime, AfterValidator(in_milliseconds)]


class Thing(BaseModel):
    """A value: unchangeable, equal when its fields are."""

    model_config = ConfigDict(frozen=True)


class Client(Thing):
    """An organisation that gives presents to its people."""

    id: Id
    name: str


class Catalog(Thing):
    """Products that belong together."""

    id: Id
    name: str


class Site(Thing):
    """A client's page for one celebration, which offers the products of one catalog."""

    id: Id
    client_id: Id
    catalog_id: Id
    name: str
    celebration: str | None = None
    color: str | None = None


class Product(Thing):
    """Something to choose. ``price`` is in units of ``currency``."""

    id: Id
    catalog_id: Id
    sku: str
    name: str
    description: str | None = None
    price: Amount
    currency: str
    stock: int
    active: bool
    tags: tuple[str, ...] = ()


class Item(Thing):
    """A line of an order, as the product was when it was ordered."""

    product_id: Id
    name: str
    quantity: int
    price: Amount


class Order(Thing):
    """What a client has ordered through one of its sites."""

    id: Id
    client_id: Id
    site_id: Id
    status: Status
    total: Amount
    currency: str
    created_at: Moment
    recipient_name: str | None = None
    recipient_email: str | None = None
    city: str | None = None
    items: tuple[Item, ...]


class Report(Thing):
    """A client's orders of one month (UTC). Cancelled ones are counted, and bring no revenue."""

    client_id: Id
    month: str
    orders: int
    revenue: Amount
    by_status: dict[Status, int]


class Exclusion(Thing):
    """A site does not offer a product of its catalog."""

    site_id: Id
    product_id: Id
    reason: str | None = None
    created_at: Moment


class Occurrence(Thing):
    """Something that a visitor did on a site."""

    id: Id
    site_id: Id
    type: str
    at: Moment
    actor_id: str | None = None

    @property
    def day(self) -> date:
        """The day (UTC) that it is counted under."""
        return self.at.date()


class DailyCounts(Thing):
    """How often each type of event occurred on a site on one day (UTC)."""

    site_id: Id
    day: date
    counts: dict[str, int]


Body = NewType("Body", bytes)
"""The JSON of an answer, to the byte: without blanks, members in the order of the model's fields."""

_PRODUCTS: Final = TypeAdapter(list[Product])


def body_of(products: Sequence[Product]) -> Body:
    """Products as the shop answers them."""
    return Body(_PRODUCTS.dump_json([*products]))


def as_json(answer: object) -> Any:
    """What an answer of the shop looks like on the wire, read back."""
    match answer:
        case None:
            return None
        case bytes():
            return json.loads(answer)
        case BaseModel():
            return answer.model_dump(mode="json")
        case list():
            return [as_json(each) for each in answer]
    raise TypeError(f"the shop does not answer with {type(answer).__name__}")


class Missing(ReplankError):
    """There is no such thing."""


class Refused(ReplankError):
    """What was asked for contradicts what is there."""


class Unreadable(ReplankError):
    """A record is there, and is not what the shop writes."""


def missing(kind: str, name: str) -> Missing:
    """The error for a thing that is not there."""
    return Missing(f"there is no {kind} {name}", fix="check its id")


def month_bounds(month: str) -> tuple[datetime, datetime]:
    """Where a month (``YYYY-MM``, UTC) begins, and where the next one does."""
    year, number = int(month[:4]), int(month[5:])
    following = (year + 1, 1) if number == 12 else (year, number + 1)
    return datetime(year, number, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC)


def report_of(client_id: str, month: str, sales: list[tuple[Status, Decimal, int]]) -> Report:
    """The report of (status, sum of totals, how many) triples; a status may come more than once."""
    by_status: dict[Status, int] = {}
    revenue = Decimal(0)
    for status, total, count in sales:
        by_status[status] = by_status.get(status, 0) + count
        if status != "cancelled":
            revenue += total
    return Report(
        client_id=client_id,
        month=month,
        orders=sum(by_status.values()),
        revenue=revenue,
        by_status=dict(sorted(by_status.items())),
    )


def new_id(caller: str, route: str, key: str | None) -> str:
    """The id of a thing to create: for one ``Idempotency-Key`` of one caller always the same.

    So a request that is sent again finds what the first one made, in whichever store it was made: an answer that is
    kept beside it would be in one store, and the next attempt may be served by the other.
    """
    made: UUID = uuid4() if key is None else uuid5(NAMESPACE_URL, f"urn:storefront:{caller}\n{route}\n{key}")
    return made.hex
