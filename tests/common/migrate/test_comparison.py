"""What a comparison catches, and what it cannot: an injected fault for every row of docs/reference/comparison.md."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from replank.migrate.comparison import Comparison, ComparisonSettings, Findings, Kind, Mismatch, Progress, opened
from replank.migrate.session import session
from replank.testing import eventually
from tests.common.migrate.compared import AT_ONCE, CLIENTS, ORDERS, PUT, SHOP, Stores, client, order, shop

TRACE = "0af7651916cd43dd8448eb211c80319c"


# Making two databases takes a second or more, putting back what they held a moment.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(postgres_server: str) -> AsyncIterator[Stores]:
    async with shop(postgres_server) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stores(installed: Stores) -> Stores:
    """Two stores that are equal."""
    await installed.reset()
    return installed


def seen(found: list[Mismatch]) -> dict[str, Kind]:
    return {mismatch.key: mismatch.kind for mismatch in found}


async def test_equal_stores_agree_in_every_count(stores: Stores) -> None:
    done, found = await stores.compare()
    assert found == []
    assert done.records == done.rows == {"client": CLIENTS, "order": ORDERS}
    assert (done.compared, done.different, done.unsettled, done.percent) == (CLIENTS + ORDERS, 0, 0, 100.0)


# --- what it catches ---


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and what a comparison must say of it: kind by key, and the fields of the first."""

    name: str
    inject: Callable[[Stores], Awaitable[Any]]
    expected: dict[str, Kind]
    fields: tuple[str, ...] = ()


def by_sql(statement: str) -> Callable[[Stores], Awaitable[Any]]:
    async def inject(stores: Stores) -> None:
        await stores.target.execute(statement)

    return inject


def by_lost_change(*changes: tuple[str, Any]) -> Callable[[Stores], Awaitable[Any]]:
    """Records that are written, or deleted where there is no value, and whose change never arrives."""

    async def inject(stores: Stores) -> None:
        for key, value in changes:
            await (stores.delete(key) if value is None else stores.put(key, value))
        await stores.carry(lose=[key for key, _ in changes])

    return inject


async def late_duplicate(stores: Stores) -> None:
    """An old change comes again, to an applier that has forgotten what it applied."""
    await stores.put("order:o1", order(1, note="first"))
    await stores.put("order:o1", order(1, note="second"))
    first = await stores.change("order:o1")
    await stores.carry()
    newest = await stores.target.fetchval(f"select version from {stores.schema}.applied where key = 'order:o1'")
    await stores.target.execute(f"delete from {stores.schema}.applied where key = 'order:o1'")
    await stores.apply([first])
    await stores.target.execute(f"update {stores.schema}.applied set version = $1 where key = 'order:o1'", newest)


async def disabled_trigger(stores: Stores) -> None:
    await stores.source.execute("alter table kv_store disable trigger user")
    await stores.put("order:o1", order(1, note="nobody saw this"))
    await stores.source.execute("alter table kv_store enable trigger user")


