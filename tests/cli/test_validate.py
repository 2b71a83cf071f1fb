"""`replank events validate` finds what does not fit its contract, says where, and never shows what is in it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from replank import Event
from replank.contracts.documents import reader_schema
from replank.contracts.fields import Actor, Instant
from tests.cli.answers import answering, problem
from tests.cli.command import Answer, replank, running

SECRET = "somebody's secret"


class Ordered(Event, type="shop.order.placed.v1", topic="shop.orders"):
    order_id: UUID
    placed_by: Actor
    placed_at: Instant
    coupon: Actor | None = None


ORDER = {"order_id": str(uuid4()), "placed_by": "user:ada", "placed_at": "2026-11-21T12:00:00.5+01:00"}
PLACED = Ordered.event_type


class Sender:
    """Sends records to one partition, as a relay would unless told otherwise."""

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self.topic = topic
        self._producer = producer

    async def __call__(
        self, value: Any, event_type: str = PLACED, headers: Mapping[str, str | None] | None = None
    ) -> None:
        """``headers`` replace those of a good event; one that is None is left out."""
        attributes: dict[str, str | None] = {
            "ce_specversion": "1.0",
            "ce_id": str(uuid4()),
            "ce_type": event_type,
            "ce_source": "shop",
            "ce_time": "2026-11-21T12:00:00Z",
            "content-type": "application/json",
            **(headers or {}),
        }
        await self._producer.send_and_wait(
            self.topic,
            value if isinstance(value, bytes) or value is None else json.dumps(value).encode(),
            key=b"k",
            partition=0,
            headers=[(name, text.encode()) for name, text in attributes.items() if text is not None],
        )


@pytest_asyncio.fixture
async def send(kafka: str, topic: str) -> AsyncIterator[Sender]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        yield Sender(producer, topic)
    finally:
        await producer.stop()


@asynccontextmanager
async def vault(kafka: str, **contracts: Any) -> AsyncIterator[dict[str, str]]:
    """The environment that leads the command to a vault with these contracts, named by the first word of their type."""
    published = {f"/schemavault/by-name/events/{name}.v1/content": schema for name, schema in contracts.items()}
    published[f"/schemavault/by-name/events/{PLACED}/content"] = reader_schema(Ordered)

    async def answer(request: Request) -> Response:
        if request.headers["authorization"] != "Bearer a-token":
            return problem(401, "unauthenticated", "the token is not valid")
        if request.url.path == "/schemavault":
            return JSONResponse({"items": [], "next": None})
        if request.url.path in published:
            return JSONResponse(published[request.url.path])
        return problem(404, "schema-not-found", "there is no schema of this name")

    async with answering(answer) as there:
        yield {**there, "REPLANK_KAFKA": kafka}


async def validate(there: dict[str, str], topic: str, *more: str) -> Answer:
    return await replank("events", "validate", topic, "--beginning", "--no-follow", *more, **there)


async def test_events_that_fit_their_contract_are_valid_whatever_a_newer_writer_added(kafka: str, send: Sender) -> None:
    await send(ORDER)
    await send({**ORDER, "later": {"any": "thing"}, "coupon": None})
    await send({"any": "thing"}, "shop.order.unheard-of.v1")
    async with vault(kafka) as there:
        found = await validate(there, send.topic, "--json")
    assert (found.code, found.error) == (0, "")
    assert json.loads(found.out) == {
        "types": [
            {"type": PLACED, "events": 2, "valid": 2, "invalid": 0, "unknown": 0},
            {"type": "shop.order.unheard-of.v1", "events": 1, "valid": 0, "invalid": 0, "unknown": 1},
        ],
        "faults": [],
        "faulty": 0,
    }


@pytest.mark.parametrize(
    ("value", "headers", "said"),
    [
        ({**ORDER, "placed_by": SECRET}, {}, "value/placed_by: pattern "),
        ({**ORDER, "order_id": SECRET}, {}, 'value/order_id: format "uuid"'),
        ({**ORDER, "placed_at": "2026-11-21T12:00:00"}, {}, 'value/placed_at: format "date-time"'),
        ({**ORDER, "placed_at": "2026-02-30T12:00:00Z"}, {}, 'value/placed_at: format "date-time"'),
        ({**ORDER, "coupon": SECRET}, {}, "value/coupon: pattern "),
        ({"order_id": ORDER["order_id"]}, {}, "value: required placed_by, placed_at"),
        ([SECRET], {}, 'value: type "object"'),
        (b'{"order_id": NaN}', {}, "value: is no JSON"),
        (b"somebody's secret", {}, "value: is no JSON"),
        (b"\xff\xfe", {}, "value: is no JSON"),
        (None, {}, "value: is no JSON"),
        (b"[" * 200_000, {}, "value: nested too deeply"),
        (ORDER, {"ce_id": SECRET}, 'headers/ce_id: format "uuid"'),
        (ORDER, {"ce_time": "yesterday"}, 'headers/ce_time: format "date-time"'),
        (ORDER, {"ce_specversion": "0.3"}, 'headers/ce_specversion: const "1.0"'),
        (ORDER, {"content-type": "text/plain"}, 'headers/content-type: const "application/json"'),
        (ORDER, {"ce_source": None}, "headers: required ce_source"),
        (ORDER, {"ce_type": None}, "headers: required ce_type"),
        (ORDER, {"ce_type": "../../etc/passwd", "ce_source": None}, "headers: required ce_source"),
    ],
)
async def test_what_does_not_fit_is_said_with_its_place_and_rule_and_without_its_value(
    kafka: str, send: Sender, value: Any, headers: dict[str, str | None], said: str
) -> None:
    await send(ORDER)
    await send(value, headers=headers)
    async with vault(kafka) as there:
        found = await validate(there, send.topic)
    assert found.code == 1, found.error
    fault = next(line for line in found.out.splitlines() if f"{send.topic}/0@1" in line)
    assert said in fault
    assert SECRET not in found.out
    assert "Traceback" not in found.error


async def test_faults_are_counted_beyond_those_that_are_shown_and_values_are_shown_on_request(
    kafka: str, send: Sender
) -> None:
    for _ in range(3):
        await send({**ORDER, "placed_by": SECRET, "order_id": 7})
    async with vault(kafka) as there:
        few = await validate(there, send.topic, "--faults", "2", "--values", "--json")
        told = await validate(there, send.topic, "--faults", "4")
    assert (few.code, told.code) == (1, 1)
    found = json.loads(few.out)
    assert found["types"] == [{"type": PLACED, "events": 3, "valid": 0, "invalid": 3, "unknown": 0}]
    assert (found["faulty"], len(found["faults"])) == (6, 2)
    assert {fault["pointer"]: fault["value"] for fault in found["faults"]} == {"/placed_by": SECRET, "/order_id": 7}
    assert "… and 2 more faults" in told.out


async def test_it_reads_as_tail_does(kafka: str, send: Sender) -> None:
    await send(ORDER)
    await send({}, "shop.order.other.v1")
    await send({"broken": True})
    async with vault(kafka) as there:
        other = await validate(there, send.topic, "--type", "shop.order.other.v1", "--json")
        first = await validate(there, send.topic, "--limit", "1", "--json")
    assert other.code == first.code == 0
    assert [tally["type"] for tally in json.loads(other.out)["types"]] == ["shop.order.other.v1"]
    assert [tally["events"] for tally in json.loads(first.out)["types"]] == [1]


async def test_what_was_seen_while_following_is_told_when_somebody_ends_it(kafka: str, send: Sender) -> None:
    await send({**ORDER, "placed_by": SECRET})
    async with (
        vault(kafka) as there,
        running("events", "validate", send.topic, "--beginning", **there, PYTHONUNBUFFERED="1") as process,
    ):
        assert process.stdout is not None
        first = await asyncio.wait_for(process.stdout.readline(), 60)
        assert b"value/placed_by: pattern" in first
        process.send_signal(signal.SIGINT)
        out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1, error
    assert PLACED in out.decode()


async def test_a_contract_that_is_none_is_said_by_name_and_nothing_is_fetched_for_it(kafka: str, send: Sender) -> None:
    fetched: list[str] = []

    async def elsewhere(request: Request) -> Response:
        fetched.append(request.url.path)
        return JSONResponse({})

    async with answering(elsewhere) as other:
        schemas = {
            "document": [1, 2],
            "wrong": {"type": "no such type"},
            "outward": {"$ref": f"{other['REPLANK_SCHEMA_URL']}/order.json"},
        }
        async with vault(kafka, **schemas) as there:
            for name, said in (("document", "no JSON Schema"), ("wrong", "no JSON Schema"), ("outward", "refers to")):
                await send({}, f"{name}.v1")
                refused = await validate(there, send.topic, "--type", f"{name}.v1")
                assert refused.code == 1
                assert f"error: the contract that the vault has as events/{name}.v1" in refused.error
                assert said in refused.error
    assert fetched == []


async def test_without_a_vault_or_a_token_nothing_is_called_valid(kafka: str, send: Sender) -> None:
    await send(ORDER)

    async def no_vault(_: Request) -> Response:
        return problem(404, "not-found", "there is nothing here")

    async with answering(no_vault) as there:
        bare = await validate({**there, "REPLANK_KAFKA": kafka}, send.topic)
    assert bare.code == 1
    assert "the schema service has no vault" in bare.error
    async with vault(kafka) as there:
        refused = await validate({**there, "REPLANK_TOKEN": "another"}, send.topic)
        assert (refused.code, refused.error.splitlines()[0]) == (1, "error: the token is not valid")
        nameless = await validate({"REPLANK_KAFKA": kafka}, send.topic)
        assert nameless.code == 1
        assert "no schema service is named" in nameless.error
        placed = await validate(
            {"REPLANK_KAFKA": kafka, "REPLANK_TOKEN": "a-token"},
            send.topic,
            "--schema-url",
            there["REPLANK_SCHEMA_URL"],
        )
        assert placed.code == 0


async def test_a_long_stream_is_read_to_its_end(kafka: str, send: Sender) -> None:
    await asyncio.gather(*(send(ORDER) for _ in range(500)))
    async with vault(kafka) as there:
        found = await validate(there, send.topic, "--json")
    assert json.loads(found.out)["types"][0]["valid"] == 500
