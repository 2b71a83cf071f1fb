"""The records of a shop of any size, the same ones every time. Pure.

What is planted among them is known: about one record in two hundred is dirty, in a way that is named, and whoever runs
a migration can be held to what it found. See `Dirt`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from random import Random
from typing import Any, Final

from replank_storefront.model import month_bounds
from replank_storefront.records import Json, epoch_ms, iso, merged

PRODUCTS_PER_CATALOG: Final = 1000
SITES_PER_CLIENT: Final = 3
LARGEST_CLIENT: Final = "c00001"
LARGEST_MONTH: Final = "2026-03"
"""Every order of the largest client is of this month."""

_DIRTY: Final = 0.005
_BEGIN: Final = datetime(2025, 9, 1, tzinfo=UTC)
_DAYS: Final = 270

_MADE_OF: Final = (
    "Oak", "Walnut", "Bamboo", "Copper", "Ceramic", "Linen", "Leather", "Wool", "Steel", "Glass", "Marble", "Cork",
)  # fmt: skip
_KIND: Final = (
    "Lamp", "Bowl", "Watch", "Backpack", "Blanket", "Kettle", "Speaker", "Notebook", "Headphones", "Teapot", "Chair",
    "Vase", "Frame", "Knife Set", "Picnic Basket", "Fountain Pen", "Travel Mug", "Bookend", "Clock", "Bicycle Bell",
)  # fmt: skip
_STYLE: Final = ("Aurora", "Nordic", "Classic", "Heritage", "Atlas", "Meridian", "Harbour", "Juniper", "Solstice")
# A few thousand brands: people search for those, and words that every tenth product has tell an index little.
_BRAND: Final = (
    ("Ba", "Cel", "Dor", "Fen", "Gal", "Hav", "Jun", "Kel", "Lor", "Mar", "Nor", "Or", "Pel", "Quin", "Ros", "Sel"),
    ("a", "bri", "da", "evi", "fo", "gu", "ha", "ki", "lu", "mi", "no", "pa", "ru", "sta", "ti", "vo"),
    ("bel", "dan", "dis", "gard", "heim", "lin", "mond", "nes", "pek", "quist", "rona", "sen", "tano", "vik", "worth"),
)
_CITY: Final = (
    ("Bremen", "DE"), ("Göteborg", "SE"), ("Kraków", "PL"), ("Lyon", "FR"), ("Porto", "PT"), ("Tallinn", "EE"),
    ("São Paulo", "BR"), ("東京", "JP"), ("Austin", "US"), ("Cork", "IE"),
)  # fmt: skip
_PERSON: Final = ("Ada", "Grace", "Edsger", "Barbara", "Tony", "Radia", "Ken", "Frances", "Niklaus", "Sofia", "Zoë")
_FAMILY: Final = ("Lindqvist", "O'Neill", "García", "Nowak", "Müller", "Tanaka", "Silva", "Dubois", "Katz", "Øst")
_CELEBRATION: Final = ("service anniversary", "retirement", "wedding", "birth", "holidays")
_STATUS: Final = ("placed", "paid", "shipped", "delivered", "delivered", "delivered", "cancelled")
_OCCURRENCE: Final = ("page_view", "page_view", "page_view", "product_view", "product_view", "search", "order")
_CURRENCY: Final = ("EUR", "EUR", "USD", "GBP")


class Verdict(Enum):
    """What a migration makes of a dirty record."""

    REJECTED = "rejected"
    """It cannot be a row; it waits among the rejects, with the reason."""
    CLEANED = "cleaned"
    """The mapping says how to take it."""
    DANGLING = "dangling"
    """It becomes a row, which a foreign key does not let pass when it is validated."""
    IGNORED = "ignored"
    """The mapping leaves records of its key alone."""


class Dirt(Enum):
    """The kinds of dirty records: what is wrong, of which entity, and what a migration must make of it."""

    NUMBER_AS_TEXT = ("number_as_text", "product", Verdict.REJECTED)
    TEXT_AS_NUMBER = ("text_as_number", "product", Verdict.REJECTED)
    OVERFLOW = ("overflow", "product", Verdict.REJECTED)
    THIRD_DECIMAL = ("third_decimal", "order", Verdict.REJECTED)
    DATE_SPELLING = ("date_spelling", "order", Verdict.REJECTED)
    IMPOSSIBLE_DATE = ("impossible_date", "order", Verdict.REJECTED)
    MISSING_FIELD = ("missing_field", "order", Verdict.REJECTED)
    NO_ARRAY = ("no_array", "order", Verdict.REJECTED)
    MISSING_IN_CHILD = ("missing_in_child", "order", Verdict.REJECTED)
    DANGLING_REFERENCE = ("dangling_reference", "order", Verdict.DANGLING)
    UNKNOWN_FIELD = ("unknown_field", "exclusion", Verdict.REJECTED)
    SECONDS_AS_TEXT = ("seconds_as_text", "event", Verdict.REJECTED)
    UNTRIMMED_EMAIL = ("untrimmed_email", "client", Verdict.CLEANED)
    NO_ENTITY = ("no_entity", "leftover", Verdict.REJECTED)
    SESSION = ("session", "session", Verdict.IGNORED)

    def __init__(self, label: str, entity: str, verdict: Verdict) -> None:
        self.label = label
        self.entity = entity
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many records there are of each entity."""

    clients: int
    catalogs: int
    sites: int
    products: int
    orders: int
    exclusions: int
    events: int
    sessions: int
    leftovers: int
    largest_client_orders: int
    """So many of the orders are of `LARGEST_CLIENT`."""

    @classmethod
    def of(cls, records: int, *, largest_client_orders: int | None = None) -> Sizes:
        """The shares of a real shop, ``records`` in all (at least 1,000). A quarter of the orders is one client's."""
        if records < 1000:
            raise ValueError("a shop has at least 1,000 records")
        products = records // 5
        catalogs = max(2, -(-products // PRODUCTS_PER_CATALOG))
        clients = max(3, records // 1000)
        sites = clients * SITES_PER_CLIENT
        exclusions, sessions, leftovers = records // 50, records // 200, max(1, records // 4000)
        events = records * 3 // 10
        orders = records - (products + catalogs + clients + sites + exclusions + sessions + leftovers + events)
        largest = orders // 4 if largest_client_orders is None else largest_client_orders
        if not 0 <= largest <= orders:
            raise ValueError(f"of {orders} orders one client cannot have {largest}")
        return cls(clients, catalogs, sites, products, orders, exclusions, events, sessions, leftovers, largest)

    @property
    def total(self) -> int:
        """All records."""
        return (
            self.clients + self.catalogs + self.sites + self.products + self.orders + self.exclusions + self.events
            + self.sessions + self.leftovers
        )  # fmt: skip


@dataclass(slots=True)
class Planted:
    """The keys of the dirty records by kind. Complete once the records were all taken."""

    keys: dict[Dirt, list[str]] = field(default_factory=lambda: {kind: [] for kind in Dirt})

    def of(self, verdict: Verdict) -> list[str]:
        """The keys of the records with this verdict."""
        return [key for kind, keys in self.keys.items() if kind.verdict is verdict for key in keys]

    def counts(self) -> dict[str, int]:
        """How many there are of each kind, by its label."""
        return {kind.label: len(keys) for kind, keys in self.keys.items()}


def records(sizes: Sizes, seed: int, planted: Planted) -> Iterator[tuple[str, Json]]:
    """Every record as (key, value), no key twice. What is dirty is noted in ``planted``.

    The same sizes and seed give the same records. What records name comes before them.
    """
    shop = _Shop(sizes, seed, planted)
    for make in (
        shop.clients,
        shop.catalogs,
        shop.sites,
        shop.products,
        shop.orders,
        shop.exclusions,
        shop.events,
        shop.others,
    ):
        yield from make()


class _Shop:
    """Each entity has a stream of chance of its own, so that more of one does not change another."""

    def __init__(self, sizes: Sizes, seed: int, planted: Planted) -> None:
        self._sizes = sizes
        self._seed = seed
        self._planted = planted

    def clients(self) -> Iterator[tuple[str, Json]]:
        chance, dirty = self._chance("client"), self._dirt("client")
        for number in range(1, self._sizes.clients + 1):
            city, country = chance.choice(_CITY)
            name = f"{chance.choice(_FAMILY)} & {chance.choice(_FAMILY)}"
            first = (number - 1) * SITES_PER_CLIENT + 1
            value: Json = {
                "name": name,
                "email": f"gifts{number}@example.com",
                "plan": chance.choice(("basic", "plus", "enterprise")),
                "active": chance.random() < 0.95,
                "address": {"street": f"{chance.randint(1, 200)} Main Street", "city": city, "country": country},
                "createdAt": iso(self._moment(chance)),
                "siteIds": [_site(site) for site in range(first, first + SITES_PER_CLIENT)],
                "settings": {"newsletter": chance.random() < 0.5, "approvers": chance.sample(_PERSON, 2)},
            }
            yield dirty(f"client:{_client(number)}", value)

    def catalogs(self) -> Iterator[tuple[str, Json]]:
        chance = self._chance("catalog")
        for number in range(1, self._sizes.catalogs + 1):
            listed = range((number - 1) * PRODUCTS_PER_CATALOG, number * PRODUCTS_PER_CATALOG)
            yield (
                f"catalog:{_catalog(number)}",
                {
                    "name": f"{chance.choice(_STYLE)} {2020 + number % 7}",
                    "locale": chance.choice(("en-GB", "de-DE", "fr-FR")),
                    "createdAt": iso(self._moment(chance)),
                    "productIds": [_product(index + 1) for index in listed if index < self._sizes.products],
                },
            )

    def sites(self) -> Iterator[tuple[str, Json]]:
        chance = self._chance("site")
        for number in range(1, self._sizes.sites + 1):
            branding: Json = {"color": f"#{chance.randrange(1 << 24):06x}"}
            if chance.random() < 0.3:
                branding["logo"] = f"https://cdn.example.com/logos/{number}.svg"
            yield (
                f"site:{_site(number)}",
                {
                    "clientId": _client((number - 1) // SITES_PER_CLIENT + 1),
                    "catalogId": _catalog((number - 1) % self._sizes.catalogs + 1),
                    "name": f"{chance.choice(_STYLE)} Celebrations",
                    "celebration": chance.choice(_CELEBRATION),
                    "branding": branding,
                    "launchedAt": epoch_ms(self._moment(chance)),
                },
            )

    def products(self) -> Iterator[tuple[str, Json]]:
        chance, dirty = self._chance("product"), self._dirt("product")
        for number in range(1, self._sizes.products + 1):
            made_of, kind = chance.choice(_MADE_OF), chance.choice(_KIND)
            value: Json = {
                "catalogId": _catalog((number - 1) // PRODUCTS_PER_CATALOG + 1),
                "sku": f"{made_of[:2].upper()}-{number:07d}",
                "name": f"{''.join(map(chance.choice, _BRAND))} {made_of} {kind}",
                "price": {"amount": chance.randint(500, 49_999) / 100, "currency": chance.choice(_CURRENCY)},
                "stock": chance.randint(0, 5000),
                "active": chance.random() < 0.9,
                "attributes": {
                    "material": made_of.lower(),
                    "weightGrams": chance.randint(50, 8000),
                    "dimensions": {"w": chance.randint(5, 90), "h": chance.randint(5, 90), "d": chance.randint(5, 90)},
                    "care": f"Keep the {kind.lower()} dry and out of the sun; wipe it with a soft cloth.",
                },
            }
            if chance.random() < 0.9:
                value["description"] = f"A {kind.lower()} of {made_of.lower()}, made to be given and to be kept."
            if chance.random() < 0.7:
                value["tags"] = chance.sample(
                    ("gift", "new", "sale", "eco", "engraved", "limited"), chance.randint(0, 3)
                )
            if chance.random() < 0.1:
                value["supplier"] = None
            yield dirty(f"product:{_product(number)}", value)

    def orders(self) -> Iterator[tuple[str, Json]]:
        chance, dirty = self._chance("order"), self._dirt("order")
        begin, end = month_bounds(LARGEST_MONTH)
        seconds = int((end - begin).total_seconds())
        for number in range(1, self._sizes.orders + 1):
            if number <= self._sizes.largest_client_orders:
                client, at = 1, begin + timedelta(milliseconds=chance.randrange(seconds * 1000))
            else:
                client, at = chance.randint(2, self._sizes.clients), self._moment(chance)
            items = [self._item(chance) for _ in range(chance.choice((1, 1, 1, 2, 2, 3)))]
            total = sum(item["quantity"] * round(item["price"] * 100) for item in items)
            city, country = chance.choice(_CITY)
            person = f"{chance.choice(_PERSON)} {chance.choice(_FAMILY)}"
            value: Json = {
                "siteId": _site((client - 1) * SITES_PER_CLIENT + chance.randint(1, SITES_PER_CLIENT)),
                "status": chance.choice(_STATUS),
                "total": f"{total // 100}.{total % 100:02d}",
                "currency": "EUR",
                "createdAt": iso(at),
                "recipient": {"name": person, "email": f"recipient{number}@example.org"},
                "shipping": {
                    "method": chance.choice(("standard", "express")),
                    "address": {"street": f"{chance.randint(1, 300)} Station Road", "city": city, "country": country},
                },
                "items": items,
            }
            if chance.random() < 0.2:
                value["note"] = chance.choice((None, "Congratulations!", "With thanks — from all of us."))
            yield dirty(f"order:{_client(client)}:{_order(number)}", value)

    def exclusions(self) -> Iterator[tuple[str, Json]]:
        chance, dirty = self._chance("exclusion"), self._dirt("exclusion")
        # An exclusion of a product that is rejected would dangle until that is mended: two faults would look like one.
        spoilt = {
            key.split(":")[1] for kind, keys in self._planted.keys.items() if kind.entity == "product" for key in keys
        }
        sound = [product for product in map(_product, range(1, self._sizes.products + 1)) if product not in spoilt]
        for number in range(self._sizes.exclusions):
            # A walk over sites and products that comes back to no pair before it saw sites * products of them.
            site, lap = number % self._sizes.sites + 1, number // self._sizes.sites
            product = sound[(site * 7 + lap) % len(sound)]
            value: Json = {"createdAt": iso(self._moment(chance))}
            if chance.random() < 0.8:
                value["reason"] = chance.choice(("out of budget", "not in this country", "brand conflict"))
            yield dirty(f"exclusion:{_site(site)}:{product}", value)

    def events(self) -> Iterator[tuple[str, Json]]:
        chance, dirty = self._chance("event"), self._dirt("event")
        for number in range(1, self._sizes.events + 1):
            at = self._moment(chance)
            value: Json = {
                "type": chance.choice(_OCCURRENCE),
                "at": epoch_ms(at),
                "actor": {"id": f"v{chance.randrange(100_000):05d}"},
                "properties": {
                    "path": f"/p/{_product(chance.randint(1, self._sizes.products))}",
                    "ms": chance.randint(3, 900),
                },
            }
            site = _site(chance.randint(1, self._sizes.sites))
            yield dirty(f"event:{site}:{at:%Y-%m-%d}:e{number:08d}", value)

    def others(self) -> Iterator[tuple[str, Json]]:
        chance = self._chance("others")
        for number in range(1, self._sizes.sessions + 1):
            key = f"session:s{number:07d}"
            self._planted.keys[Dirt.SESSION].append(key)
            yield key, {"client": _client(chance.randint(1, self._sizes.clients)), "expires": chance.randrange(10**9)}
        for number in range(1, self._sizes.leftovers + 1):
            key = f"tmp-import-{number}"
            self._planted.keys[Dirt.NO_ENTITY].append(key)
            yield key, {"step": chance.randint(1, 9), "done": False}

    def _item(self, chance: Random) -> Json:
        return {
            "productId": _product(chance.randint(1, self._sizes.products)),
            "name": f"{chance.choice(_STYLE)} {chance.choice(_KIND)}",
            "quantity": chance.choice((1, 1, 1, 2, 5)),
            "price": chance.randint(500, 49_999) / 100,
            **({"engraving": chance.choice(_PERSON)} if chance.random() < 0.1 else {}),
        }

    def _chance(self, entity: str) -> Random:
        return Random(f"{self._seed}:{entity}")  # noqa: S311 - reproducible on purpose

    def _moment(self, chance: Random) -> datetime:
        return _BEGIN + timedelta(milliseconds=chance.randrange(_DAYS * 86_400_000))

    def _dirt(self, entity: str) -> Callable[[str, Json], tuple[str, Json]]:
        """Spoils one record in two hundred, each kind in its turn, and the first ones early, for small shops."""
        kinds = [kind for kind in Dirt if kind.entity == entity]
        every = round(1 / _DIRTY)
        seen = 0

        def spoil(key: str, value: Json) -> tuple[str, Json]:
            nonlocal seen
            turn, left = divmod(seen, every)
            seen += 1
            if left >= 1 and not (turn == 0 and left < len(kinds)):
                return key, value
            kind = kinds[left] if turn == 0 else kinds[turn % len(kinds)]
            key, value = _SPOIL[kind](key, value)
            self._planted.keys[kind].append(key)
            return key, value

        return spoil


def _put(**fields: Any) -> Callable[[str, Json], tuple[str, Json]]:
    return lambda key, value: (key, merged(value, fields))


def _missing_in_child(key: str, value: Json) -> tuple[str, Json]:
    first, *rest = value["items"]
    return key, {**value, "items": [{name: first[name] for name in first if name != "quantity"}, *rest]}


_SPOIL: Final[dict[Dirt, Callable[[str, Json], tuple[str, Json]]]] = {
    Dirt.NUMBER_AS_TEXT: lambda key, value: (key, merged(value, {"price": {"amount": str(value["price"]["amount"])}})),
    Dirt.TEXT_AS_NUMBER: lambda key, value: (key, {**value, "sku": int(value["sku"][3:])}),
    Dirt.OVERFLOW: _put(stock=3_000_000_000),
    Dirt.THIRD_DECIMAL: lambda key, value: (key, {**value, "total": value["total"] + "5"}),
    Dirt.DATE_SPELLING: lambda key, value: (key, {**value, "createdAt": _spelled(value["createdAt"])}),
    Dirt.IMPOSSIBLE_DATE: _put(createdAt="2026-02-30T12:00:00.000Z"),
    Dirt.MISSING_FIELD: _put(siteId=None),
    Dirt.NO_ARRAY: lambda key, value: (key, {**value, "items": value["items"][0]}),
    Dirt.MISSING_IN_CHILD: _missing_in_child,
    Dirt.DANGLING_REFERENCE: _put(siteId="s-gone"),
    Dirt.UNKNOWN_FIELD: _put(addedBy="import of 2024"),
    Dirt.SECONDS_AS_TEXT: lambda key, value: (key, {**value, "at": str(value["at"] // 1000)}),
    Dirt.UNTRIMMED_EMAIL: lambda key, value: (key, {**value, "email": f" {value['email'].title()} "}),
}


def _spelled(moment: str) -> str:
    day, clock = moment.split("T")
    year, month, number = day.split("-")
    return f"{number}/{month}/{year} {clock[:5]}"


def _client(number: int) -> str:
    return f"c{number:05d}"


def _catalog(number: int) -> str:
    return f"k{number:05d}"


def _site(number: int) -> str:
    return f"s{number:06d}"


def _product(number: int) -> str:
    return f"p{number:07d}"


def _order(number: int) -> str:
    return f"o{number:08d}"
