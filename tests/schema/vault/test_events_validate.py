"""From a service that declares its contracts to a stream that is held against them, over the real vault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import uvicorn
from aiokafka import AIOKafkaProducer

from replank import Event, declaration
from replank.contracts.declarations import EventContractDeclared, canonical
from replank.contracts.documents import reader_schema
from replank.contracts.fields import Actor
from replank.http.server import listening_socket
from replank.service import Service
from replank.testing import eventually
from replank.testing.services import Issuer
from replank_schema.application import compose
from tests.cli.command import replank
from tests.schema.vault.conftest import Configure
from tests.schema.vault.served import ADA


class Placed(Event, type="shop.parcel.sent.v1", topic="shop.orders"):
    """Somebody placed an order."""

    order_id: UUID
    placed_by: Actor


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[str]:
    """The whole service on a port; the URL that leads to it."""
    sock = listening_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(service.app(), ws="none", log_config=None, access_log=False))
    running = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await eventually(lambda: server.started, "the service serves")
        yield "http://{}:{}".format(*sock.getsockname())
    finally:
        server.should_exit = True
        await running


async def place(kafka: str, topic: str, *values: dict[str, str]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        for value in values:
            headers = {
                "ce_specversion": "1.0",
                "ce_id": str(uuid4()),
                "ce_type": Placed.event_type,
                "ce_source": "shop",
                "ce_time": "2026-11-21T12:00:00Z",
                "content-type": "application/json",
            }
            encoded = [(name, text.encode()) for name, text in headers.items()]
            await producer.send_and_wait(topic, json.dumps(value).encode(), headers=encoded)
    finally:
        await producer.stop()


async def test_a_stream_is_held_against_the_contracts_that_services_declared(
    database: asyncpg.Pool, configure: Configure, issuer_of_tokens: Issuer, kafka: str, topic: str
) -> None:
    good = {"order_id": str(uuid4()), "placed_by": "user:ada", "later": "is ignored"}
    await place(kafka, topic, good, {**good, "placed_by": "nobody"})
    async with serving(compose(configure())) as url:
        # As another service does at its start, here with the relay of the one that is there.
        async with database.acquire() as conn, conn.transaction():
            await declaration.declare(conn, [Placed], service="shop")
        there = {
            "REPLANK_SCHEMA_URL": url,
            "REPLANK_TOKEN": issuer_of_tokens.token(ADA),
            "REPLANK_KAFKA": kafka,
        }

        async def validate(*more: str) -> dict[str, dict[str, int]]:
            found = await replank("events", "validate", "--beginning", "--no-follow", "--json", *more, **there)
            assert found.out, found.error
            report = json.loads(found.out)
            assert found.code == (1 if any(tally["invalid"] for tally in report["types"]) else 0)
            return {tally.pop("type"): tally for tally in report["types"]}

        async def is_known() -> bool:
            return (await validate(topic))[Placed.event_type] == {"events": 2, "valid": 1, "invalid": 1, "unknown": 0}

        await eventually(is_known, "the contract is published", within=60)

        async def is_published() -> bool:
            tally = (await validate("replank.contracts", "--type", EventContractDeclared.event_type))[
                EventContractDeclared.event_type
            ]
            return tally["unknown"] == tally["invalid"] == 0

        await eventually(is_published, "what is declared of declarations holds for them all", within=60)
    # What the vault keeps is what was declared, byte for byte.
    digest = await database.fetchval(
        "select sha256 from replank_contracts.declared where contract = $1", Placed.event_type
    )
    kept = "select size from vault_standard.schema where name = $1 and sha256 = $2"
    size = await database.fetchval(kept, f"events/{Placed.event_type}", digest)
    assert size == len(canonical(reader_schema(Placed)))
