"""The command does on real servers what it says, and says what is wrong in one line."""

from __future__ import annotations

import json
import os
from uuid import uuid4

import asyncpg
import pytest

from replank import Event, inbox, outbox
from replank.outbox.relay import Relay
from replank.telemetry.jaeger import Jaeger
from tests.cli.command import replank


class Shipped(Event, type="shop.parcel.shipped.v1", topic="replank.test.cli"):
    parcel: str


async def test_install_verify_and_status_of_an_outbox_in_any_database(postgres_dsn: str) -> None:
    before = await replank("outbox", "verify", "--dsn", postgres_dsn)
    assert before.code == 1
    assert "not_installed" in before.out

    installed = await replank("outbox", "install", "--shards", "2", "--service", "shop", REPLANK_SHOP_DSN=postgres_dsn)
    assert installed.code == 0, installed.error

    after = await replank("outbox", "verify", "--json", "--dsn", postgres_dsn)
    assert {finding["code"] for finding in json.loads(after.out)} == {"never_ran"}

    conn = await asyncpg.connect(postgres_dsn)
    async with conn.transaction():
        await outbox.append(conn, Shipped(parcel="p1"), key="p1")
    await conn.close()
    status = await replank("outbox", "status", "--json", "--dsn", postgres_dsn)
    found = json.loads(status.out)
    assert found["depth"] == 1
    assert len(found["shards"]) == 2


async def test_another_number_of_shards_is_refused_with_what_to_do(postgres_dsn: str) -> None:
    assert (await replank("outbox", "install", "--dsn", postgres_dsn)).code == 0
    refused = await replank("outbox", "install", "--shards", "3", "--dsn", postgres_dsn)
    assert refused.code == 1
    assert "error: the outbox has 1 shards, not 3" in refused.error
    assert "what to do:" in refused.error


async def test_tail_shows_events_without_their_payload(postgres_dsn: str, kafka: str, topic: str) -> None:
    conn = await asyncpg.connect(postgres_dsn)
    await outbox.install(conn)
    secret = uuid4().hex
    async with conn.transaction():
        event_id = await conn.fetchval(
            "select replank_outbox.append($1, 'p1', 'shop.parcel.shipped.v1', $2)",
            topic,
            json.dumps({"p": secret}).encode(),
        )
    await conn.close()
    async with Relay(postgres_dsn, kafka):
        tailed = await replank("events", "tail", topic, "--beginning", "--limit", "1", "--json", REPLANK_KAFKA=kafka)
    shown = json.loads(tailed.out)
    assert shown["id"] == str(event_id)
    assert shown["key"] == "p1"
    assert secret not in tailed.out

    whole = await replank(
        "events", "tail", topic, "--beginning", "--no-follow", "--values", "--json", REPLANK_KAFKA=kafka
    )
    assert json.loads(whole.out)["value"] == {"p": secret}


async def test_a_missing_topic_and_a_dead_broker_are_one_clear_line(kafka: str) -> None:
    missing = await replank("events", "tail", "no.such.topic", "--no-follow", "--kafka", kafka)
    assert missing.code == 1
    assert "has no topic no.such.topic" in missing.error
    dead = await replank("events", "tail", "--kafka", "127.0.0.1:1")
    assert dead.code == 1
    assert "error: cannot reach Kafka at 127.0.0.1:1" in dead.error
    assert "Traceback" not in dead.error


async def test_a_flag_is_set_shown_and_deleted_with_its_history(postgres_dsn: str) -> None:
    conn = await asyncpg.connect(postgres_dsn)
    await outbox.install(conn)
    await conn.close()
    dsn = ("--dsn", postgres_dsn)
    early = await replank("flags", "list", *dsn)
    assert early.code == 1
    assert "replank flags install" in early.error
    assert (await replank("flags", "install", *dsn)).code == 0
    assert (
        await replank("flags", "set", "new-checkout", "true", "--rollout", "25", "--reason", "trial", *dsn)
    ).code == 0
    shown = json.loads((await replank("flags", "get", "new-checkout", *dsn)).out)
    assert (shown["value"], shown["rollout"], shown["reason"]) == (True, 25, "trial")
    assert (await replank("flags", "delete", "new-checkout", *dsn)).code == 0
    assert (await replank("flags", "get", "new-checkout", *dsn)).code == 1
    history = json.loads((await replank("flags", "history", "new-checkout", "--json", *dsn)).out)
    assert [entry["deleted"] for entry in history] == [True, False]


@pytest.mark.parametrize("value", ["blue", "null", "{", ""])
async def test_a_flag_value_that_is_no_json_value_is_refused_before_anything_is_asked(value: str) -> None:
    refused = await replank("flags", "set", "colour", value, "--dsn", "postgresql://127.0.0.1:1/none")
    assert refused.code == 1
    assert "what to do" in refused.error
    assert "Postgres" not in refused.error


async def test_dead_letters_of_a_database_without_any_are_an_empty_list(postgres_dsn: str) -> None:
    conn = await asyncpg.connect(postgres_dsn)
    await outbox.install(conn)
    await inbox.install(conn)
    await conn.close()
    assert json.loads((await replank("dlq", "list", "--json", "--dsn", postgres_dsn)).out) == []
    nothing = await replank("dlq", "redrive", "--consumer", "shop", "--dry-run", "--dsn", postgres_dsn)
    assert nothing.code == 0
    assert "nothing to redrive" in nothing.out
    missing = await replank("dlq", "show", "7", "--dsn", postgres_dsn)
    assert missing.code == 1
    assert "there is no dead letter 7" in missing.error


async def test_without_a_database_or_a_stack_the_command_says_what_to_give() -> None:
    nothing = await replank("outbox", "status")
    assert nothing.code == 1
    assert "--dsn" in nothing.error
    service = await replank("dlq", "list", "--service", "archiver")
    assert "REPLANK_ARCHIVER_DSN is not set" in service.error
    dead = await replank("outbox", "status", "--dsn", "postgresql://user:hush@127.0.0.1:1/none")
    assert dead.code == 1
    assert "cannot connect to Postgres" in dead.error
    assert "hush" not in dead.error + dead.out


async def test_a_trace_is_drawn_and_a_wrong_id_is_refused(jaeger: Jaeger, otlp_endpoint: str) -> None:
    refused = await replank("trace", "show", "abc", "--jaeger", "http://127.0.0.1:1")
    assert refused.code == 1
    assert "is not a trace id" in refused.error
    unknown = await replank("trace", "show", uuid4().hex, "--jaeger", os.environ["REPLANK_TEST_JAEGER"])
    assert unknown.code == 1
    assert "no span of the trace" in unknown.error
