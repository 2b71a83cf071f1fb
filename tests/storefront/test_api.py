"""What the shop answers over HTTP to those who ask for nonsense, or for the same thing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from replank.testing.services import Issuer

from .conftest import Serve

PRODUCT = {"catalog_id": "k1", "sku": "A-1", "name": "Oak Lamp", "price": "19.90", "currency": "EUR", "stock": 3}


@pytest_asyncio.fixture
async def client(serve: Serve, issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {issuer.token()}"}
    async with serve() as url, httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as asking:
        yield asking


async def put(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
    answer = await client.put(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest_asyncio.fixture
async def shop(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client of a shop with one client, one catalog, one site and one product."""
    await put(client, "/v1/clients/c1", {"name": "Lindqvist"})
    await put(client, "/v1/catalogs/k1", {"name": "Aurora"})
    await put(client, "/v1/sites/s1", {"client_id": "c1", "catalog_id": "k1", "name": "Twenty years"})
    await put(client, "/v1/products/p1", PRODUCT)
    return client


async def test_nobody_is_served_without_a_token(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/products/p1", headers={"authorization": ""})
    assert answer.status_code == 401


async def test_an_order_that_is_sent_twice_with_one_key_is_placed_once(
    shop: httpx.AsyncClient, kv: asyncpg.Connection
) -> None:
    item = {"product_id": "p1", "name": "Oak Lamp", "quantity": 2, "price": "19.90"}
    body = {"site_id": "s1", "currency": "EUR", "items": [item]}
    first, again, other = [
        await shop.post("/v1/clients/c1/orders", json=body, headers={"idempotency-key": key}) for key in "xxy"
    ]
    assert first.status_code == again.status_code == other.status_code == 201
    assert first.json() == again.json()
    assert first.json()["total"] == "39.80"
    assert other.json()["id"] != first.json()["id"]
    assert await kv.fetchval("select count(*) from kv_store where key like 'order:%'") == 2


async def test_a_change_keeps_the_fields_of_a_record_that_the_shop_does_not_know(
    shop: httpx.AsyncClient, kv: asyncpg.Connection
) -> None:
    await kv.execute("""update kv_store set value = value || '{"engraving": {"max": 12}}' where key = 'product:p1'""")
    await put(shop, "/v1/products/p1", {**PRODUCT, "stock": 2})
    assert await kv.fetchval("select value -> 'engraving' ->> 'max' from kv_store where key = 'product:p1'") == "12"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/clients/nobody/sites", "client-not-found"),
        ("/v1/catalogs/nothing/products", "catalog-not-found"),
        ("/v1/sites/nowhere/products", "site-not-found"),
        ("/v1/products/nothing", "product-not-found"),
        ("/v1/clients/c1/orders/nothing", "order-not-found"),
    ],
)
async def test_what_is_not_there_is_not_found(shop: httpx.AsyncClient, path: str, kind: str) -> None:
    answer = await shop.get(path)
    assert (answer.status_code, answer.json()["type"]) == (404, f"urn:replank:problem:{kind}")


async def test_what_contradicts_what_is_there_is_refused_and_changes_nothing(
    shop: httpx.AsyncClient, kv: asyncpg.Connection
) -> None:
    await put(shop, "/v1/catalogs/k2", {"name": "Nordic"})
    await put(shop, "/v1/clients/c2", {"name": "Tanaka"})
    before = await kv.fetch("select * from kv_store order by key")
    item = {"product_id": "p1", "name": "Oak Lamp", "quantity": 1, "price": "19.90"}
    order = {"site_id": "s1", "currency": "EUR", "items": [item]}
    site = {"client_id": "c2", "catalog_id": "k1", "name": "Twenty years"}
    refused = [
        (await shop.put("/v1/products/p1", json={**PRODUCT, "catalog_id": "k2"}), 409),
        (await shop.put("/v1/products/p2", json={**PRODUCT, "catalog_id": "k9"}), 404),
        (await shop.put("/v1/sites/s1", json=site), 409),
        (await shop.post("/v1/clients/c2/orders", json=order), 409),
        (await shop.post("/v1/clients/c1/orders", json={**order, "site_id": "s9"}), 404),
        (await shop.put("/v1/sites/s1/exclusions/p9", json={}), 404),
        (await shop.post("/v1/sites/s9/events", json={"type": "search"}), 404),
        (await shop.put("/v1/clients/c1/orders/o9/status", json={"status": "paid"}), 404),
        (await shop.put("/v1/products/p1", json={**PRODUCT, "price": "19.905"}), 422),
        (await shop.put("/v1/products/p1", json={**PRODUCT, "stock": 2**31}), 422),
        (await shop.put("/v1/products/a:b", json=PRODUCT), 422),
        (await shop.get("/v1/products?q=ab"), 422),
        (await shop.get("/v1/clients/c1/reports/2026-13"), 422),
        (await shop.get("/v1/products/p1", headers={"x-replank-token": "no token"}), 400),
    ]
    assert [answer.status_code for answer, _ in refused] == [status for _, status in refused]
    assert await kv.fetch("select * from kv_store order by key") == before


async def test_a_record_that_is_not_what_the_shop_writes_is_said_to_be_so(
    shop: httpx.AsyncClient, kv: asyncpg.Connection
) -> None:
    await kv.execute("""update kv_store set value = value || '{"stock": "3"}' where key = 'product:p1'""")
    answer = await shop.get("/v1/products/p1")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:replank:problem:unreadable-record")
    assert "stock" in answer.json()["detail"]
    assert (await shop.get("/v1/catalogs/k1/products")).json() == []
