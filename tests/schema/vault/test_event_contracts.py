"""What services declare is published, and who uses it stands in the way of what would break them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import pytest

from replank.contracts.declarations import EventContractDeclared, EventContractUsed, schema_sha256
from replank.testing import eventually
from replank.testing.servers import fresh_name
from replank.testing.services import Issuer, emit, living
from replank_schema.application import compose
from tests.schema.vault.conftest import Configure
from tests.schema.vault.served import ADA, problem

FIRST: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"order_id": {"type": "string"}, "total": {"type": "number"}},
    "required": ["order_id", "total"],
}


class Shop:
    """A service of somebody else's, whose contract nobody else has."""

    def __init__(self, kafka: str) -> None:
        self._kafka = kafka
        self.contract = f"shop.{fresh_name()}.paid.v1"

    async def declare(self, schema: dict[str, Any], **other: Any) -> None:
        declared = EventContractDeclared(
            contract=self.contract,
            topic="shop.orders",
            service="shop",
            json_schema=schema,
            sha256=other.get("sha256", schema_sha256(schema)),
            declared_at=datetime.now(UTC),
        )
        await emit(self._kafka, declared, key=self.contract)

    async def used(self, by: str, events: int) -> None:
        now = datetime.now(UTC)
        used = EventContractUsed(
            contract=self.contract, consumer=by, events=events, first_at=now - timedelta(minutes=1), last_at=now
        )
        await emit(self._kafka, used, key=self.contract)


@pytest.fixture
def shop(kafka: str) -> Shop:
    return Shop(kafka)


async def published(client: httpx.AsyncClient, shop: Shop, version: int) -> dict[str, Any]:
    """The contract's schema, once it has that version."""

    async def is_published() -> dict[str, Any]:
        answer = await client.get(f"/schemavault/by-name/events/{shop.contract}")
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        assert shown["version"] == version
        return shown

    return await eventually(is_published, f"version {version} is published", within=20)


async def test_a_declared_contract_is_published_once_and_its_changes_are_versions(
    configure: Configure, issuer_of_tokens: Issuer, shop: Shop
) -> None:
    async with living(compose(configure()), issuer_of_tokens.token(ADA)) as client:
        await shop.declare(FIRST)
        await shop.declare(FIRST)
        shown = await published(client, shop, 1)
        assert (shown["owner"], shown["tags"], shown["metadata"]["topic"]) == (
            "service:shop",
            ["event-contract"],
            "shop.orders",
        )
        content = await client.get(f"/schemavault/by-name/events/{shop.contract}/content")
        assert content.json() == FIRST
        grown = {**FIRST, "properties": {**FIRST["properties"], "currency": {"type": "string"}}}
        await shop.declare(grown)
        shown = await published(client, shop, 2)
        versions = (await client.get(f"/schemavault/{shown['id']}/versions")).json()["items"]
        assert [(line["version"], line["forward"]) for line in versions] == [(2, True), (1, None)]


async def test_those_who_use_a_contract_are_counted_and_named_to_whoever_would_break_them(
    configure: Configure, issuer_of_tokens: Issuer, shop: Shop
) -> None:
    async with living(compose(configure()), issuer_of_tokens.token(ADA)) as client:
        await shop.used("billing", 3)  # may be seen before the contract is
        await shop.declare(FIRST)
        await shop.used("billing", 4)
        shown = await published(client, shop, 1)
        url = f"/schemavault/{shown['id']}"

        async def counted() -> bool:
            users = (await client.get(f"{url}/consumers")).json()["consumers"]
            assert [(user["consumer"], user["events"]) for user in users] == [("billing", 7)]
            return True

        await eventually(counted, "both uses are counted", within=20)
        refused = problem(await client.delete(url), 409, "still-used")
        assert [user["consumer"] for user in refused["consumers"]] == ["billing"]


async def test_a_declaration_that_is_not_what_it_says_publishes_nothing_and_holds_up_nobody(
    configure: Configure, issuer_of_tokens: Issuer, shop: Shop, kafka: str
) -> None:
    other = Shop(kafka)
    async with living(compose(configure()), issuer_of_tokens.token(ADA)) as client:
        await shop.declare(FIRST, sha256="0" * 64)
        await other.declare(FIRST)
        await published(client, other, 1)
        problem(await client.get(f"/schemavault/by-name/events/{shop.contract}"), 404, "schema-not-found")
