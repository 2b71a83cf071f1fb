"""Appending: an event exists if and only if its transaction committed, and in commit order for its key."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from uuid import RFC_4122, UUID

import asyncpg
import pytest

from replank import outbox
from replank.outbox import Message
from replank.testing.servers import waiting_for_locks
from replank.testing.wait import eventually
from tests.common.outbox.contracts import NoContract, Paid, Shipped
from tests.common.outbox.events import put, put_many

_ROWS = """
    select event_id::text, topic, key, type, source, subject, value, traceparent, headers::text
      from replank_outbox.event order by id
"""
_APPEND_ORDERED = "select replank_outbox.append_ordered($1, $2, $3, $4, $5)"
_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_HELD = """
    select count(*) from pg_locks
     where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
"""


async def test_an_event_is_a_row_of_the_callers_transaction(db: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "default_source", "test.service")
    async with db.acquire() as conn, conn.transaction():
        event_id = await outbox.append(conn, Paid(number=7), key="order-7", subject="order/7", headers={"tenant": "ä"})
    (row,) = await db.fetch(_ROWS)
    assert tuple(row) == (
        str(event_id),
        "test.outbox.orders",
        "order-7",
        "test.outbox.paid.v1",
        "test.service",
        "order/7",
        b'{"number":7,"padding":""}',
        None,
        '{"tenant": "ä"}',
    )
    assert event_id.version == 7


async def test_a_rollback_leaves_nothing(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await outbox.append(conn, Paid(number=1), key="a")
        await transaction.rollback()
        async with conn.transaction():
            await outbox.append(conn, Paid(number=2), key="a")
            savepoint = conn.transaction()
            await savepoint.start()
            await outbox.append(conn, Paid(number=3), key="a")
            await savepoint.rollback()
    rows = await db.fetch("select value from replank_outbox.event")
    assert [row["value"] for row in rows] == [b'{"number":2,"padding":""}']


async def test_outside_a_transaction_it_is_refused(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        with pytest.raises(outbox.NotInTransaction, match=r"conn\.transaction"):
            await outbox.append(conn, Paid(number=1), key="a")
        with pytest.raises(outbox.NotInTransaction):
            await outbox.append_many(conn, [Message(Paid(number=1), "a")])
    assert await db.fetchval("select count(*) from replank_outbox.event") == 0


async def test_what_cannot_be_published_is_refused_before_it_reaches_the_database(
    db: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with db.acquire() as conn, conn.transaction():
        with pytest.raises(outbox.UnknownContract, match="NoContract"):
            await outbox.append(conn, NoContract(number=1), key="a")
        with pytest.raises(outbox.ValueTooLarge, match="1000000"):
            await outbox.append(conn, Paid(number=1, padding="x" * 1_000_000), key="a")
        with pytest.raises(outbox.InvalidMessage, match="empty"):
            await outbox.append(conn, Paid(number=1), key="")
        with pytest.raises(outbox.InvalidMessage, match="ce_id"):
            await outbox.append(conn, Paid(number=1), key="a", headers={"ce_id": "mine"})
        monkeypatch.setattr(outbox, "max_bytes", 10)
        with pytest.raises(outbox.ValueTooLarge, match="limit is 10"):
            await outbox.append_many(conn, [Message(Paid(number=1), "a")])
        # None of them spoiled the transaction.
        monkeypatch.setattr(outbox, "max_bytes", 1_000_000)
        await outbox.append(conn, Paid(number=2), key="a")
    assert await db.fetchval("select count(*) from replank_outbox.event") == 1


async def test_a_connection_with_its_own_json_codec_appends_the_same(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        await conn.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        try:
            async with conn.transaction():
                await outbox.append(conn, Paid(number=1), key="a", headers={"tenant": "x"})
                await outbox.append_many(conn, [Message(Paid(number=2), "a", headers={"tenant": "x"})])
        finally:
            await conn.reset_type_codec("jsonb", schema="pg_catalog")
    rows = await db.fetch(_ROWS)
    assert [row["headers"] for row in rows] == ['{"tenant": "x"}'] * 2


async def test_a_database_without_an_outbox_is_named_as_such(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        with pytest.raises(outbox.OutboxNotInstalled, match="outbox install"):
            await outbox.append(conn, Paid(number=1), key="a")
        await transaction.rollback()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("'', 'k', 't.v1', 'x'", "must not be empty"),
        ("'t', '', 't.v1', 'x'", "must not be empty"),
        ("'t', 'k', '', 'x'", "must not be empty"),
        ("'t', null, 't.v1', null", "tombstone"),
        ("'t', 'k', 't.v1', repeat('x', 1000000)::bytea", "over the limit of 1000000"),
        ("""'t', 'k', 't.v1', 'x', headers => '[1]'""", "must be a JSON object"),
        ("""'t', 'k', 't.v1', 'x', headers => '{"n": 1}'""", "not a string"),
        ("""'t', 'k', 't.v1', 'x', headers => '{"ce_id": "1"}'""", "reserved"),
    ],
)
async def test_the_sql_function_refuses_the_same(db: asyncpg.Pool, arguments: str, text: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match=text):
        await db.execute(f"select replank_outbox.append({arguments})")


async def test_the_limit_of_the_sql_function_is_a_database_setting(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn, conn.transaction():
        await conn.execute("set local replank_outbox.max_bytes = '2000000'")
        await put(conn, "t", "k", b"x" * 1_500_000)


async def test_many_events_are_one_statement_in_the_given_order(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        statements = []
        conn.add_query_logger(lambda record: statements.append(record.query))
        async with conn.transaction():
            ids = await outbox.append_many(
                conn,
                [
                    Message(Paid(number=1), "b", headers={"n": "1"}),
                    Message(Shipped(number=2), "a", subject="s", source="elsewhere"),
                    Message(Paid(number=3), "b"),
                ],
            )
    assert len([query for query in statements if "append" in query]) == 1
    rows = await db.fetch(_ROWS)
    assert [row["event_id"] for row in rows] == [str(event_id) for event_id in ids]
    assert [row["topic"] for row in rows] == ["test.outbox.orders", "test.outbox.shipments", "test.outbox.orders"]
    assert [(row["key"], row["headers"]) for row in rows] == [("b", '{"n": "1"}'), ("a", None), ("b", None)]
    assert rows[1]["source"] == "elsewhere"


async def test_arrays_of_different_length_and_bad_members_are_refused(db: asyncpg.Pool) -> None:
    with pytest.raises(asyncpg.PostgresError, match="differ in length"):
        await db.execute("select replank_outbox.append_many('{a,b}', '{k}', '{t.v1,t.v1}', array['x','y']::bytea[])")
    with pytest.raises(asyncpg.PostgresError, match="event 2 of append_many has an empty"):
        await db.execute(
            "select replank_outbox.append_many('{a,}', '{k,k}', '{t.v1,t.v1}', array['x','y']::bytea[])".replace(
                "{a,}", '{a,""}'
            )
        )
    with pytest.raises(asyncpg.PostgresError, match="event 1 of append_many has 1000003 bytes"):
        await put_many_large(db)
    assert await db.fetchval("select count(*) from replank_outbox.event") == 0


async def put_many_large(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn:
        await put_many(conn, "t", ["key"], b"x" * 1_000_000)


@pytest.mark.parametrize("keys", [["a"], ["b", "a", "ä"]])
async def test_a_caller_with_an_order_of_its_own_appends_without_locks(db: asyncpg.Pool, keys: list[str]) -> None:
    payloads = [f"of {key}".encode() for key in keys]
    async with db.acquire() as conn, db.acquire() as other, conn.transaction():
        await conn.execute(_APPEND_ORDERED, "t", "t.v1", keys, payloads, _TRACEPARENT)
        assert await conn.fetchval(_HELD) == 0
        async with asyncio.timeout(5):
            await put(other, "t", "a")
    rows = [row for row in await db.fetch(_ROWS) if row["traceparent"]]
    assert [(row["topic"], row["key"], row["type"], row["value"]) for row in rows] == [
        ("t", key, "t.v1", payload) for key, payload in zip(keys, payloads, strict=True)
    ]
    assert {row["traceparent"] for row in rows} == {_TRACEPARENT}
    ids = [UUID(row["event_id"]) for row in rows]
    assert ids == sorted(set(ids))
    assert {(id_.version, id_.variant) for id_ in ids} == {(7, RFC_4122)}
    assert await db.fetchval("select bool_and(bucket = replank_outbox.bucket(key)) from replank_outbox.event")


@pytest.mark.parametrize(
    ("topic", "keys", "sizes", "text"),
    [
        ("", ["k"], [1], "must not be empty"),
        ("t", ["k", ""], [1, 1], "must not be empty"),
        ("t", ["k", "l"], [1], "one payload a key"),
        ("t", ["k", "l"], [1, 1_000_000], "event 2 of append_ordered has 1000001 bytes"),
    ],
)
async def test_what_cannot_be_published_is_refused_there_too(
    db: asyncpg.Pool, topic: str, keys: list[str], sizes: list[int], text: str
) -> None:
    with pytest.raises(asyncpg.PostgresError, match=text):
        await db.execute(_APPEND_ORDERED, topic, "t.v1", keys, [b"x" * size for size in sizes], None)
    # All together may be larger than one.
    await db.execute(_APPEND_ORDERED, "t", "t.v1", ["k", "l"], [b"x" * 600_000] * 2, None)


async def test_two_transactions_with_one_key_run_one_after_the_other(db: asyncpg.Pool) -> None:
    async with db.acquire() as first, db.acquire() as second, db.acquire() as watcher:
        opened = first.transaction()
        await opened.start()
        one = await put(first, "t", "k")
        waiting = asyncio.create_task(put(second, "t", "k"))
        await eventually(lambda: waiting_for_locks(watcher), "the second waits for the key")
        assert not waiting.done()
        await opened.commit()
        two = await waiting
        other = await put(second, "t", "other")
    assert [row["event_id"] for row in await db.fetch(_ROWS)] == [one, two, other]


async def test_other_keys_other_topics_and_no_key_wait_for_nobody(db: asyncpg.Pool) -> None:
    async with db.acquire() as first, db.acquire() as second, first.transaction():
        await put(first, "t", "k")
        await put(first, "t", None)
        async with asyncio.timeout(5):
            await put(second, "t", "other")
            await put(second, "u", "k")
            await put(second, "t", None)


async def test_calls_with_the_same_keys_in_opposite_order_do_not_deadlock(db: asyncpg.Pool) -> None:
    keys = [f"key-{number}" for number in range(40)]

    async def write(order: list[str]) -> None:
        for _ in range(25):
            async with db.acquire() as conn, conn.transaction():
                await put_many(conn, "t", order)

    await asyncio.gather(write(keys), write(keys[::-1]), write(keys[20:] + keys[:20]))
    assert await db.fetchval("select count(*) from replank_outbox.event") == 3000


async def test_fifty_thousand_keys_in_one_call_do_not_exhaust_the_lock_table(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn, db.acquire() as other, db.acquire() as watcher:
        async with conn.transaction():
            await put_many(conn, "t", [str(number) for number in range(50_000)])
            held = await watcher.fetchval(_HELD)
            waiting = asyncio.create_task(put(other, "t", "7"))
            await eventually(lambda: waiting_for_locks(watcher), "a single append waits for the whole topic")
            async with asyncio.timeout(5):
                await put(watcher, "u", "7")
        await waiting
    assert held == 1
    assert await db.fetchval("select count(*) from replank_outbox.event") == 50_002


async def test_a_transaction_of_very_many_single_appends_takes_the_topic_instead(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn, conn.transaction():
        await conn.execute("select replank_outbox.append('t', n::text, 't.v1', 'x') from generate_series(1, 5000) as n")
        held = await conn.fetchval(
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
        )
        assert held == 256 + 2


async def test_locks_given_back_with_a_savepoint_are_not_counted(db: asyncpg.Pool) -> None:
    async with db.acquire() as conn, conn.transaction():
        for _ in range(3):
            savepoint = conn.transaction()
            await savepoint.start()
            await conn.execute(
                "select replank_outbox.append('t', n::text, 't.v1', 'x') from generate_series(1, 200) as n"
            )
            await savepoint.rollback()
        assert await conn.fetchval("select replank_outbox.locks_held()") == 0


async def test_a_role_with_the_grant_can_append_and_nothing_else(db: asyncpg.Pool, postgres_dsn: str) -> None:
    role = "writer_" + postgres_dsn.rsplit("/", 1)[1]
    async with db.acquire() as conn:
        await conn.execute(f'create role "{role}"')
        try:
            await conn.execute(f'set role "{role}"')
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await put(conn, "t", "k")
            await conn.execute("reset role")
            await outbox.grant_append(conn, role)
            await conn.execute(f'set role "{role}"')
            await put(conn, "t", "k")
            await put_many(conn, "t", ["k"])
            for forbidden in ("select 1 from replank_outbox.event", "delete from replank_outbox.shard"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await conn.execute(forbidden)
        finally:
            await conn.execute("reset role")
            await conn.execute(f'drop owned by "{role}"')
            await conn.execute(f'drop role "{role}"')


def test_appending_imports_nothing_of_kafka_or_the_sdk() -> None:
    program = (
        "import sys, replank.outbox; "
        "heavy = ('aiokafka', 'faststream', 'fastapi', 'opentelemetry.sdk', 'prometheus_client'); "
        "print([module for module in heavy if module in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
