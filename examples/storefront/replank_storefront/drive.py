"""Live traffic that knows the right answer to everything it asks.

Each worker has a `World` of its own, which it makes through the shop's API, changes and asks about, one request after
the other. So its model of the truth is exact, and every answer is checked: one wrong field is one wrong answer.

A request that finds no server, or a server that asks to come again (503 with Retry-After), is sent again as it was,
with its Idempotency-Key. That is no failure: it is what clients of a shop do. Everything else that is not the right
answer is one.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx

from replank_storefront.model import (
    SEARCH_LIMIT,
    Catalog,
    Client,
    Occurrence,
    Order,
    Product,
    Site,
    as_json,
    in_milliseconds,
)
from replank_storefront.requester import Doubtful, Numbers, Requester, TokenFile
from replank_storefront.world import Truth, World

# An attempt whose connection was lost may still be at work in the shop, which gives up on it after this time
# (seconds). Until then nothing else is written to the same thing: the late attempt would undo it.
_REST: Final = 20.0
_LEISURE: Final = 0.5
_FULL: Final = 150
_MAX_PRODUCTS: Final = 60
_STATUS: Final = ("placed", "paid", "shipped", "delivered", "cancelled")
_NAME: Final = (
    "Oak Lamp",
    "100% Linen_Blanket",
    "Café Kettle",
    "ß-Vase",
    "Walnut\\Clock",
    "東京 Bowl",
    'The "Best" Mug',
)
_EVENT: Final = ("page_view", "product_view", "search", "order")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much traffic. Times are in seconds."""

    workers: int = 8
    rate: float | None = None
    """Requests per second of all workers together, kept up whatever the answers take; None: each worker sends its next
    request once it has an answer."""
    seconds: float | None = None
    requests: int | None = None
    patience: float = 60.0
    """How long one request may be tried again."""
    products: int = 20
    """How many products a worker starts with."""


