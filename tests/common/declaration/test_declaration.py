"""A contract is declared once, again when it has changed, and as what its readers may rely on."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, create_model

from replank import declaration, outbox
from replank.contracts.declarations import EventContractDeclared, canonical, schema_sha256
from replank.contracts.documents import reader_schema
from replank.declaration import DeclarationMismatch
from replank.events import Event
from replank.outbox.relay import Relay
from replank.testing.services import appended, events_of


class Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sku: str
    price: Decimal


class Ordered(Event, type="test.declared.ordered.v1", topic="test.declared"):
    """Somebody ordered something."""

    order_id: UUID
    lines: list[Line]
    notes: dict[str, str] = Field(default_factory=dict, examples=[{"additionalProperties": False}])


def sent(**later: Any) -> type[Event]:
    """A contract as it is in one release, and with fields that it has ``later``."""
    named = {"type": "test.declared.sent.v1", "topic": "test.declared"}
    fields: dict[str, Any] = {"order_id": UUID, **later}
    return create_model("Sent", __base__=Event, __cls_kwargs__=named, __module__=__name__, **fields)


@pytest_asyncio.fixture
async def db(pool: asyncpg.Pool) -> asyncpg.Pool:
    async with pool.acquire() as conn:
        await outbox.install(conn)
        await declaration.install(conn)
    return pool


async def declare(db: asyncpg.Pool, *contracts: type[Event]) -> list[str]:
    async with db.acquire() as conn, conn.transaction():
        return await declaration.declare(conn, contracts, service="shop")


async def declared(db: asyncpg.Pool) -> list[EventContractDeclared]:
    async with db.acquire() as conn:
        said = await appended(conn)
    assert all(isinstance(event, EventContractDeclared) and event.contract == key for key, event in said)
    return [event for _, event in said if isinstance(event, EventContractDeclared)]


async def test_a_contract_is_declared_once_and_again_when_it_has_changed(db: asyncpg.Pool) -> None:
    before, after = sent(), sent(insured=(bool, False))
    assert await declare(db, Ordered, before) == ["test.declared.ordered.v1", "test.declared.sent.v1"]
    assert await declare(db, Ordered, before) == []
    assert await declare(db, Ordered, after) == ["test.declared.sent.v1"]
    assert await declare(db, Ordered, after) == []
    # Back to the release before: the one that started last has the word.
    assert await declare(db, before) == ["test.declared.sent.v1"]
    said = await declared(db)
    assert [event.contract for event in said] == ["test.declared.ordered.v1", *["test.declared.sent.v1"] * 3]
    assert [b'"insured"' in canonical(event.json_schema) for event in said[1:]] == [False, True, False]
    assert {(event.service, event.topic) for event in said} == {("shop", "test.declared")}


async def test_processes_that_start_at_once_declare_once(db: asyncpg.Pool) -> None:
    contracts: list[type[Event]] = [Ordered, sent()]
    answers = await asyncio.gather(*(declare(db, *contracts[::step]) for step in (1, -1, 1, -1, 1, -1)))
    assert sorted(found for answer in answers for found in answer) == sorted(one.event_type for one in contracts)
    assert len(await declared(db)) == 2


async def test_what_was_rolled_back_was_not_declared(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        assert await declaration.declare(conn, [Ordered], service="shop") == ["test.declared.ordered.v1"]
        await transaction.rollback()
        with pytest.raises(outbox.NotInTransaction):
            await declaration.declare(conn, [Ordered], service="shop")
    assert await declare(db, Ordered) == ["test.declared.ordered.v1"]


async def test_a_database_that_remembers_nothing_is_refused_with_what_to_do(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        await outbox.install(conn)
    with pytest.raises(DeclarationMismatch, match="migrate pre"):
        await declare(pool, Ordered)


async def test_what_is_declared_is_what_a_reader_may_rely_on(db: asyncpg.Pool) -> None:
    await declare(db, Ordered)
    (said,) = await declared(db)
    assert said.sha256 == schema_sha256(said.json_schema)
    assert json.loads(canonical(said.json_schema)) == reader_schema(Ordered) == said.json_schema
    reader = Draft202012Validator(said.json_schema)
    Draft202012Validator.check_schema(said.json_schema)
    value = json.loads(Ordered(order_id=uuid4(), lines=[Line(sku="a", price=Decimal("1.5"))]).to_value())
    assert reader.is_valid(value)
    grown = {**value, "later": 1, "lines": [{**value["lines"][0], "later": 2}]}
    assert reader.is_valid(grown)
    assert not reader.is_valid({**value, "lines": [{"sku": "a"}]})
    # What describes the members of a map stays, and what only looks like a schema is left alone.
    assert not reader.is_valid({**value, "notes": {"gift": 1}})
    assert reader_schema(Ordered)["properties"]["notes"]["examples"] == [{"additionalProperties": False}]


async def test_a_declaration_reaches_whoever_reads_the_topic(db: asyncpg.Pool, postgres_dsn: str, kafka: str) -> None:
    await declare(db, Ordered)
    (said,) = await declared(db)
    async with Relay(postgres_dsn, kafka):
        (read,) = await events_of(kafka, EventContractDeclared, lambda event: event.declared_at == said.declared_at)
    assert read == said
