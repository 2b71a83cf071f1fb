"""What must be true of the corner of the shop that one worker of the driver has for itself. Pure.

Nobody else writes there, and the worker waits for each answer: so for every question there is one right answer, in
the very JSON that the shop gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel

from replank_storefront.model import (
    SEARCH_LIMIT,
    Catalog,
    Client,
    DailyCounts,
    Occurrence,
    Order,
    Product,
    Report,
    Site,
    report_of,
)

_SHOWN: Final = 5


class World(BaseModel):
    """One client with its sites, one catalog with its products, and everything that hangs on them."""

    client: Client
    catalog: Catalog
    sites: dict[str, Site] = {}
    products: dict[str, Product] = {}
    orders: dict[str, Order] = {}
    exclusions: set[tuple[str, str]] = set()
    """Pairs of site and product."""
    events: dict[str, Occurrence] = {}
    doubts: set[str] = set()
    """What nobody can tell, because a write to it was never answered: ``sites``, ``products``, ``orders``, ``offers``
    or ``events``."""

    def expected_sites(self) -> list[Site]:
        """The answer to `Store.sites`."""
        return [self.sites[name] for name in sorted(self.sites)]

    def expected_products(self) -> list[Product]:
        """The answer to `Store.products`."""
        return [self.products[name] for name in sorted(self.products)]

    def expected_offer(self, site_id: str) -> list[Product]:
        """The answer to `Store.offer`."""
        return [product for product in self.expected_products() if (site_id, product.id) not in self.exclusions]

    def expected_search(self, text: str) -> list[Product]:
        """The answer to `Store.search`, for a text that only products of this world have in their names."""
        found = [product for product in self.products.values() if text.lower() in product.name.lower()]
        return sorted(found, key=lambda product: (product.name, product.id))[:SEARCH_LIMIT]

    def expected_report(self, month: str) -> Report:
        """The answer to `Store.report`."""
        sales: list[tuple[Any, Decimal, int]] = [
            (order.status, order.total, 1)
            for order in self.orders.values()
            if order.created_at.strftime("%Y-%m") == month
        ]
        return report_of(self.client.id, month, sales)

    def expected_counts(self, site_id: str, day: date) -> DailyCounts:
        """The answer to `Store.daily_counts`."""
        counts: dict[str, int] = {}
        for event in self.events.values():
            if event.site_id == site_id and event.day == day:
                counts[event.type] = counts.get(event.type, 0) + 1
        return DailyCounts(site_id=site_id, day=day, counts=dict(sorted(counts.items())))

    def months(self) -> list[str]:
        """The months that have orders."""
        return sorted({order.created_at.strftime("%Y-%m") for order in self.orders.values()})

    def days(self) -> list[tuple[str, date]]:
        """The sites and days that have events."""
        return sorted({(event.site_id, event.day) for event in self.events.values()})

    def forget_product(self, product_id: str) -> None:
        """The product was deleted, and its exclusions with it."""
        del self.products[product_id]
        self.exclusions = {pair for pair in self.exclusions if pair[1] != product_id}


class Truth(BaseModel):
    """Everything that a run of the driver knows to be true."""

    worlds: list[World]


def differences(expected: Any, got: Any) -> list[dict[str, Any]]:
    """Where two JSON values differ: path, expected and got, the first few."""
    found: list[dict[str, Any]] = []
    for path, left, right in _differences(expected, got, ""):
        found.append({"path": path or "$", "expected": left, "got": right})
        if len(found) == _SHOWN:
            break
    return found


_ABSENT: Final = "(absent)"


def _differences(left: Any, right: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(left, dict) and isinstance(right, dict):
        for name in sorted(left.keys() | right.keys()):
            yield from _differences(left.get(name, _ABSENT), right.get(name, _ABSENT), f"{path}.{name}".lstrip("."))
    elif isinstance(left, list) and isinstance(right, list) and _are_things(left) and _are_things(right):
        # By id: one thing too few would make all that follow it look different.
        lefts, rights = ({thing["id"]: thing for thing in side} for side in (left, right))
        for name in sorted(lefts.keys() | rights.keys()):
            yield from _differences(lefts.get(name, _ABSENT), rights.get(name, _ABSENT), f"{path}[{name}]")
        if lefts.keys() == rights.keys() and [*lefts] != [*rights]:
            yield f"{path}(order)", [*lefts][:_SHOWN], [*rights][:_SHOWN]
        if len(left) != len(lefts) or len(right) != len(rights):
            yield f"{path}(count)", len(left), len(right)
    elif type(left) is not type(right) or left != right:
        yield path, left, right


def _are_things(values: list[Any]) -> bool:
    return all(isinstance(value, dict) and "id" in value for value in values)