@dataclass(slots=True)
class Result:
    """How a run went, and what is true at its end."""

    numbers: Numbers
    truth: Truth
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether everything was answered, and rightly."""
        return not self.numbers.failures and not self.numbers.wrong

    def as_json(self) -> dict[str, Any]:
        """The summary."""
        return {**_counts(self.numbers, self.seconds), "first": self.numbers.first, "ms": self.numbers.latencies()}


@dataclass(slots=True)
class Drive:
    """A run in progress: set ``stop`` to end it; ``numbers`` are live."""

    base_url: str
    auth: httpx.Auth
    limits: Limits
    seed: int = 1
    transport: httpx.AsyncBaseTransport | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    numbers: Numbers = field(default_factory=Numbers)

    async def run(self) -> Result:
        """Drive until a limit is reached or ``stop`` is set; a request under way is finished."""
        started = time.monotonic()
        async with httpx.AsyncClient(
            base_url=self.base_url,
            auth=self.auth,
            # Longer than the shop takes to give up: an attempt that is left alone would still be at work.
            timeout=httpx.Timeout(max(60.0, self.limits.patience), connect=5.0),
            limits=httpx.Limits(max_connections=self.limits.workers, max_keepalive_connections=self.limits.workers),
            transport=self.transport,
        ) as client:
            run = uuid4().hex[:8]
            workers = [
                _Worker(
                    Requester(client, self.numbers, patience=self.limits.patience),
                    self.limits,
                    random.Random(f"{self.seed}:{number}"),  # noqa: S311 - reproducible on purpose
                    f"{run}w{number}",
                )
                for number in range(self.limits.workers)
            ]
            tasks = [asyncio.create_task(worker.work(self._goes_on(started))) for worker in workers]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        truth = Truth(worlds=[world for worker in workers for world in worker.worlds])
        return Result(self.numbers, truth, time.monotonic() - started)

    def _goes_on(self, started: float) -> Callable[[], bool]:
        limits = self.limits

        def goes_on() -> bool:
            return (
                not self.stop.is_set()
                and (limits.seconds is None or time.monotonic() - started < limits.seconds)
                and (limits.requests is None or self.numbers.requests < limits.requests)
            )

        return goes_on


async def drive_until_signal(
    url: str, token_file: Path, limits: Limits, *, seed: int, live: float | None, model: Path | None
) -> Result:
    """The command: `Drive` until SIGTERM or SIGINT at the latest, with live numbers on stdout.

    The truth is written to ``model`` in the end.
    """
    drive = Drive(url, TokenFile(token_file), limits, seed=seed)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drive.stop.set)
    telling = asyncio.create_task(_tell(drive.numbers, live)) if live is not None else None
    try:
        result = await drive.run()
    finally:
        if telling is not None:
            telling.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if model is not None:
        await asyncio.to_thread(model.write_text, result.truth.model_dump_json())
    return result


async def _tell(numbers: Numbers, every: float) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(every)
        print(json.dumps({"live": _counts(numbers, time.monotonic() - started)}), flush=True)


def _counts(numbers: Numbers, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 2),
        "requests": numbers.requests,
        "per_second": round(numbers.requests / seconds, 1) if seconds else 0.0,
        "failures": numbers.failures,
        "wrong": numbers.wrong,
        "stale": numbers.stale,
        "retries": numbers.retries,
        "lost_connections": numbers.lost_connections,
    }


class _Worker:
    def __init__(self, requester: Requester, limits: Limits, chance: random.Random, name: str) -> None:
        self._shop = requester
        self._limits = limits
        self._chance = chance
        self._name = name
        self._made = 0
        self._resting: dict[str, float] = {}
        self._interval = limits.workers / limits.rate if limits.rate else None
        self.worlds: list[World] = []

    async def work(self, goes_on: Callable[[], bool]) -> None:
        """Make a world and live in it; when it is full, or nobody knows any more what is true of it, make another."""
        uses: list[tuple[int, Callable[[World], Awaitable[None]]]] = [
            (10, self._list_products),
            (8, self._list_offer),
            (4, self._list_sites),
            (12, self._get_product),
            (8, self._search),
            (12, self._get_order),
            (5, self._get_report),
            (5, self._get_counts),
            (10, self._change_product),
            (3, self._add_product),
            (3, self._delete_product),
            (10, self._place_order),
            (8, self._set_status),
            (4, self._exclude),
            (4, self._include),
            (8, self._record_event),
            (1, self._rename_site),
        ]
        weights = [weight for weight, _ in uses]
        self._shop.due = time.monotonic() + self._chance.random() * self._interval if self._interval else None
        while goes_on():
            world = self._new_world()
            try:
                await self._furnish(world, goes_on)
                while goes_on() and len(world.orders) < _FULL:
                    await self._pace()
                    ((_, use),) = self._chance.choices(uses, weights)
                    await use(world)
            except Doubtful:
                # Counted as a failure already, and its world marked. In a new world everything is known again; that
                # it is made at leisure keeps a shop that refuses everything from being asked as fast as it can.
                await asyncio.sleep(_LEISURE)
            self._shop.forget()

    def _new_world(self) -> World:
        number = len(self.worlds)
        world = World(
            client=Client(id=f"c-{self._name}-{number}", name=f"Client {self._name}"),
            catalog=Catalog(id=f"k-{self._name}-{number}", name=f"Catalog {self._name}"),
        )
        # What nobody has asked for yet is in doubt.
        world.doubts = {"sites", "products", "offers"}
        self.worlds.append(world)
        return world

    async def _furnish(self, world: World, goes_on: Callable[[], bool]) -> None:
        await self._tell_of(world.client, "client.put", f"/v1/clients/{world.client.id}", {"name": world.client.name})
        world.doubts.discard("sites")
        await self._tell_of(
            world.catalog, "catalog.put", f"/v1/catalogs/{world.catalog.id}", {"name": world.catalog.name}
        )
        world.doubts.discard("products")
        for number in range(2):
            site = Site(
                id=f"s-{self._name}-{len(self.worlds)}-{number}",
                client_id=world.client.id,
                catalog_id=world.catalog.id,
                name=f"Site {number}",
                celebration=self._chance.choice((None, "wedding")),
                color=self._chance.choice((None, "#00aaff")),
            )
            await self._put_site(world, site)
        world.doubts.discard("offers")
        for _ in range(self._limits.products):
            if not goes_on():
                return
            await self._pace()
            await self._add_product(world)

    async def _pace(self) -> None:
        if self._shop.due is None or self._interval is None:
            return
        self._shop.due += self._interval
        await asyncio.sleep(max(0.0, self._shop.due - time.monotonic()))

    # --- reads ---

    async def _list_sites(self, world: World) -> None:
        await self._shop.ask("site.list", f"/v1/clients/{world.client.id}/sites", as_json(world.expected_sites()))

    async def _list_products(self, world: World) -> None:
        path = f"/v1/catalogs/{world.catalog.id}/products"
        await self._shop.ask("product.list", path, as_json(world.expected_products()))

    async def _list_offer(self, world: World) -> None:
        site = self._chance.choice(sorted(world.sites))
        await self._shop.ask("site.offer", f"/v1/sites/{site}/products", as_json(world.expected_offer(site)))

    async def _get_product(self, world: World) -> None:
        if self._chance.random() < 0.05:
            name = f"p-{self._name}-never"
            await self._shop.ask("product.get", f"/v1/products/{name}", None)
        elif world.products:
            product = self._chance.choice(list(world.products.values()))
            await self._shop.ask("product.get", f"/v1/products/{product.id}", as_json(product))

    async def _search(self, _: World) -> None:
        text = self._chance.choice(
            (
                self._tag,
                self._tag.upper(),
                f"{self._tag}-{self._chance.randrange(10)}",
                f"% {self._tag}",
                "_" + self._tag,
            )
        )
        # Earlier worlds of this worker have the same tag.
        if any("products" in each.doubts for each in self.worlds):
            return
        found = [product for each in self.worlds for product in each.expected_search(text)]
        found = sorted(found, key=lambda product: (product.name, product.id))[:SEARCH_LIMIT]
        await self._shop.ask("product.search", "/v1/products", as_json(found), params={"q": text})

    async def _get_order(self, world: World) -> None:
        if world.orders:
            order = self._chance.choice(list(world.orders.values()))
            await self._shop.ask("order.get", f"/v1/clients/{order.client_id}/orders/{order.id}", as_json(order))

    async def _get_report(self, world: World) -> None:
        month = self._chance.choice(world.months() or ["2026-01"])
        path = f"/v1/clients/{world.client.id}/reports/{month}"
        await self._shop.ask("client.report", path, as_json(world.expected_report(month)))

    async def _get_counts(self, world: World) -> None:
        if world.events:
            site, day = self._chance.choice(world.days())
            path = f"/v1/sites/{site}/events/{day}"
            await self._shop.ask("event.counts", path, as_json(world.expected_counts(site, day)))

    # --- writes ---

    async def _add_product(self, world: World) -> None:
        if len(world.products) < _MAX_PRODUCTS:
            self._made += 1
            await self._put_product(world, f"p-{self._name}-{self._made}")

    async def _change_product(self, world: World) -> None:
        name = self._free(world.products)
        if name is not None:
            await self._put_product(world, name)

    async def _put_product(self, world: World, name: str) -> None:
        number = name.rsplit("-", 1)[1]
        product = Product(
            id=name,
            catalog_id=world.catalog.id,
            sku=f"{self._tag}-{number}",
            name=f"{self._chance.choice(_NAME)} {self._tag}-{number}",
            description=self._chance.choice((None, "Made to be given.")),
            price=self._price(),
            currency="EUR",
            stock=self._chance.randrange(1000),
            active=self._chance.random() < 0.9,
            tags=tuple(self._chance.sample(("gift", "new", "sale"), self._chance.randrange(3))),
        )
        body = product.model_dump(mode="json", exclude={"id"})
        with self._doubt(world, name, "products", "offers"):
            await self._tell_of(product, "product.put", f"/v1/products/{name}", body)
        world.products[name] = product

    async def _delete_product(self, world: World) -> None:
        name = self._free(world.products)
        if name is not None and len(world.products) > 2:
            with self._doubt(world, name, "products", "offers"):
                await self._shop.tell("product.delete", "DELETE", f"/v1/products/{name}", None, 204)
            world.forget_product(name)

    async def _place_order(self, world: World) -> None:
        if not world.products:
            return
        site = self._chance.choice(sorted(world.sites))
        products = self._chance.choices(list(world.products.values()), k=self._chance.choice((1, 1, 2, 3)))
        items: list[dict[str, Any]] = [
            {
                "product_id": product.id,
                "name": product.name,
                "quantity": self._chance.randint(1, 5),
                "price": str(product.price),
            }
            for product in products
        ]
        body = {
            "site_id": site,
            "currency": "EUR",
            "recipient_name": self._chance.choice((None, "Zoë O'Neill")),
            "recipient_email": "zoe@example.org",
            "city": self._chance.choice((None, "Göteborg")),
            "items": items,
        }
        path = f"/v1/clients/{world.client.id}/orders"
        with self._doubt(world, None, "orders"):
            got = await self._shop.tell("order.place", "POST", path, body, 201, key=uuid4().hex)
        total = sum((Decimal(item["price"]) * item["quantity"] for item in items), Decimal(0))
        # Id and time are the shop's to choose; everything else is known.
        order = Order.model_validate(
            {**body, "id": got["id"], "client_id": world.client.id, "status": "placed", "total": total,
             "created_at": got["created_at"]}
        )  # fmt: skip
        self._shop.check(f"POST {path}", as_json(order), got)
        world.orders[order.id] = order

    async def _set_status(self, world: World) -> None:
        name = self._free(world.orders)
        if name is not None:
            order = world.orders[name].model_copy(update={"status": self._chance.choice(_STATUS)})
            path = f"/v1/clients/{order.client_id}/orders/{name}/status"
            with self._doubt(world, name, "orders"):
                await self._tell_of(order, "order.status", path, {"status": order.status})
            world.orders[name] = order

    async def _exclude(self, world: World) -> None:
        product, site = self._free(world.products), self._chance.choice(sorted(world.sites))
        if product is not None and self._is_free(site + product):
            body = {"reason": self._chance.choice((None, "out of budget"))}
            with self._doubt(world, site + product, "offers"):
                await self._shop.tell("site.exclude", "PUT", f"/v1/sites/{site}/exclusions/{product}", body, 204)
            world.exclusions.add((site, product))

    async def _include(self, world: World) -> None:
        pairs = sorted(pair for pair in world.exclusions if self._is_free("".join(pair)))
        if pairs:
            site, product = self._chance.choice(pairs)
            with self._doubt(world, site + product, "offers"):
                await self._shop.tell("site.include", "DELETE", f"/v1/sites/{site}/exclusions/{product}", None, 204)
            world.exclusions.discard((site, product))

    async def _record_event(self, world: World) -> None:
        site = self._chance.choice(sorted(world.sites))
        at = in_milliseconds(datetime.now(UTC) - timedelta(days=self._chance.randrange(3)))
        event = Occurrence(id="new", site_id=site, type=self._chance.choice(_EVENT), at=at, actor_id="v1")
        body = event.model_dump(mode="json", exclude={"id", "site_id"})
        with self._doubt(world, None, "events"):
            got = await self._shop.tell("event.record", "POST", f"/v1/sites/{site}/events", body, 201, key=uuid4().hex)
        world.events[got["id"]] = event.model_copy(update={"id": got["id"]})

    async def _rename_site(self, world: World) -> None:
        name = self._free(world.sites)
        if name is not None:
            color = f"#{self._chance.randrange(1 << 24):06x}"
            await self._put_site(world, world.sites[name].model_copy(update={"color": color}))

    async def _put_site(self, world: World, site: Site) -> None:
        body = site.model_dump(mode="json", exclude={"id"})
        with self._doubt(world, site.id, "sites", "offers"):
            await self._tell_of(site, "site.put", f"/v1/sites/{site.id}", body)
        world.sites[site.id] = site

    async def _tell_of(self, thing: Any, endpoint: str, path: str, body: Any) -> None:
        """Put a thing, which is answered by the thing."""
        self._shop.check(f"PUT {path}", as_json(thing), await self._shop.tell(endpoint, "PUT", path, body, 200))

    # --- what may be written to, and what is known ---

    @property
    def _tag(self) -> str:
        """What the names of this worker's products contain, and no other names do."""
        return f"{self._name}x"

    def _price(self) -> Decimal:
        return Decimal(self._chance.randint(100, 99_999)) / 100

    def _free(self, things: Mapping[str, Any]) -> str | None:
        free = [name for name in things if self._is_free(name)]
        return self._chance.choice(free) if free else None

    def _is_free(self, name: str) -> bool:
        return self._resting.get(name, 0.0) <= time.monotonic()

    @contextmanager
    def _doubt(self, world: World, name: str | None, *kinds: str) -> Iterator[None]:
        """A write to the thing ``name``: if it is never answered, what it changes (``kinds``) is in doubt."""
        try:
            yield
        except BaseException:
            world.doubts.update(kinds)
            raise
        if name is not None and self._shop.connection_was_lost:
            self._resting[name] = time.monotonic() + _REST