FAULTS = [
    Fault("an insert is lost", by_lost_change(("order:new", order(1))), {"order:new": Kind.MISSING}),
    Fault(
        "an update is lost",
        by_lost_change(("order:o1", order(1, note="newer"))),
        {"order:o1": Kind.DIFFERENT},
        ("orders.note",),
    ),
    Fault("a deletion is lost", by_lost_change(("order:o1", None)), {"order:o1": Kind.EXTRA}),
    Fault(
        "a write that the trigger did not see",
        disabled_trigger,
        {"order:o1": Kind.DIFFERENT},
        ("orders.note",),
    ),
    Fault(
        "a late duplicate writes an old version over a new one",
        late_duplicate,
        {"order:o1": Kind.STALE},
        ("orders.note",),
    ),
    Fault(
        "rows vanish",
        by_sql("delete from orders where id = 'o1'; delete from order_items where order_id = 'o1'"),
        {"order:o1": Kind.MISSING},
    ),
    Fault(
        "a root row vanishes, its child rows stay",
        by_sql("delete from orders where id = 'o1'"),
        {"order:o1": Kind.MISSING},
    ),
    Fault(
        "a row that no record stands for",
        by_sql("insert into orders (id, client_id) values ('phantom', 'c1')"),
        {"order:phantom": Kind.EXTRA},
    ),
    Fault(
        "child rows of no record and no root row",
        by_sql("insert into order_items (order_id, position, sku, quantity) values ('phantom', 0, 'x', 1)"),
        {"order:phantom": Kind.EXTRA},
    ),
    Fault(
        "a column is edited by hand",
        by_sql("update orders set total = total + 1 where id = 'o1'"),
        {"order:o1": Kind.DIFFERENT},
        ("orders.total",),
    ),
    Fault(
        "a child row is edited by hand",
        by_sql("update order_items set quantity = quantity + 1 where order_id = 'o1' and position = 1"),
        {"order:o1": Kind.DIFFERENT},
        ("order_items[1].quantity",),
    ),
    Fault(
        "a child row vanishes",
        by_sql("delete from order_items where order_id = 'o1' and position = 2"),
        {"order:o1": Kind.DIFFERENT},
        ("order_items[2]",),
    ),
    Fault(
        "a child row too many",
        by_sql("insert into order_items (order_id, position, sku, quantity) values ('o1', 3, 'x', 1)"),
        {"order:o1": Kind.DIFFERENT},
        ("order_items[3]",),
    ),
    Fault(
        "child rows in another order",
        by_sql(
            """
            update order_items set position = position + 100 where order_id = 'o1' and position < 2;
            update order_items set position = 101 - position where order_id = 'o1' and position >= 100
            """
        ),
        {"order:o1": Kind.DIFFERENT},
    ),
    Fault(
        "a child row moves to another record",
        by_sql("update order_items set order_id = 'o2', position = 3 where order_id = 'o1' and position = 2"),
        {"order:o1": Kind.DIFFERENT, "order:o2": Kind.DIFFERENT},
    ),
    Fault(
        "two records swap a value",
        by_sql(
            """
            update orders o set note = other.note from orders other
             where (o.id, other.id) in (('o1', 'o2'), ('o2', 'o1'))
            """
        ),
        {"order:o1": Kind.DIFFERENT, "order:o2": Kind.DIFFERENT},
        ("orders.note",),
    ),
    Fault(
        "two records swap all that they hold",
        by_sql(
            """
            update clients c set (name, city, email, rest) = (select o.name, o.city, o.email, o.rest from clients o
                where o.id = case c.id when 'c1' then 'c2' else 'c1' end)
             where c.id in ('c1', 'c2')
            """
        ),
        {"client:c1": Kind.DIFFERENT, "client:c2": Kind.DIFFERENT},
        ("clients.city", "clients.email", "clients.name"),
    ),
    Fault(
        "a negative number is read as an unsigned one",
        by_sql("update orders set points = 4294967295 where points = -1"),
        {"order:o1": Kind.DIFFERENT},
        ("orders.points",),
    ),
    Fault(
        "two columns swap their values",
        by_sql("update clients set name = city, city = name where id = 'c1'"),
        {"client:c1": Kind.DIFFERENT},
        ("clients.city", "clients.name"),
    ),
    Fault(
        "a value moves from one column's end to the next one's beginning",
        by_sql("update clients set name = name || left(city, 1), city = substr(city, 2) where id = 'c1'"),
        {"client:c1": Kind.DIFFERENT},
        ("clients.city", "clients.name"),
    ),
    Fault(
        "two faults that cancel in a sum",
        by_sql("update orders set total = total + case id when 'o1' then 5 else -5 end where id in ('o1', 'o2')"),
        {"order:o1": Kind.DIFFERENT, "order:o2": Kind.DIFFERENT},
        ("orders.total",),
    ),
    Fault(
        "a text is cut off",
        by_sql("update orders set note = left(note, 3) where id = 'o1'"),
        {"order:o1": Kind.DIFFERENT},
        ("orders.note",),
    ),
    Fault(
        "a blank at the end of a text",
        by_sql("update orders set note = note || ' ' where id = 'o1'"),
        {"order:o1": Kind.DIFFERENT},
        ("orders.note",),
    ),
    Fault(
        "a number is rounded",
        by_sql("update orders set total = round(total) where id = 'o1'"),
        {"order:o1": Kind.DIFFERENT},
        ("orders.total",),
    ),
    Fault(
        "an instant is shifted by a time zone",
        by_sql("update orders set created_at = created_at at time zone 'Europe/Berlin' where id = 'o1'"),
        {"order:o1": Kind.DIFFERENT},
        ("orders.created_at",),
    ),
    Fault(
        "a milliseconds' difference",
        by_sql("update orders set created_at = created_at + interval '1 ms' where id = 'o1'"),
        {"order:o1": Kind.DIFFERENT},
        ("orders.created_at",),
    ),
    Fault(
        "an empty text where there was none",
        by_sql("update orders set note = null where id = 'o1'"),
        {"order:o1": Kind.DIFFERENT},
        ("orders.note",),
    ),
    Fault(
        "an explicit null becomes an absent field",
        by_sql("update orders set rest = rest - 'gift' where id = 'o1'"),
        {"order:o1": Kind.DIFFERENT},
        ("orders.rest",),
    ),
    Fault(
        "a field without a column is changed",
        by_sql("""update orders set rest = jsonb_set(rest, '{source}', '"app"') where id = 'o1'"""),
        {"order:o1": Kind.DIFFERENT},
        ("orders.rest",),
    ),
    Fault(
        "equal members of a long array change alike",
        by_sql(
            "update orders set rest = jsonb_set(rest, '{readings}', to_jsonb(array_fill(2, array[64]))) where id = 'o1'"
        ),
        {"order:o1": Kind.DIFFERENT},
        ("orders.rest",),
    ),
    Fault(
        "two fields without a column swap their values",
        by_sql(
            """
            update orders set rest = jsonb_set(jsonb_set(rest, '{options,k01}', rest #> '{options,k17}'),
                                               '{options,k17}', rest #> '{options,k01}') where id = 'o1'
            """
        ),
        {"order:o1": Kind.DIFFERENT},
        ("orders.rest",),
    ),
    Fault(
        "a child's field without a column is lost",
        by_sql("update order_items set rest = null where order_id = 'o1' and position = 0"),
        {"order:o1": Kind.DIFFERENT},
        ("order_items[0].rest",),
    ),
    Fault(
        "a record moves to another entity",
        by_sql(
            """
            insert into clients (id, name) select id, note from orders where id = 'o1';
            delete from order_items where order_id = 'o1'; delete from orders where id = 'o1'
            """
        ),
        {"client:o1": Kind.EXTRA, "order:o1": Kind.MISSING},
    ),
    Fault(
        "a table is emptied",
        by_sql("delete from clients"),
        {f"client:c{number}": Kind.MISSING for number in range(CLIENTS)},
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_it_catches_that(stores: Stores, fault: Fault) -> None:
    await fault.inject(stores)
    done, found = await stores.compare()
    assert seen(found) == fault.expected
    if fault.fields:
        assert found[0].fields == fault.fields
    assert done.mismatches == {
        kind: sum(expected is kind for expected in fault.expected.values()) for kind in fault.expected.values()
    }
    assert done.percent < 100


async def test_a_record_that_is_rejected_is_known_as_such_and_not_counted_as_different(stores: Stores) -> None:
    await stores.put("order:o1", order(1, total="a lot"))
    await stores.carry()
    done, found = await stores.compare()
    assert seen(found) == {"order:o1": Kind.REJECTED}
    assert (done.records, done.different, done.percent) == ({"client": CLIENTS, "order": ORDERS - 1}, 0, 100.0)


async def test_the_rows_of_a_rejected_record_are_found_if_they_stay(stores: Stores) -> None:
    await stores.put("order:o1", order(1, total="a lot"))
    await stores.carry()
    await stores.target.execute("insert into orders (id, client_id) values ('o1', 'c1')")
    done, found = await stores.compare()
    assert seen(found) == {"order:o1": Kind.DIFFERENT}
    assert done.different == 1


async def test_a_mismatch_leads_to_the_trace_of_whoever_wrote_it(stores: Stores) -> None:
    async with stores.source.transaction():
        await stores.source.execute(
            "select set_config('replank.traceparent', $1, true)", f"00-{TRACE}-b7ad6b7169203331-01"
        )
        await stores.put("order:o1", order(1, note="traced"))
    await stores.carry()
    await stores.target.execute("update orders set note = 'else' where id in ('o1', 'o2')")
    _, found = await stores.compare()
    assert {mismatch.key: mismatch.trace_id for mismatch in found} == {"order:o1": TRACE, "order:o2": None}


async def test_every_mismatch_of_a_chunk_is_found_however_many_there_are(stores: Stores) -> None:
    for number in range(700):
        await stores.put(f"order:many{number}", order(1))
    await stores.carry()
    await stores.target.execute("update orders set note = 'else' where id like 'many%'")
    done, found = await stores.compare()
    assert len(found) == done.different == 700
    some, told = await stores.compare(AT_ONCE.model_copy(update={"details": 50, "settle_keys": 40, "chunk_rows": 60}))
    assert (len(told), some.different, some.untold) == (50, 700, 650)


MANY = """
insert into kv_store (key, value)
select 'session:' || lpad(n::text, 4, '0'), to_jsonb(repeat('x', case when n <= 3000 then 8 else 4000 end))
from generate_series(1, 3100) as n
"""


async def test_a_chunk_ends_at_so_many_records_or_bytes_and_the_next_one_goes_on_after_it(stores: Stores) -> None:
    await stores.source.execute(MANY)
    everything = await stores.source.fetchval("select array_agg(key order by key) from kv_store")
    walked: list[str] = []
    sizes: list[tuple[int, int]] = []
    async with opened(stores.source_dsn, stores.target_dsn, stores.mapping, "forward") as sides:
        while (chunk := await sides.chunk(walked[-1] if walked else None, rows=2000, bytes_=50_000))[0]:
            keys, values = chunk
            walked += keys
            sizes.append((len(keys), sum(map(len, values))))
            assert sum(map(len, values[:-1])) < 50_000
    assert walked == everything
    # Each is as large as it may be: only the last one ends for another reason.
    assert all(records == 2000 or size >= 50_000 for records, size in sizes[:-1])


@pytest.mark.parametrize("collation", ["C", "und-x-icu", "en-US-x-icu"])
async def test_databases_that_sort_differently_are_walked_whole(postgres_server: str, collation: str) -> None:
    async with shop(postgres_server, collation=collation) as stores:
        keys = [
            f"order:{name}"
            for name in ("a", "B", "b", "Ä", "ä", "_", "-", "ab", "aB", "Z", "\u00e9", "e\u0301", "ß", "ss", "中")
        ]
        for key in keys:
            await stores.put(key, order(1))
        await stores.carry()
        small = AT_ONCE.model_copy(update={"chunk_rows": 2})
        done, found = await stores.compare(small)
        assert found == []
        assert done.records["order"] == done.rows["order"] == ORDERS + len(keys)
        await stores.target.execute("update orders set note = 'else' where id in ('B', 'ä', '中')")
        _, found = await stores.compare(small)
        assert sorted(seen(found)) == sorted(["order:B", "order:ä", "order:中"])


# --- what it cannot catch ---


async def test_it_cannot_catch_a_fault_of_the_mapping(postgres_server: str) -> None:
    wrong = SHOP.replace("name: {path: name,", "name: {path: address.city,").replace(
        "city: {path: address.city,", "city: {path: name,"
    )
    async with shop(postgres_server, mapping=wrong) as stores:
        assert await stores.target.fetchval("select name from clients where id = 'c1'") == "City 1"
        assert (await stores.compare())[1] == []


async def test_it_cannot_catch_what_was_undone_before_it_looked(stores: Stores) -> None:
    await stores.target.execute("update orders set total = 0 where id = 'o1'")
    await stores.target.execute("update orders set total = 11.25 where id = 'o1'")
    assert (await stores.compare())[1] == []


async def test_it_cannot_catch_a_source_that_is_itself_wrong(stores: Stores) -> None:
    await stores.put("order:o1", order(1, total=-1))
    await stores.carry()
    assert (await stores.compare())[1] == []


async def test_it_does_not_look_at_fields_that_are_dropped_or_lenient(stores: Stores) -> None:
    await stores.source.execute("alter table kv_store disable trigger user")
    await stores.put("client:c1", client(1, email=" C1@Example.com ", internalNote="new"))
    assert (await stores.compare())[1] == []


async def test_it_does_not_look_at_keys_that_are_ignored(stores: Stores) -> None:
    await stores.put("session:2", {"user": 2})
    assert (await stores.compare())[1] == []


# --- changes on their way ---


async def test_a_change_on_its_way_is_neither_equal_nor_different(stores: Stores) -> None:
    await stores.put("order:o1", order(1, note="newer"))
    await stores.put("order:new", order(1))
    await stores.delete("order:o2")
    waiting = ComparisonSettings(in_flight=3600, pause=0.01, patience=0.1)
    done, found = await stores.compare(waiting)
    assert (found, done.unsettled, done.different) == ([], 3, 0)
    await stores.carry()
    done, found = await stores.compare(waiting)
    assert (found, done.unsettled) == ([], 0)


_LOOKED_FOR = """
    select exists (select from pg_stat_activity
                    where datname = current_database() and application_name = 'replank-migrate-compare'
                      and query like '%replank_outbox.event%')
"""


async def test_a_change_that_arrives_while_it_is_looked_at_is_no_difference(stores: Stores) -> None:
    await stores.put("order:o1", order(1, note="newer"))

    async def later() -> None:
        await eventually(lambda: stores.source.fetchval(_LOOKED_FOR), "what is on its way was looked for", within=10)
        await stores.carry()

    carrying = asyncio.create_task(later())
    done, found = await stores.compare(ComparisonSettings(in_flight=3600, pause=0.01, patience=10))
    await carrying
    assert (found, done.unsettled) == ([], 0)


async def test_under_constant_change_nothing_is_called_different_that_is_not(stores: Stores) -> None:
    stop, written = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with session(stores.source_dsn, "writer", timeout=30) as conn:
            for turn in itertools.count():
                if stop.is_set():
                    return
                if turn % 50 == 0:
                    written.set()
                key, value = f"order:o{turn % ORDERS}", order(turn % ORDERS, note=f"note {turn % 3}")
                if turn % 7 == 0:
                    await conn.execute("delete from kv_store where key = $1", key)
                else:
                    await conn.execute(PUT, key, json.dumps(value))

    async def carry() -> None:
        while not stop.is_set():
            # Always a little behind.
            written.clear()
            await stores.carry()
            await written.wait()

    busy = [asyncio.create_task(write()), asyncio.create_task(carry())]
    naive = 0  # what one look at each side takes for differences
    try:
        async with opened(stores.source_dsn, stores.target_dsn, stores.mapping, "forward") as sides:
            while naive < 50:
                keys, values = await sides.chunk(None, rows=100, bytes_=2**20)
                naive += len((await sides.compare(keys, values)).different)
                done, found = await stores.compare(ComparisonSettings(pause=0.001, patience=0.05, chunk_rows=3))
                assert found == []
    finally:
        stop.set()
        written.set()
        await asyncio.gather(*busy)
    await stores.carry()
    done, found = await stores.compare()
    assert (found, done.unsettled) == ([], 0)


async def test_in_one_database_nothing_is_called_different_under_constant_change(postgres_server: str) -> None:
    async with shop(postgres_server, same_transaction=True) as stores:
        stop = asyncio.Event()

        async def write() -> None:
            async with session(stores.source_dsn, "writer", timeout=30) as conn:
                for turn in itertools.count():
                    if stop.is_set():
                        return
                    # There and back: the record is often the same in two looks, and was another in between.
                    value = order(turn // 2 % ORDERS, note=f"note {turn % 2}")
                    await conn.execute(PUT, f"order:o{turn // 2 % ORDERS}", json.dumps(value))

        busy = asyncio.create_task(write())
        try:
            for _ in range(20):
                _, found = await stores.compare(ComparisonSettings(pause=0.001, patience=0.05, chunk_rows=3))
                assert found == []
        finally:
            stop.set()
            await busy
        assert (await stores.compare())[1] == []
        await stores.target.execute("update orders set note = 'else' where id = 'o1'")
        assert seen((await stores.compare())[1]) == {"order:o1": Kind.DIFFERENT}


# --- interrupted ---


@pytest.mark.parametrize("reports", [1, 3, 5, 8])
async def test_a_run_that_is_interrupted_goes_on_and_finds_the_same(stores: Stores, reports: int) -> None:
    for number in (0, 3, 7):
        await stores.target.execute("update orders set note = 'else' where id = $1", f"o{number}")
    await stores.target.execute("delete from clients where id = 'c2'")
    await stores.target.execute("insert into orders (id, client_id) values ('phantom', 'c1')")
    settings = AT_ONCE.model_copy(update={"chunk_rows": 3, "settle_keys": 2})
    whole, everything = await stores.compare(settings)
    stored: list[tuple[str, Findings]] = []

    async def store(progress: Progress, findings: Findings) -> None:
        if len(stored) == reports:
            raise ConnectionResetError
        stored.append((progress.model_dump_json(), findings))

    interrupted = Comparison(
        stores.source_dsn, stores.target_dsn, stores.mapping, report=store, settings=lambda: settings
    )
    with pytest.raises(ConnectionResetError):
        await interrupted.run()
    done, rest = await stores.compare(settings, start=Progress.model_validate_json(stored[-1][0]))
    found = [mismatch for _, findings in stored for mismatch in findings.mismatches] + rest
    assert sorted(found, key=lambda mismatch: mismatch.key) == everything
    # How many there are, about, is what Postgres knew at the time.
    not_exact = {"seconds": 0, "records_estimated": 0}
    assert done.model_copy(update=not_exact) == whole.model_copy(update=not_exact)
