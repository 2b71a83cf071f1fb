"""Holding a store, without the shop before it, to what the driver knows to be true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from replank.connection import Connection
from replank.errors import ConfigurationError
from replank_storefront.kv_store import KvStore
from replank_storefront.model import as_json
from replank_storefront.store import Store
from replank_storefront.table_store import TableStore
from replank_storefront.world import Truth, World, differences

_SHOWN: Final = 20


@dataclass(slots=True)
class Audit:
    """What was compared, and what was wrong."""

    compared: int = 0
    doubtful: int = 0
    """Questions that were not asked, because a write was never answered."""
    wrong: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The members, for a report."""
        return {"compared": self.compared, "doubtful": self.doubtful, "wrong": self.wrong, "first": self.first}


async def read_truth(models: Iterable[Path]) -> Truth:
    """The models that drivers have written, as one. Raises `ConfigurationError` for anything else."""
    return Truth(worlds=[world for model in models for world in (await _read(model)).worlds])


async def _read(path: Path) -> Truth:
    try:
        return Truth.model_validate_json(await asyncio.to_thread(path.read_bytes))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigurationError(
            f"{path} is not a driver's model: {error.error_count()} faults", fix="take a file that --model has written"
        ) from None


async def audit(conn: Connection, store: Literal["kv", "tables"], truth: Truth) -> Audit:
    """Ask the store everything that is known to be true, in one snapshot."""
    found = Audit()
    asked: Store = KvStore() if store == "kv" else TableStore()
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        for world in truth.worlds:
            async for kind, question, expected, got in _questions(asked, conn, world):
                if kind in world.doubts:
                    found.doubtful += 1
                    continue
                found.compared += 1
                fields = differences(expected, got)
                if fields:
                    found.wrong += 1
                    if len(found.first) < _SHOWN:
                        found.first.append({"question": question, "different": fields})
    return found


async def _questions(store: Store, conn: Connection, world: World) -> AsyncIterator[tuple[str, str, Any, Any]]:
    client, catalog = world.client.id, world.catalog.id
    yield "sites", f"sites {client}", as_json(world.expected_sites()), as_json(await store.sites(conn, client))
    yield (
        "products",
        f"products {catalog}",
        as_json(world.expected_products()),
        as_json(await store.products(conn, catalog)),
    )
    for site in world.sites:
        yield "offers", f"offer {site}", as_json(world.expected_offer(site)), as_json(await store.offer(conn, site))
    for order in world.orders.values():
        found = await store.order(conn, client, order.id)
        yield "orders", f"order {client} {order.id}", as_json(order), as_json(found)
    for month in world.months():
        expected = world.expected_report(month)
        yield "orders", f"report {client} {month}", as_json(expected), as_json(await store.report(conn, client, month))
    for site, day in world.days():
        counts = await store.daily_counts(conn, site, day)
        yield "events", f"events {site} {day}", as_json(world.expected_counts(site, day)), as_json(counts)
