"""The costs of a migration that do not depend on how fast the machine is, held against `bench/baseline.json`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest_asyncio

import bench
from bench import postgres
from bench.kafka import EndOffsets, reader
from bench.migrate import questions
from bench.migrate.carrier import carrying
from bench.migrate.dual import sound_keys, write
from bench.migrate.lag import compare, moved
from bench.migrate.shop import Move, Shop, connected, installed, seeded
from bench.postgres import Server, churn
from replank.migrate import topics
from replank.migrate.backfill import Backfill
from replank.outbox.relay import Relay
from replank.testing.wait import eventually
from replank_storefront.generate import Sizes

RECORDS = 10_000
ORDERS = 2_000
WRITES = 1_000
CARRIED = 6_000
BASELINE = json.loads((Path(bench.__file__).parent / "baseline.json").read_text())["migrate"]


@pytest_asyncio.fixture
async def server(postgres_server: str) -> AsyncIterator[Server]:
    async with postgres.server(postgres_server) as server:
        yield server


@pytest_asyncio.fixture
async def shop(server: Server) -> AsyncIterator[Shop]:
    async with seeded(server, Sizes.of(RECORDS, largest_client_orders=ORDERS)) as shop:
        yield shop


def within_baseline(**measured: float) -> None:
    over = {name: value for name, value in measured.items() if value > BASELINE[name]}
    assert not over, f"over the baseline {BASELINE}: {over}"


async def count_nested(*dsns: str) -> None:
    """Let the server count, for sessions to come, also what functions and triggers execute."""
    for dsn in dsns:
        async with connected(dsn) as connection:
            database = urlsplit(dsn).path.lstrip("/")
            await connection.execute(f"alter database \"{database}\" set pg_stat_statements.track = 'all'")


async def test_a_moved_record_costs_no_more_than_the_baseline(server: Server, shop: Shop) -> None:
    async with installed(server, shop) as move:
        await count_nested(shop.dsn, move.target)
        before = [await server.counters(dsn) for dsn in (shop.dsn, move.target)]
        done = await Backfill(mapping=move.mapping, source=shop.dsn, target=move.target).run()
        after = [await server.counters(dsn) for dsn in (shop.dsn, move.target)]
        assert done.scanned == done.compared == shop.sizes.total
        assert done.filled > shop.sizes.total * 0.95
        dead = await churn(move.target, "public", "%")
        # The tables that were asked about are those that were filled.
        async with connected(move.target) as tables:
            rows = await tables.fetchval("select sum(n_tup_ins) from pg_stat_user_tables where schemaname = 'public'")
        assert rows > done.filled
    statements = sum((now - then).statements for now, then in zip(after, before, strict=True))
    within_baseline(backfill_statements_per_record=statements / done.scanned, backfill_dead_tuples=dead.named)


async def test_each_question_takes_as_many_queries_as_it_should(server: Server, shop: Shop) -> None:
    async with installed(server, shop) as move:
        await Backfill(mapping=move.mapping, source=shop.dsn, target=move.target).run()
        await questions.index(move)
        answers = {
            question.name: await questions.ask(server, move, question)
            for question in await questions.questions(move)
            if not question.away
        }
    # The way that is left behind must be as bad as it is said to be.
    assert {name: answer.old_queries for name, answer in answers.items()} == {
        "list": 1_001,
        "report": ORDERS + 1,
        "search": 1,
    }
    within_baseline(**{f"{name}_queries": answer.new_queries for name, answer in answers.items()})


async def test_a_captured_write_costs_no_more_than_the_baseline(server: Server, shop: Shop) -> None:
    async with installed(server, shop) as move:
        await count_nested(shop.dsn)
        keys = await sound_keys(move.mapping.name, shop.dsn, move.target, WRITES)
        before = await server.counters(shop.dsn)
        async with connected(shop.dsn) as connection:
            for number, key in enumerate(keys):
                await write(connection, key, number)
        written = await server.counters(shop.dsn) - before
        assert await captured(move) == WRITES
    within_baseline(statements_per_captured_write=written.statements / WRITES)


async def test_applying_a_captured_write_costs_no_more_than_the_baseline(
    server: Server, shop: Shop, kafka: str
) -> None:
    async with moved(server, shop, kafka) as move, reader(kafka, move.mapping.change_topic) as consumer:
        await count_nested(move.target)
        places = (move.mapping.name, shop.dsn, move.target)
        keys = await sound_keys(*places, CARRIED)
        async with connected(shop.dsn) as connection:
            await connection.execute("update kv_store set value = value || '{\"seen\": 1}' where key = any($1)", keys)
        assert await captured(move) == CARRIED
        ends = EndOffsets(consumer)

        async def published() -> bool:
            return (await ends.now()).offsets == CARRIED

        # All of them first: how large batches are must not depend on who is faster.
        async with Relay(shop.dsn, kafka):
            await eventually(published, "every change is published", within=60)
        before = await server.counters(move.target)
        async with carrying(*places, kafka):
            # Kafka is asked, because questions to the target would be counted.
            assert await topics.caught_up(kafka, move.mapping.name, "forward", within=60)
            applied = await server.counters(move.target) - before
        await compare(move)
    within_baseline(apply_statements_per_write=applied.statements / CARRIED)


async def captured(move: Move) -> int:
    async with connected(move.shop.dsn) as connection:
        count: int = await connection.fetchval(
            "select count(*) from replank_outbox.event where topic = $1", move.mapping.change_topic
        )
    return count
