"""Capture: what is told of the key-value table, when, and what stands in its way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from itertools import groupby

import asyncpg
import pytest
import pytest_asyncio

from replank import outbox
from replank.connection import Connection
from replank.contracts.schema import RecordChanged
from replank.migrate import authority, capture, preconditions, retired
from replank.migrate.capture import CaptureRefused
from replank.migrate.client import DualWriter
from replank.migrate.locks import LocksNotGranted, with_locks
from replank.testing import eventually
from replank.testing.servers import waiting_for_locks

from .sides import PUT, Change, Sides, both_sides, shop

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest_asyncio.fixture
async def sides(postgres_server: str) -> AsyncIterator[Sides]:
    async with both_sides(postgres_server, databases=1) as installed:
        yield installed


@pytest_asyncio.fixture
async def one_database(postgres_server: str) -> AsyncIterator[Sides]:
    async with both_sides(postgres_server, databases=1, same_transaction=True) as installed:
        yield installed


def told(changes: Iterable[Change]) -> list[tuple[str, str, str | None]]:
    return [(change.key, change.op, change.value) for change in changes]


# What is told


async def test_every_change_is_told_with_the_transaction_that_makes_it(sides: Sides) -> None:
    await sides.source.execute(PUT, "order:1", '{"total": 1}')
    await sides.source.execute(PUT, "order:1", '{"total": 2}')
    await sides.source.execute("delete from kv_store where key = 'order:1'")
    async with sides.source.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(PUT, "order:2", "{}")
        await transaction.rollback()
    changes = await sides.changes()
    assert told(changes) == [
        ("order:1", "upsert", '{"total": 1}'),
        ("order:1", "upsert", '{"total": 2}'),
        ("order:1", "delete", None),
    ]
    assert [change.version for change in changes] == sorted({change.version for change in changes})


async def test_what_is_told_keeps_to_the_contract(sides: Sides) -> None:
    await sides.source.execute(PUT, "order:1", '{"total": 1}')
    await sides.source.execute("delete from kv_store")
    rows = await sides.source.fetch("select type, topic, key, value from replank_outbox.event order by id")
    upsert, delete = (RecordChanged.from_value(row["value"]) for row in rows)
    assert (upsert.key, upsert.op, upsert.value, upsert.fetch) == ("order:1", "upsert", {"total": 1}, False)
    assert (delete.key, delete.op, delete.value, delete.fetch) == ("order:1", "delete", None, False)
    assert {(row["type"], row["topic"], row["key"]) for row in rows} == {
        (RecordChanged.event_type, "replank.migrate.shop", "order:1")
    }


async def test_a_changed_key_is_a_deletion_and_a_new_record(sides: Sides) -> None:
    await sides.source.execute(PUT, "order:1", "{}")
    await sides.source.execute("update kv_store set key = 'order:2'")
    assert sorted(told((await sides.changes())[1:])) == [("order:1", "delete", None), ("order:2", "upsert", "{}")]


async def test_keys_that_change_places_end_as_they_are(sides: Sides) -> None:
    await sides.source.execute(
        "insert into kv_store values ('order:1', '{\"total\": 1}'), ('order:2', '{\"total\": 2}')"
    )
    await sides.source.execute("delete from kv_store where key = 'order:2'")
    await sides.source.execute("update kv_store set key = 'order:2' where key = 'order:1'")
    await sides.carry()
    assert await sides.record("order:1") is None
    assert await sides.record("order:2") == {"total": 1}


async def test_a_statement_on_a_few_rows_tells_what_each_has_become(sides: Sides) -> None:
    await sides.source.execute("insert into kv_store select 'order:' || i, '{}' from generate_series(1, 20) as i")
    await sides.source.execute("update kv_store set value = '{\"total\": 1}'")
    await sides.source.execute("delete from kv_store")
    for start, op, value in ((0, "upsert", "{}"), (20, "upsert", '{"total": 1}'), (40, "delete", None)):
        changes = (await sides.changes())[start : start + 20]
        assert sorted(told(changes)) == sorted((f"order:{i}", op, value) for i in range(1, 21))
    assert len(await sides.changes()) == 60


@pytest.mark.parametrize("rows", [21, 2021])
async def test_a_statement_on_many_rows_tells_of_each_once_and_leaves_the_values_where_they_are(
    sides: Sides, rows: int
) -> None:
    statements = [
        f"insert into kv_store select 'order:' || i, '{{}}' from generate_series(1, {rows}) as i",
        "update kv_store set value = '{\"total\": 1}'",
        "update kv_store set key = key || 'b'",
        "delete from kv_store",
    ]
    before = 0
    for statement in statements:
        await sides.source.execute(statement)
        changes = (await sides.changes())[before:]
        before += len(changes)
        assert all((change.fetch, change.value) == (True, None) for change in changes)
        keys = [change.key for change in changes]
        assert len(keys) == len(set(keys)) == (2 * rows if "set key" in statement else rows)
        await sides.carry()
        written = await sides.source.fetch("select key, value from kv_store")
        records = await sides.target.fetch("select key, value from replank_m_shop.down($1)", keys)
        assert {key: json.loads(value) for key, value in records} == {key: json.loads(value) for key, value in written}
    assert await sides.target.fetchval("select count(*) from orders") == 0
    assert await sides.source.fetchval("select count(distinct event_id) from replank_outbox.event") == before


async def test_a_statement_that_changes_nothing_tells_nothing(sides: Sides) -> None:
    await sides.source.execute("delete from kv_store where key = 'order:1'")
    await sides.source.execute("update kv_store set value = '{}' where key = 'order:1'")
    await sides.source.execute("insert into kv_store select 'order:1', '{}' where false")
    assert await sides.changes() == []


async def test_the_last_thing_told_is_what_the_table_has_whatever_other_triggers_do(sides: Sides) -> None:
    await sides.source.execute(
        """
        create function stamp() returns trigger language plpgsql as $$
        begin
            update kv_store set value = value || '{"stamped": true}' where key = new.key and not value ? 'stamped';
            return null;
        end $$;
        create trigger stamp after insert or update on kv_store for each row execute function stamp();
        """
    )
    await sides.source.execute(PUT, "order:1", "{}")
    newest = max(await sides.changes(), key=lambda change: change.version)
    assert newest.value == '{"stamped": true}'


async def test_numbers_are_told_with_every_digit(sides: Sides) -> None:
    number = '{"total": 12345678901234567890.10, "tiny": 0.00000000000000000001000}'
    await sides.source.execute(PUT, "order:1", number)
    (change,) = await sides.changes()
    assert change.value == await sides.source.fetchval("select value::text from kv_store")
    assert "12345678901234567890.10" in (change.value or "")


async def test_a_large_value_is_left_to_be_fetched(sides: Sides) -> None:
    await sides.put("order:1", {"note": "x" * 300_000})
    await sides.put("order:2", {"note": "x" * 200_000})
    large, small = await sides.changes()
    assert (large.fetch, large.value) == (True, None)
    assert (small.fetch, len(small.value or "")) == (False, 200_000 + len('{"note": ""}'))
    await sides.carry()
    assert await sides.record("order:1") == {"note": "x" * 300_000}


async def test_the_trace_of_the_writer_goes_with_its_changes(sides: Sides) -> None:
    async with sides.source.acquire() as conn:
        async with conn.transaction():
            await conn.execute("select set_config('replank.traceparent', $1, true)", TRACEPARENT)
            await conn.execute(PUT, "order:1", "{}")
        await conn.execute(PUT, "order:2", "{}")
    assert [change.traceparent for change in await sides.changes()] == [TRACEPARENT, None]


async def test_a_record_with_an_empty_key_is_written_and_not_told(sides: Sides) -> None:
    await sides.source.execute("insert into kv_store values ('', '{}')")
    await sides.source.execute("insert into kv_store values ('order:1', '{}'), ('order:2', '{}')")
    await sides.source.execute("delete from kv_store")
    assert {change.key for change in await sides.changes()} == {"order:1", "order:2"}


async def test_versions_of_a_record_follow_its_commits(sides: Sides) -> None:
    async def write(writer: int) -> None:
        async with sides.source.acquire() as conn:
            for step in range(15):
                key = f"order:{(writer + step) % 3}"
                async with conn.transaction():
                    if step % 5 == 4:
                        await conn.execute("delete from kv_store where key = $1", key)
                    else:
                        await conn.execute(PUT, key, json.dumps({"note": f"{writer}-{step}"}))

    await asyncio.gather(*(write(writer) for writer in range(12)))
    changes = sorted(await sides.changes(), key=lambda change: change.key)
    for key, of_key in groupby(changes, key=lambda change: change.key):
        newest = max(of_key, key=lambda change: change.version)
        assert (json.loads(newest.value) if newest.value else None) == await sides.value(key)
    # The order of the outbox is the same: whoever reads a record's changes in order needs no version.
    for _, in_order in groupby(changes, key=lambda change: change.key):
        versions = [change.version for change in in_order]
        assert versions == sorted(versions)


async def test_a_large_statement_keeps_nobody_waiting_who_writes_other_records(sides: Sides) -> None:
    await sides.source.execute("insert into kv_store select 'order:' || i, '{}' from generate_series(1, 1000) as i")
    async with sides.source.acquire() as bulk, sides.source.acquire() as other, bulk.transaction():
        await bulk.execute("update kv_store set value = '{\"total\": 1}'")
        await other.execute("set lock_timeout = '1s'")
        await other.execute(PUT, "order:other", "{}")


async def test_truncate_is_refused(sides: Sides) -> None:
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="kv_store"):
        await sides.source.execute("truncate kv_store")


async def test_the_application_needs_no_rights_of_its_own(sides: Sides) -> None:
    async with sides.source.acquire() as conn:
        await conn.execute("create role shop_writer")
        try:
            await conn.execute("grant select, insert, update, delete on kv_store to shop_writer")
            await conn.execute("set role shop_writer")
            await conn.execute(PUT, "order:1", "{}")
            await conn.execute("delete from kv_store")
            await conn.execute("reset role")
        finally:
            await conn.execute("reset role; drop owned by shop_writer; drop role shop_writer")
    assert [change.op for change in await sides.changes()] == ["upsert", "delete"]


# In one database and transaction


async def test_in_one_database_a_change_is_in_the_tables_with_its_transaction(one_database: Sides) -> None:
    sides = one_database
    async with sides.source.acquire() as conn, conn.transaction():
        await conn.execute(PUT, "order:1", '{"total": 1, "items": [{"sku": "a", "qty": 1}]}')
        assert await conn.fetchval("select total from orders") == 1
        assert await sides.target.fetchval("select count(*) from orders") == 0
    assert await sides.record("order:1") == {"total": 1, "items": [{"sku": "a", "qty": 1}]}
    await sides.source.execute("insert into kv_store select 'order:b' || i, '{}' from generate_series(1, 500) as i")
    assert await sides.target.fetchval("select count(*) from orders") == 501
    await sides.source.execute("delete from kv_store")
    assert await sides.target.fetchval("select count(*) from orders") == 0
    assert await sides.changes() == []


async def test_in_one_database_a_record_that_cannot_be_converted_is_written_all_the_same(one_database: Sides) -> None:
    await one_database.put("order:1", {"total": "not a number"})
    assert await one_database.value("order:1") == {"total": "not a number"}
    assert await one_database.target.fetchval("select key from replank_m_shop.reject") == "order:1"


async def test_in_one_database_the_writer_is_not_taken_for_the_applier_afterwards(one_database: Sides) -> None:
    async with one_database.source.acquire() as conn, conn.transaction():
        await conn.execute(PUT, "order:1", "{}")
        with pytest.raises(asyncpg.PostgresError) as refused:
            await conn.execute("delete from orders")
    assert refused.value.sqlstate == "RPL02"


# What comes back


async def test_of_what_comes_back_the_newest_holds_in_whatever_order(sides: Sides) -> None:
    await sides.flip("source")
    restore = "select key, outcome from replank_m_shop.restore($1, $2::text[]::jsonb[], $3, $4)"

    async def back(*changes: tuple[str, str | None, int]) -> list[str]:
        keys, values, versions = zip(*changes, strict=True)
        rows = await sides.source.fetch(restore, keys, values, versions, [None] * len(keys))
        return [row["outcome"] for row in rows]

    assert await back(("order:1", '{"total": 2}', 20)) == ["applied"]
    assert await back(("order:1", '{"total": 1}', 10)) == ["stale"]
    assert await sides.value("order:1") == {"total": 2}
    assert await back(("order:1", '{"total": 3}', 30), ("order:1", None, 40), ("order:2", "{}", 1)) == [
        "stale",
        "applied",
        "applied",
    ]
    assert await sides.value("order:1") is None
    assert await back(("order:1", '{"total": 3}', 35)) == ["stale"]
    assert await sides.value("order:1") is None
    assert await sides.changes() == []


# Installing


async def test_installing_again_changes_nothing_and_loses_nothing(sides: Sides) -> None:
    stop = asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            await sides.put(f"order:{written}", {"total": written})
            written += 1

    writer = asyncio.create_task(write())
    async with sides.source.acquire() as conn:
        for _ in range(5):
            await capture.install(conn, sides.mapping)
            until = written + 1
            await eventually(lambda until=until: written >= until, "writes go on")  # type: ignore[misc]
    stop.set()
    await writer
    assert len(await sides.changes()) == written
    async with sides.source.acquire() as conn:
        assert await capture.verify(conn, sides.mapping) == []


async def test_from_the_install_on_nothing_is_missed(postgres_dsn: str) -> None:
    pool = await asyncpg.create_pool(postgres_dsn, min_size=1, max_size=10)
    async with pool:
        async with pool.acquire() as conn:
            await outbox.install(conn)
            await conn.execute("create table kv_store (key text primary key, value jsonb not null)")
        async with pool.acquire() as early, pool.acquire() as installer:
            transaction = early.transaction(isolation="repeatable_read")
            await transaction.start()
            await early.execute(PUT, "order:before", "{}")
            installing = asyncio.create_task(capture.install(installer, shop()))
            await eventually(lambda: waiting_for_locks(pool), "the install waits for the open transaction")
            await transaction.commit()
            await installing
            # A transaction with a snapshot from before sees the triggers all the same.
        await pool.execute(PUT, "order:after", "{}")
        assert await pool.fetchval("select array_agg(key) from replank_outbox.event") == ["order:after"]


async def test_removing_leaves_no_trigger_and_no_function(sides: Sides) -> None:
    async with sides.source.acquire() as conn:
        await capture.remove(conn, "shop")
        await capture.remove(conn, "shop")
        on_it = "select count(*) from pg_trigger where tgrelid = 'kv_store'::regclass and not tgisinternal"
        assert await conn.fetchval(on_it) == 0
        await conn.execute(PUT, "order:1", "{}")
        assert (await capture.verify(conn, sides.mapping))[0].code == "not_installed"
    assert await sides.changes() == []


async def test_installed_without_triggers_it_tells_of_what_a_writer_says(postgres_dsn: str) -> None:
    conn = await asyncpg.connect(postgres_dsn)
    await outbox.install(conn)
    await conn.execute("create table kv_store (key text primary key, value jsonb not null)")
    await capture.install(conn, shop(), triggers=False)
    assert await capture.verify(conn, shop(), triggers=False) == []
    await conn.execute(PUT, "order:1", "{}")
    assert await conn.fetchval("select count(*) from replank_outbox.event") == 0
    await conn.execute("select replank_m_shop.written(array['order:1'])")
    assert await conn.fetchval("select key from replank_outbox.event") == "order:1"
    await conn.close()


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        ("drop trigger replank_m_shop_update on kv_store", "missing_trigger"),
        ("alter table kv_store disable trigger replank_m_shop_delete", "disabled_trigger"),
        ("alter sequence replank_m_shop.version cache 10", "sequence_cache"),
    ],
)
async def test_verify_finds_what_is_broken(sides: Sides, harm: str, code: str) -> None:
    async with sides.source.acquire() as conn:
        await conn.execute(harm)
        assert [finding.code for finding in await capture.verify(conn, sides.mapping)] == [code]
        await capture.install(conn, sides.mapping)


# What stands in the way

TABLE = "create table kv_store (key text primary key, value jsonb not null)"


@pytest.mark.parametrize(
    ("table", "code", "named"),
    [
        ("select 1", "no_table", "kv_store"),
        ("create view kv_store as select 'a' as key, '{}'::jsonb as value", "not_a_table", "kv_store"),
        (
            "create table kv_store (key text primary key, value jsonb) partition by hash (key)",
            "not_a_table",
            "kv_store",
        ),
        (f"{TABLE}; create table more () inherits (kv_store)", "not_a_table", "kv_store"),
        ("create unlogged table kv_store (key text primary key, value jsonb)", "not_permanent", "kv_store"),
        ("create table kv_store (key text, value jsonb)", "primary_key", "nothing"),
        ("create table kv_store (id int primary key, key text, value jsonb)", "primary_key", "(id)"),
        ("create table kv_store (a int, key text, value jsonb, primary key (a, key))", "primary_key", "(a, key)"),
        ("create table kv_store (key text primary key deferrable, value jsonb)", "deferrable_key", "kv_store"),
        ("create table kv_store (key uuid primary key, value jsonb)", "key_type", "uuid"),
        ("create table kv_store (key text primary key, value json)", "value_type", "json"),
        ("create table kv_store (key text primary key, value text)", "value_type", "text"),
        ("create table kv_store (k text primary key, value jsonb)", "no_column", "key"),
        ("create table kv_store (key text primary key, value jsonb, owner int not null)", "required_column", "owner"),
        (
            """
            create collation same (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
            create table kv_store (key text collate same primary key, value jsonb)
            """,
            "key_collation",
            "kv_store.key",
        ),
    ],
)
async def test_a_table_that_cannot_be_followed_is_refused_and_left_alone(
    postgres_dsn: str, table: str, code: str, named: str
) -> None:
    conn = await asyncpg.connect(postgres_dsn)
    await outbox.install(conn)
    await conn.execute(table)
    with pytest.raises(CaptureRefused) as refused:
        await capture.install(conn, shop())
    (finding,) = [finding for finding in refused.value.findings if finding.code == code]
    assert named in finding.message
    assert finding.fix
    assert await conn.fetchval("select to_regnamespace('replank_m_shop')") is None
    await conn.close()


async def test_what_only_triggers_need_is_not_asked_of_a_table_that_a_writer_tells_of(postgres_dsn: str) -> None:
    conn = await asyncpg.connect(postgres_dsn)
    await outbox.install(conn)
    await conn.execute(
        """
        create table kv_store (key text primary key, value jsonb not null) partition by hash (key);
        create table kv_store_0 partition of kv_store for values with (modulus 2, remainder 0);
        create table kv_store_1 partition of kv_store for values with (modulus 2, remainder 1);
        """
    )
    with pytest.raises(CaptureRefused):
        await capture.install(conn, shop())
    await capture.install(conn, shop(), triggers=False)
    writer = DualWriter("shop", table="kv_store")
    async with conn.transaction():
        for number in range(8):
            await writer.put(conn, f"order:{number}", {})
    assert await conn.fetchval("select count(*) from replank_outbox.event") == 8
    await conn.close()


async def test_an_applier_may_not_write_to_a_store_that_takes_the_writes_of_a_writer(postgres_dsn: str) -> None:
    conn = await asyncpg.connect(postgres_dsn)
    await outbox.install(conn)
    await conn.execute(TABLE)
    await capture.install(conn, shop(), triggers=False)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await conn.execute("select replank_m_shop.restore(array['order:1'], array['{}'::jsonb], array[1], array[''])")
    assert refused.value.sqlstate == authority.APPLIER_REFUSED
    assert await conn.fetchval("select count(*) from kv_store") == 0
    await conn.close()


async def test_a_table_that_a_retired_migration_has_left_closed_is_refused_by_name(sides: Sides) -> None:
    async with sides.source.acquire() as conn:
        await retired.close(conn, "earlier", "source", ["kv_store"])
        (found,) = await preconditions.of_source(conn, sides.mapping)
        assert found.code == "retired"
        assert "replank_retired.earlier_source()" in found.fix
        await conn.execute(retired.opened_by("earlier", "source"))
        assert await preconditions.of_source(conn, sides.mapping) == []


async def test_a_database_without_an_outbox_is_refused(postgres_dsn: str) -> None:
    conn = await asyncpg.connect(postgres_dsn)
    await conn.execute(TABLE)
    assert [finding.code for finding in await preconditions.of_source(conn, shop())] == ["no_outbox"]
    # Whoever applies at once needs none, but the tables' side.
    found = await preconditions.of_source(conn, shop(), same_transaction=True)
    assert [finding.code for finding in found] == ["no_target"]
    await conn.close()


async def test_a_table_that_another_migration_captures_is_refused(sides: Sides) -> None:
    other = sides.mapping.model_copy(update={"name": "other"})
    async with sides.source.acquire() as conn:
        found = await preconditions.of_source(conn, other)
    assert {finding.code for finding in found} == {"other_migration"}


async def test_every_missing_privilege_is_named(postgres_dsn: str) -> None:
    owner = await asyncpg.connect(postgres_dsn)
    await outbox.install(owner)
    await owner.execute(f"{TABLE}; create role poor_migrator; grant select, trigger on kv_store to poor_migrator")
    try:
        await owner.execute("set role poor_migrator")
        found = {finding.code: finding.message for finding in await preconditions.of_source(owner, shop())}
        assert set(found) == {"denied", "append_denied", "schema_denied"}
        assert "INSERT, UPDATE, DELETE" in found["denied"]
        await owner.execute("reset role")
        await owner.execute(
            """
            alter table kv_store enable row level security; alter table kv_store force row level security;
            grant insert, update, delete on kv_store to poor_migrator
            """
        )
        await owner.execute("set role poor_migrator")
        assert "row_security" in {finding.code for finding in await preconditions.of_source(owner, shop())}
    finally:
        await owner.execute("reset role; drop owned by poor_migrator; drop role poor_migrator")
        await owner.close()


async def test_a_lock_that_is_never_free_is_given_up(sides: Sides) -> None:
    async with sides.source.acquire() as reader, sides.source.acquire() as conn, reader.transaction():
        await reader.execute(PUT, "order:1", "{}")

        async def strong() -> None:
            await conn.execute("lock table kv_store in share row exclusive mode")

        with pytest.raises(LocksNotGranted, match="attempts"):
            await with_locks(conn, strong, patience=0.05, within=0.3)
        assert not conn.is_in_transaction()


async def test_whatever_work_fails_for_is_not_tried_again(pool: asyncpg.Pool) -> None:
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        await conn.execute("select 1/0")

    conn: Connection
    async with pool.acquire() as conn:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await with_locks(conn, work)
    assert calls == 1
