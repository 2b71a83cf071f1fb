"""What a mapping compiles to, on a real Postgres."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from replank.migrate import mapping
from replank.migrate.compile import compile as compiled
from tests.common.migrate.shop import ORDER, Target, dumps, shop


@pytest.fixture
async def target(pool: asyncpg.Pool) -> Any:
    async with pool.acquire() as conn:
        yield await Target.install(conn, shop())


def order(**changes: Any) -> dict[str, Any]:
    return {**ORDER, **changes}


async def test_a_record_comes_back_as_it_was(target: Target) -> None:
    assert await target.fill({"order:1": ORDER}) == {"filled": 1, "kept": 0, "rejected": 0}
    assert await target.down(["order:1"]) == {"order:1": ORDER}


async def test_null_absent_and_empty_stay_apart(target: Target) -> None:
    values: list[dict[str, Any]] = [
        {"clientId": "c"},
        {"clientId": "c", "items": [], "meta": {}, "address": {}},
        {"clientId": "c", "items": None, "meta": None, "address": None, "total": None, "payload": None},
        {"clientId": "c", "meta": {"tags": []}, "address": {"city": None}},
        {"clientId": "c", "meta": {"tags": None, "more": {"tags": [1]}}, "address": {"city": "", "zip": None}},
        {"clientId": "c", "items": [{"qty": 1, "sku": None, "x": {"qty": 2}}], "payload": {"a": [None, {"b": None}]}},
        {"clientId": "c", "payload": [], "seenAt": -62135596800000, "createdAt": "0001-01-01T00:00:00.000Z"},
        {"clientId": "c", "seenAt": 253402300799999, "createdAt": "9999-12-31T23:59:59.999Z", "day": "0001-01-01"},
        {"clientId": "c", "rest": 1, "id": "another", "key": 2, "problem": 3, "": {"": 0}},
    ]
    records = {f"order:{n}": value for n, value in enumerate(values)}
    await target.fill(records)
    assert await target.rejects() == {}
    assert await target.down(records) == records


async def test_what_would_be_lost_is_rejected_by_path_and_reason(target: Target) -> None:
    instant = "not an instant as expected (2024-12-31T23:59:59.999Z)"
    cases: list[tuple[Any, str]] = [
        ("a text", "$: expected object, found string"),
        ([], "$: expected object, found array"),
        ({}, "clientId: missing"),
        ({"clientId": None}, "clientId: missing"),
        ({"clientId": 7}, "clientId: expected string, found number"),
        (order(total="12.50"), "total: expected number, found string"),
        (order(total=1.005), "total: more than 2 decimals"),
        (order(total=1e10), "total: does not fit numeric(12,2)"),
        (order(weight=1.5), "weight: expected string, found number"),
        (order(weight="1.5"), "weight: not written as numeric(8,3) is"),
        (order(weight="01.500"), "weight: not a number"),
        (order(quantity=1.5), "quantity: not a whole number"),
        (order(quantity=2**31), "quantity: does not fit integer"),
        (order(ratio="1"), "ratio: expected number, found string"),
        (order(ratio=Decimal("0.1000000000000000055")), "ratio: not exact as double precision"),
        (order(ratio=Decimal("1e309")), "ratio: does not fit double precision"),
        (order(ratio=Decimal("1e-400")), "ratio: does not fit double precision"),
        (order(day="2023-02-29"), "day: not a date as expected (2024-12-31)"),
        (order(day="29.02.2024"), "day: not a date as expected (2024-12-31)"),
        (order(createdAt="2024-02-29T12:00:00Z"), f"createdAt: {instant}"),
        (order(createdAt="2024-02-29T24:00:00.000Z"), f"createdAt: {instant}"),
        (order(createdAt="0000-02-29T12:00:00.000Z"), f"createdAt: {instant}"),
        (order(createdAt="2024-02-29T12:00:00.000+00:00"), f"createdAt: {instant}"),
        (order(seenAt=0.5), "seenAt: not a whole number"),
        (order(seenAt=10**15), "seenAt: outside of the years 1 to 9999"),
        (order(token="00000000-0000-0000-0000-00000000000A"), "token: not a UUID as expected"),
        (order(paid="true"), "paid: expected boolean, found string"),
        (order(address="Lisbon"), "address: expected object, found string"),
        (order(items={}), "items: expected array, found object"),
        (order(items=[{"qty": 1}, 5]), "items[1]: expected object, found number"),
        (order(items=[{"qty": 1}, {"qty": "2"}]), "items[1].qty: expected number, found string"),
        (order(items=[{}]), "items[0].qty: missing"),
        (order(meta={"tags": ["a", 1]}), "meta.tags[1]: expected string, found number"),
        (order(meta=[]), "meta: expected object, found array"),
    ]
    records = {f"order:{n}": value for n, (value, _) in enumerate(cases)}
    assert await target.fill(records) == {"filled": 0, "kept": 0, "rejected": len(cases)}
    assert await target.rejects() == {f"order:{n}": problem for n, (_, problem) in enumerate(cases)}
    assert await target.down(records) == {}
    outcomes = await target.apply(*((key, value, 1) for key, value in records.items()))
    assert outcomes == [(f"order:{n}", "rejected", problem) for n, (_, problem) in enumerate(cases)]


async def test_a_record_without_a_place_is_rejected(target: Target) -> None:
    cases = [
        ("excl:1:a", {"why": None}, "why: a null has no place without a rest column"),
        ("excl:1:b", {"why": "x", "more": 1}, "more: has no column, and there is no rest column"),
        ("excl:01:a", {}, "key: {site} is not of type bigint"),
        ("excl:9223372036854775808:a", {}, "key: {site} is not of type bigint"),
        ("elsewhere", {}, "key: no entity has such keys"),
        ("order:", {"clientId": "c"}, "key: no entity has such keys"),
    ]
    await target.fill({key: value for key, value, _ in cases})
    assert await target.rejects() == {key: problem for key, _, problem in cases}
    outcomes = await target.apply(*((key, value, 1) for key, value, _ in cases))
    assert outcomes == [(key, "rejected", problem) for key, _, problem in cases]


async def test_every_day_of_the_calendar_and_no_other_is_a_date(target: Target) -> None:
    years = [0, 1, 4, 96, 100, 400, 1900, 1999, 2000, 2004, 2023, 2024, 2100, 2400, 9996, 9999]
    days = [f"{y:04}-{m:02}-{d:02}" for y in years for m in range(14) for d in range(33)]
    await target.fill({f"order:{day}": {"clientId": "c", "day": day} for day in days})
    kept = {row["id"]: row["day"].isoformat() for row in await target.conn.fetch("select id, day from orders")}
    assert kept == {day: day for day in days if _is_day(day)}


def _is_day(text: str) -> bool:
    try:
        return bool(dt.date.fromisoformat(text))
    except ValueError:
        return False


async def test_lenient_fields_take_other_spellings_and_stay_as_they_are_then(pool: asyncpg.Pool) -> None:
    text = """
    mapping: 1
    name: lenient
    source: {table: kv_store}
    entities:
      thing:
        key: "t:{id}"
        table: things
        columns:
          id: {key: id, type: text}
          n: {path: n, type: "numeric(5,1)", lenient: true}
          i: {path: i, type: integer, lenient: true}
          f: {path: f, type: double precision, lenient: true}
          t: {path: t, type: text, lenient: true}
          b: {path: b, type: boolean, lenient: true}
          d: {path: d, type: date, lenient: true}
          a: {path: a, type: timestamptz, as: iso8601, lenient: true}
          e: {path: e, type: timestamptz, as: epoch_s, lenient: true}
          u: {path: u, type: uuid, lenient: true}
          s: {path: s, type: integer, as: string, lenient: true, clean: [empty_as_null, trim]}
        primary_key: [id]
        rest: rest
    """
    async with pool.acquire() as conn:
        target = await Target.install(conn, mapping.load(text))
        dirty = {
            "t:1": {"n": " 1.26 ", "i": "7.5", "f": "0.1", "t": 5, "b": "Yes", "d": "2024-2-9",
                    "a": "2024-02-09 10:00+02", "e": "1.6", "u": "00000000000000000000000000000ABC", "s": "  "},
            "t:2": {"d": "now"},
            "t:3": {"a": "infinity"},
            "t:4": {"n": "99999"},
            "t:5": {"b": 2},
            "t:6": {"u": "nope"},
            "t:7": {"i": "NaN"},
            "t:8": {"a": "9999-12-31T23:59:59.9Z"},
            "t:9": {"f": "1e400"},
        }  # fmt: skip
        await target.fill(dirty)
        assert await target.rejects() == {
            "t:2": "d: not a date as expected (2024-12-31)",
            "t:3": "a: not an instant as expected (2024-12-31T23:59:59Z)",
            "t:4": "n: does not fit numeric(5,1)",
            "t:5": "b: neither true nor false",
            "t:6": "u: not a UUID as expected",
            "t:7": "i: not a number",
            "t:8": "a: outside of the years 1 to 9999",
            "t:9": "f: does not fit double precision",
        }
        clean = await target.down(["t:1"])
        assert clean["t:1"] == {
            "n": Decimal("1.3"), "i": 8, "f": Decimal("0.1"), "t": "5", "b": True, "d": "2024-02-09",
            "a": "2024-02-09T08:00:00Z", "e": 2, "u": "00000000-0000-0000-0000-000000000abc",
        }  # fmt: skip
        assert (await target.compare(clean))["thing"]["different"] == []


async def test_the_newest_version_stays_whatever_the_order_of_arrival(target: Target) -> None:
    first, second = order(quantity=1), order(quantity=2, items=[{"sku": "z", "qty": 9}])
    assert await target.apply(("order:1", second, 2)) == [("order:1", "applied", None)]
    assert await target.apply(("order:1", first, 1)) == [("order:1", "stale", None)]
    assert await target.down(["order:1"]) == {"order:1": second}
    assert await target.apply(("order:1", None, 3), ("order:1", second, 2)) == [
        ("order:1", "applied", None),
        ("order:1", "stale", None),
    ]
    assert await target.down(["order:1"]) == {}
    assert await target.conn.fetchval("select count(*) from order_items") == 0


async def test_a_backfill_brings_no_deleted_record_back_and_overwrites_nothing(target: Target) -> None:
    await target.apply(("order:gone", None, 5), ("order:newer", order(quantity=2), 6))
    await target.fill({"order:there": order(quantity=3)})
    old = order(quantity=1, items=[{"sku": "old", "qty": n} for n in range(5)])
    keys = ["order:gone", "order:newer", "order:there", "order:new"]
    assert await target.fill(dict.fromkeys(keys, old)) == {"filled": 1, "kept": 3, "rejected": 0}
    found = await target.down(keys)
    assert {key: value["quantity"] for key, value in found.items()} == {
        "order:newer": 2, "order:there": 3, "order:new": 1,
    }  # fmt: skip
    assert {key: len(value["items"]) for key, value in found.items()} == {
        "order:newer": 2, "order:there": 2, "order:new": 5,
    }  # fmt: skip


async def test_a_record_that_turns_bad_leaves_no_old_rows_and_one_that_turns_good_no_reject(target: Target) -> None:
    await target.apply(("order:1", ORDER, 1))
    await target.apply(("order:1", order(total="bad"), 2))
    assert await target.down(["order:1"]) == {}
    assert await target.rejects() == {"order:1": "total: expected number, found string"}
    await target.apply(("order:1", order(total="worse"), 3))
    assert await target.conn.fetchval("select attempts from replank_m_shop.reject") == 2
    await target.apply(("order:1", ORDER, 4))
    assert await target.rejects() == {}
    assert await target.down(["order:1"]) == {"order:1": ORDER}


async def test_a_backfill_that_runs_again_counts_attempts_and_clears_what_was_mended(target: Target) -> None:
    for _ in range(2):
        await target.fill({"order:1": order(total="bad"), "order:2": order(total="bad")})
    rows = await target.conn.fetch("select key, attempts from replank_m_shop.reject order by key")
    assert [tuple(row) for row in rows] == [("order:1", 2), ("order:2", 2)]
    await target.fill({"order:1": order(total="bad"), "order:2": ORDER})
    rows = await target.conn.fetch("select key, attempts from replank_m_shop.reject")
    assert [tuple(row) for row in rows] == [("order:1", 3)]


async def test_ignored_keys_make_neither_rows_nor_rejects(target: Target) -> None:
    assert await target.fill({"session:1": {}}) == {"filled": 0, "kept": 0, "rejected": 0}
    assert await target.apply(("session:1", {}, 1)) == [("session:1", "ignored", None)]
    assert await target.rejects() == {}


async def test_a_deleted_key_of_no_entity_clears_its_reject(target: Target) -> None:
    await target.apply(("elsewhere", {}, 1))
    assert await target.apply(("elsewhere", None, 2)) == [("elsewhere", "applied", None)]
    assert await target.rejects() == {}


async def test_a_row_that_stays_as_it_is_is_not_written_again(target: Target) -> None:
    await target.apply(("order:1", ORDER, 1))
    query = "select ctid::text from orders union all (select ctid::text from order_items order by position)"
    before = await target.conn.fetch(query)
    await target.apply(("order:1", ORDER, 2))
    assert await target.conn.fetch(query) == before


async def test_an_array_that_becomes_shorter_leaves_nothing_behind(target: Target) -> None:
    await target.apply(("order:1", order(items=[{"qty": n} for n in range(5)]), 1))
    for version, length in enumerate((2, 0), 2):
        items = [{"qty": n} for n in range(length)]
        await target.apply(("order:1", order(items=items), version))
        assert (await target.down(["order:1"]))["order:1"]["items"] == items
    assert await target.conn.fetchval("select count(*) from order_items") == 0


async def test_filling_and_reading_back_in_one_go_agrees_with_filling(target: Target) -> None:
    records = {"order:1": ORDER, "order:2": order(total="bad"), "excl:1:a": {"why": "x"}, "client:1": {"name": "n"}}
    (row,) = await target.call("fill_compared", records, records.values())
    assert dict(row) == {"filled": 3, "kept": 0, "rejected": 1, "different": []}
    (row,) = await target.call("fill_compared", records, records.values())
    assert dict(row) == {"filled": 0, "kept": 3, "rejected": 1, "different": []}


@pytest.mark.parametrize(
    ("when", "meddling"),
    [
        ("before", "new.quantity := new.quantity + 1; return new;"),
        ("before", "return null;"),
        ("after", "update public.order_items i set sku = 'z' where i.order_id = new.order_id; return null;"),
        ("after", "delete from public.order_items i where i.order_id = new.order_id; return null;"),
    ],
)
async def test_filling_notices_a_target_that_keeps_something_else(target: Target, when: str, meddling: str) -> None:
    await target.conn.execute(f"""
        create function meddle() returns trigger language plpgsql as $$ begin {meddling} end $$;
        create trigger meddle {when} insert on order_items for each row execute function meddle();
    """)
    (row,) = await target.call("fill_compared", ["order:1", "order:2"], [ORDER, order(items=[])])
    assert row["different"] == ["order:1"]


@pytest.mark.parametrize("function", ["fill", "fill_compared"])
async def test_filling_converts_each_value_once(pool: asyncpg.Pool, function: str) -> None:
    text = """
    mapping: 1
    name: once
    source: {table: kv_store}
    entities:
      thing:
        key: "t:{id}"
        table: things
        columns: {id: {key: id, type: text}, day: {path: day, type: date, lenient: true}}
        primary_key: [id]
        rest: rest
        children:
          parts:
            path: parts
            table: parts
            parent: [thing_id]
            columns: {day: {path: day, type: date, lenient: true}}
    """
    things, parts = 7, 3
    # Spelled as only the conversion's own function can read it, whose calls Postgres counts.
    value = {"day": "2024-2-9", "parts": [{"day": "2024-3-1"}] * parts}
    async with pool.acquire() as conn, conn.transaction():
        target = await Target.install(conn, mapping.load(text))
        await conn.execute("set local track_functions = 'all'")
        (row,) = await target.call(function, [f"t:{n}" for n in range(things)], [value] * things)
        assert (row["filled"], row["rejected"]) == (things, 0)
        calls = "select calls from pg_stat_xact_user_functions where funcname = 'lenient_date'"
        assert await conn.fetchval(calls) == things * (1 + parts)


async def test_rows_of_a_partitioned_table_are_found_where_they_were_put(target: Target) -> None:
    await target.conn.execute("""
        alter table orders rename to whole;
        create table orders (like whole including defaults, primary key (id)) partition by hash (id);
        create table orders_0 partition of orders for values with (modulus 2, remainder 0);
        create table orders_1 partition of orders for values with (modulus 2, remainder 1);
    """)
    records = {f"order:{n}": order(quantity=n) for n in range(20)}
    for kept in (0, len(records)):
        (row,) = await target.call("fill_compared", records, records.values())
        assert dict(row) == {"filled": len(records) - kept, "kept": kept, "rejected": 0, "different": []}
    assert await target.down(records) == records


async def test_a_comparison_names_the_keys_and_the_fields_that_differ(target: Target) -> None:
    records = {f"order:{n}": order(quantity=n) for n in range(5)}
    await target.fill(records)
    found = (await target.compare(records))["order"]
    assert (found["records"], found["target_records"], found["different"]) == (5, 5, [])
    assert found["source_fingerprint"] == found["target_fingerprint"]
    await target.conn.execute("""
        update orders set total = 99 where id = '1';
        update order_items set sku = 'b' where order_id = '2' and position = 0;
        delete from order_items where order_id = '3' and position = 1;
        delete from orders where id = '4';
    """)
    found = (await target.compare(records))["order"]
    assert found["different"] == ["order:1", "order:2", "order:3", "order:4"]
    fields = {}
    for key, value in records.items():
        rows = await target.conn.fetch("select * from replank_m_shop.fields($1, $2)", key, dumps(value))
        fields[key] = [tuple(row) for row in rows]
    assert fields["order:0"] == []
    assert fields["order:1"] == [("orders", None, "total", "12.50", "99.00")]
    assert fields["order:2"] == [("order_items", 0, "sku", "a", "b")]
    assert fields["order:3"] == [("order_items", 1, None, "present", "absent")]
    assert fields["order:4"] == [("orders", None, None, "present", "absent")]


async def test_records_that_swap_values_do_not_cancel(target: Target) -> None:
    records = {"order:1": order(quantity=1, city="x"), "order:2": order(quantity=2)}
    await target.fill(records)
    await target.conn.execute("update orders set quantity = 3 - quantity")
    assert (await target.compare(records))["order"]["different"] == ["order:1", "order:2"]


async def test_rows_that_no_record_has_are_found_in_pages(target: Target) -> None:
    records: dict[str, Any] = {f"excl:{n}:{p}": {} for n in (1, 2, 10) for p in ("a", "b:c")}
    await target.fill(records)
    pages, after = [], None
    while True:
        rows = await target.conn.fetch("select key from replank_m_shop.extra($1, 4, 'exclusion')", after)
        if not rows:
            break
        pages.append([row["key"] for row in rows])
        after = pages[-1][-1]
    assert [len(page) for page in pages] == [4, 2]
    assert [key for page in pages for key in page] == list(records)
    with pytest.raises(asyncpg.InvalidParameterValueError, match="no entity"):
        await target.conn.fetch("select key from replank_m_shop.extra(null, 4, 'nothing')")


async def test_the_tables_take_no_row_that_could_not_be_a_record_again(target: Target) -> None:
    for statement in (
        "insert into orders (id) values ('')",
        "insert into orders (id, origin) values ('1', 'elsewhere')",
        "insert into orders (id, ratio) values ('1', 'NaN')",
        "insert into orders (id, total) values ('1', 'NaN')",
        "insert into orders (id, day) values ('1', 'infinity')",
        "insert into orders (id, created_at) values ('1', '10000-01-01 00:00:00+00')",
        "insert into exclusions (site, product) values (1, '')",
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await target.conn.execute(statement)
    # Digits that the store has no place for are rounded by the column's type, where everybody can see it.
    await target.conn.execute(
        "insert into orders (id, client_id, created_at) values ('1', 'c', '2024-01-01 00:00:00.0006+00')"
    )
    assert (await target.down(["order:1"]))["order:1"] == {"clientId": "c", "createdAt": "2024-01-01T00:00:00.001Z"}


async def test_answers_do_not_depend_on_the_settings_of_the_session(target: Target) -> None:
    await target.conn.execute("""
        set timezone = 'Pacific/Apia'; set datestyle = 'SQL, DMY'; set extra_float_digits = 0;
        set standard_conforming_strings = off; set search_path = pg_temp; set intervalstyle = 'iso_8601'
    """)
    await target.fill({"order:1": ORDER})
    assert await target.down(["order:1"]) == {"order:1": ORDER}
    assert (await target.compare({"order:1": ORDER}))["order"]["different"] == []


async def test_installing_again_keeps_what_was_applied(target: Target) -> None:
    await target.apply(("order:1", ORDER, 3))
    await target.conn.execute(target.sql.functions)
    assert await target.apply(("order:1", ORDER, 3)) == [("order:1", "stale", None)]
    await target.conn.execute(target.sql.drop)
    assert await target.conn.fetchval("select to_regnamespace('replank_m_shop')") is None
    assert await target.conn.fetchval("select count(*) from orders") == 1


async def test_tables_are_reached_by_their_keys_even_by_plans_made_when_they_were_empty(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        target = await Target.install(conn, shop())
        chunk = {f"order:{n:05}": order(quantity=n) for n in range(300)}
        # The plans of this session are made now, of tables with nothing in them.
        for function in ("fill", "compare"):
            await target.call(function, [], [])
        await target.apply(("order:first", ORDER, 1))
        await target.fill(chunk)
        before = await _sequential_scans(conn)
        await target.compare(chunk)
        await target.down(chunk)
        await target.apply(*((key, value, 2) for key, value in chunk.items()))
        await target.apply(*((key, None, 3) for key in chunk))
        assert await _sequential_scans(conn) == before


async def _sequential_scans(conn: Any) -> dict[str, int]:
    """By table. What this session has counted comes to where it can be read at once."""
    await conn.execute("select pg_stat_force_next_flush()")
    rows = await conn.fetch("select relname, seq_scan from pg_stat_user_tables where relname <> 'reject'")
    return {row["relname"]: row["seq_scan"] for row in rows}


async def test_appliers_at_once_wait_for_each_other_and_agree(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as conn:
        await Target.install(conn, shop())
    keys = [f"order:{n}" for n in range(40)]

    async def worker(number: int) -> None:
        async with pool.acquire() as conn:
            target = Target(conn, compiled(shop()))
            for batch in range(10):
                version = batch * 4 + number + 1
                order_of_keys = keys if number % 2 else list(reversed(keys))
                await target.apply(*((key, order(quantity=version), version) for key in order_of_keys))

    await asyncio.gather(*(worker(number) for number in range(4)))
    async with pool.acquire() as conn:
        found = await Target(conn, compiled(shop())).down(keys)
    assert {value["quantity"] for value in found.values()} == {40}
    assert len(found) == 40


async def test_constraints_and_indexes_are_good_sql_and_can_be_taken_away(target: Target) -> None:
    await target.fill({"client:c1": {"name": "n"}, "order:1": ORDER})
    for constraint in target.sql.constraints:
        for statement in (constraint.add, constraint.validate, *constraint.finish):
            await target.conn.execute(statement)
    for index in target.sql.indexes:
        await target.conn.execute(index.create)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await target.conn.execute("update orders set client_id = 'nobody'")
    with pytest.raises(asyncpg.NotNullViolationError):
        await target.conn.execute("update order_items set quantity = null")
    # Changes go on with all of it in place.
    await target.apply(("order:1", order(items=[{"qty": 1}]), 1))
    await target.apply(("order:1", None, 2))
    for index in target.sql.indexes:
        await target.conn.execute(index.drop)
    for constraint in reversed(target.sql.constraints):
        for statement in constraint.drop:
            await target.conn.execute(statement)
    left = await target.conn.fetchval("select count(*) from pg_constraint where contype = 'f'")
    assert left == 0


async def test_names_and_texts_of_any_kind_are_quoted(pool: asyncpg.Pool) -> None:
    odd = 'select "$f$" \'; -- \\'
    text = json.dumps(
        {
            "mapping": 1,
            "name": "odd",
            "source": {"table": "kv_store"},
            "entities": {
                "thing": {
                    "key": "it's \\ {id} $f$",
                    "table": odd,
                    "columns": {
                        "key": {"key": "id", "type": "text"},
                        "problem": {"path": [odd, "$f$", "a.b"], "type": "text"},
                        "value": {"path": ["%s {} $1"], "type": "integer"},
                        odd[:40]: {"constant": odd, "type": "text"},
                    },
                    "primary_key": ["key", odd[:40]],
                    "rest": "r.s",
                    "children": {
                        "c": {
                            "path": ["'"],
                            "table": "C C",
                            "parent": ["P", "p"],
                            "columns": {"key": {"path": "$", "type": "text"}},
                        }
                    },
                }
            },
        }
    )
    async with pool.acquire() as conn:
        target = await Target.install(conn, mapping.load(text))
        record = {odd: {"$f$": {"a.b": "x", "y": 1}}, "%s {} $1": 5, "'": ["q"]}
        assert await target.fill({"it's \\ 7 $f$": record}) == {"filled": 1, "kept": 0, "rejected": 0}
        assert await target.down(["it's \\ 7 $f$"]) == {"it's \\ 7 $f$": record}
        assert await target.apply(("it's \\ 7 $f$", record, 1)) == [("it's \\ 7 $f$", "applied", None)]
        assert (await target.compare({"it's \\ 7 $f$": record}))["thing"]["different"] == []
        rows = await conn.fetch("select * from replank_m_odd.extra(null, 5, 'thing')")
        assert [row["key"] for row in rows] == ["it's \\ 7 $f$"]
