"""What is changed in a target in use: refused before anything is touched, or done in steps that can be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest
import pytest_asyncio

from replank.connection import Connection
from replank.migrate import ddl
from replank.migrate.ddl import AnotherAtWork, ConstraintViolated, IndexProgress, Limits, TargetRefused
from replank.migrate.locks import LocksNotGranted
from replank.testing.wait import eventually
from tests.common.migrate.moving import Move, connected, migration

QUICK = Limits(lock_timeout=0.1, within=0.5)


@pytest_asyncio.fixture
async def move(postgres_server: str, kafka: str) -> AsyncIterator[Move]:
    async with migration(postgres_server, kafka, installed=False) as made:
        yield made


async def catalog(move: Move) -> set[str]:
    async with connected(move.target) as conn:
        return {
            row["name"]
            for row in await conn.fetch(
                "select c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace "
                "where n.nspname = 'public' or n.nspname = $1",
                move.schema,
            )
        }


async def test_tables_are_made_and_made_again(move: Move) -> None:
    await ddl.create_tables(move.target, move.compiled)
    made = await catalog(move)
    assert {"orders", "order_items", "clients", f"{move.schema}.applied"} <= made
    async with connected(move.target) as conn:
        await conn.execute("insert into orders (id, client_id) values ('1', 'c')")
    await ddl.create_tables(move.target, move.compiled)
    assert await catalog(move) == made


async def test_tables_that_are_there_and_empty_are_taken(move: Move) -> None:
    async with connected(move.target) as conn:
        for table in move.compiled.tables:
            await conn.execute(table.create)
    await ddl.create_tables(move.target, move.compiled)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("insert into orders (id) values ('1')", "the table orders holds rows already"),
        ("alter table orders drop column note", "the table orders has no column note"),
        ("alter table orders alter column note type integer using 1", "the column note of orders is integer"),
        ("alter table orders drop constraint orders_pkey", "the primary key of orders is not (id)"),
    ],
)
async def test_a_target_that_is_not_as_it_has_to_be_is_refused_untouched(move: Move, statement: str, told: str) -> None:
    async with connected(move.target) as conn:
        orders = next(table for table in move.compiled.tables if table.name == "orders")
        await conn.execute(orders.create)
        await conn.execute(statement)
    before = await catalog(move)
    with pytest.raises(TargetRefused) as refused:
        await ddl.create_tables(move.target, move.compiled)
    assert told in str(refused.value)
    assert await catalog(move) == before


async def test_missing_privileges_are_named(move: Move) -> None:
    role = f"replank_test_{uuid4().hex[:12]}"
    place = urlsplit(move.target)
    as_role = urlunsplit(place._replace(netloc=f"{role}:secret@{place.hostname}:{place.port}"))
    async with connected(move.target) as conn:
        await conn.execute(f"create role {role} login password 'secret'")
        try:
            with pytest.raises(TargetRefused) as refused:
                await ddl.create_tables(as_role, move.compiled)
        finally:
            await conn.execute(f"drop role {role}")
    assert "may not create the table orders in the schema public" in str(refused.value)
    assert "may not create a schema in the database" in str(refused.value)


async def test_indexes_are_built_and_an_invalid_leftover_is_built_again(move: Move) -> None:
    await ddl.create_tables(move.target, move.compiled)
    async with connected(move.target) as conn:
        await conn.execute("create index concurrently idx_orders_client on orders (client_id)")
        await conn.execute("update pg_index set indisvalid = false where indexrelid = 'idx_orders_client'::regclass")
        before = await conn.fetchval("select 'idx_orders_client'::regclass::oid")
        told: list[IndexProgress] = []
        await ddl.build_indexes(move.target, move.compiled, on_progress=told.append)
        valid = "select indisvalid from pg_index where indexrelid = 'idx_orders_client'::regclass"
        assert await conn.fetchval(valid) is True
        assert await conn.fetchval("select 'idx_orders_client'::regclass::oid") != before
        await ddl.build_indexes(move.target, move.compiled)


async def test_the_build_of_an_index_waits_for_a_transaction_and_tells_so(move: Move) -> None:
    await ddl.create_tables(move.target, move.compiled)
    told: list[IndexProgress] = []
    async with connected(move.target) as conn:
        async with conn.transaction():
            await conn.execute("insert into orders (id, client_id) values ('1', 'c')")
            building = asyncio.create_task(ddl.build_indexes(move.target, move.compiled, on_progress=told.append))
            await eventually(lambda: any("waiting" in p.phase for p in told), "the build waits for the writer")
        await asyncio.wait_for(building, 20)


async def test_constraints_are_validated_and_repeated(move: Move) -> None:
    await ddl.create_tables(move.target, move.compiled)
    async with connected(move.target) as conn:
        await conn.execute("insert into clients (id) values ('c')")
        await conn.execute("insert into orders (id, client_id) values ('1', 'c')")
        for _ in range(2):
            await ddl.add_constraints(move.target, move.compiled)
            assert await conn.fetchval("select bool_and(convalidated) from pg_constraint where contype = 'f'")
            assert await conn.fetchval("select count(*) from pg_constraint where contype = 'f'") == 2
            assert await conn.fetchval(
                "select attnotnull from pg_attribute where attrelid = 'orders'::regclass and attname = 'client_id'"
            )
        await ddl.drop_constraints(move.target, move.compiled)
        assert await conn.fetchval("select count(*) from pg_constraint where contype = 'f'") == 0
        await conn.execute("insert into orders (id) values ('2')")


async def test_rows_that_violate_a_constraint_are_told_and_it_goes_on_where_it_stopped(move: Move) -> None:
    await ddl.create_tables(move.target, move.compiled)
    async with connected(move.target) as conn:
        await conn.execute("insert into orders (id, client_id) values ('1', 'nobody')")
        with pytest.raises(ConstraintViolated, match="orders_client_id_fkey"):
            await ddl.add_constraints(move.target, move.compiled)
        await conn.execute("insert into clients (id) values ('nobody')")
        await ddl.add_constraints(move.target, move.compiled)
        assert await conn.fetchval("select bool_and(convalidated) from pg_constraint where contype = 'f'")


async def test_rows_that_violate_a_constraint_are_found_before_it_is_added_by_the_keys_of_their_records(
    move: Move,
) -> None:
    await ddl.create_tables(move.target, move.compiled)

    async def found(at_most: int = 9) -> dict[str, tuple[str, ...]]:
        violations = await ddl.violations(conn, move.compiled.constraints, at_most=at_most)
        return {violation.constraint.name: tuple(sorted(violation.keys)) for violation in violations}

    async with connected(move.target) as conn:
        await conn.execute("insert into clients (id) values ('c')")
        await conn.execute("insert into orders (id, client_id) values ('1', 'c'), ('2', 'gone'), ('3', 'gone')")
        await conn.execute("insert into orders (id) values ('4')")
        await conn.execute("insert into order_items (order_id, position) values ('1', 0), ('5', 0), ('5', 1)")
        assert await found() == {
            "orders_client_id_not_null": ("order:4",),
            "orders_client_id_fkey": ("order:2", "order:3"),
            "order_items_order_id_fkey": ("order:5", "order:5"),
        }
        assert {len(keys) for keys in (await found(1)).values()} == {1}, "no more is counted than was asked"


async def test_a_lock_that_is_not_to_be_had_is_given_up(move: Move) -> None:
    await ddl.create_tables(move.target, move.compiled)
    async with connected(move.target) as conn, conn.transaction():
        await conn.execute("insert into orders (id) values ('1')")
        with pytest.raises(LocksNotGranted):
            await ddl.add_constraints(move.target, move.compiled, limits=QUICK)


async def test_one_at_a_time_changes_the_schema(move: Move) -> None:
    async with connected(move.target) as conn:
        await conn.execute("select pg_advisory_lock(hashtextextended($1 || '.ddl', 0))", move.schema)
        with pytest.raises(AnotherAtWork):
            await ddl.create_tables(move.target, move.compiled)


async def test_everything_is_dropped_with_or_without_the_tables(move: Move) -> None:
    await ddl.create_tables(move.target, move.compiled)
    await ddl.drop(move.target, move.compiled, tables=False)
    left = await catalog(move)
    assert "orders" in left
    assert not any(name.startswith(move.schema) for name in left)
    await ddl.drop(move.target, move.compiled, tables=True)
    await ddl.drop(move.target, move.compiled, tables=True)
    assert await catalog(move) == set()


async def test_nothing_can_be_written_between_the_making_of_tables_and_what_guards_them(move: Move) -> None:
    seen = []

    async def look(conn: Connection) -> None:
        async with connected(move.target) as outside:
            names = [table.sql for table in move.compiled.tables]
            seen.append(
                await outside.fetchval("select count(to_regclass(name)) from unnest($1::text[]) as name", names)
            )
        assert await conn.fetchval("select to_regclass($1) is not null", move.compiled.tables[0].sql)

    await ddl.create_tables(move.target, move.compiled, also=look)
    assert seen == [0]


async def test_a_new_run_begins_with_nothing_of_the_one_before(move: Move) -> None:
    await ddl.create_tables(move.target, move.compiled)
    applied = f"{move.compiled.mapping.schema_name}.applied"
    async with connected(move.target) as conn:
        await conn.execute(f"insert into {applied} (key, version, deleted) values ('order:1', 1, false)")
        await ddl.create_tables(move.target, move.compiled)
        assert await conn.fetchval(f"select count(*) from {applied}") == 1
        await ddl.create_tables(move.target, move.compiled, anew=True)
        assert await conn.fetchval(f"select count(*) from {applied}") == 0
