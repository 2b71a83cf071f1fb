"""What holds for every mapping and every record, on a real Postgres.

Each example is a mapping and many records at once, in a transaction that is rolled back.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import asyncpg
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from replank.migrate import mapping
from replank.migrate.mapping import Mapping
from tests.common.migrate.shop import ORDER, Target, dumps, shop

# Without shrinking: each step of it would be a migration. The example that fails is printed as it is.
_SETTINGS: Final = settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# JSON that Postgres can hold

_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_numbers = st.one_of(st.integers(-(10**20), 10**20), st.decimals(-(10**9), 10**9, places=3))
_scalars = st.one_of(st.booleans(), _numbers, _texts)
_json = st.recursive(
    st.one_of(st.none(), _scalars),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_texts, inner, max_size=3)),
    max_leaves=5,
)
_dirty_texts = st.one_of(
    _texts,
    st.sampled_from(
        ["", "  ", " A ", "12", "1.50", "-0", "1e3", "1e999", "NaN", "Infinity", "true", "Yes", "2024-02-30",
         "2024-2-9", "now", "2024-02-29T10:00:00Z", "2024-02-29T10:00:00.5+02:00", "0000-01-01", "infinity", "{}",
         "9999-12-31T23:59:59.9999Z", "294276-12-31T23:59:59.9999999Z",
         "4713-01-01 BC", "1e-400", "\u0663", "2024-\u06602-01",
         "00000000-0000-0000-0000-00000000000A", "İ", "1\n", "\u00a0"]
    ),
)  # fmt: skip
_anything = st.one_of(_json, _dirty_texts)


def _epochs(unit: int) -> st.SearchStrategy[int]:
    return st.integers(-62135596800 * unit, 253402300799 * unit + unit - 1)


def _instants(digits: int) -> st.SearchStrategy[str]:
    def spelled(at: dt.datetime) -> str:
        fraction = f"{at.microsecond:06}"[:digits]
        return at.strftime(f"{at.year:04}-%m-%dT%H:%M:%S") + (f".{fraction}" if digits else "") + "Z"

    return st.datetimes().map(spelled)


# Beyond 2^53 Postgres writes a few doubles with a digit more than others do: then they are rejected, not changed.
_doubles = st.floats(-(2.0**53), 2.0**53, allow_nan=False).filter(lambda number: number == 0 or abs(number) >= 1e-307)

#: (type, as) -> the values that come back as they were.
_EXACT: Final[dict[tuple[str, str], st.SearchStrategy[Any]]] = {
    ("text", ""): _texts,
    ("boolean", ""): st.booleans(),
    ("smallint", ""): st.integers(-(2**15), 2**15 - 1),
    ("integer", "number"): st.integers(-(2**31), 2**31 - 1),
    ("bigint", "string"): st.integers(-(2**63), 2**63 - 1).map(str),
    ("numeric", ""): st.decimals(allow_nan=False, allow_infinity=False, places=9),
    ("numeric(12,2)", ""): st.decimals("-9999999999.99", "9999999999.99", places=2),
    ("numeric(8,3)", "string"): st.decimals("-99999.999", "99999.999", places=3).map(
        lambda d: str(abs(d)) if d == 0 else str(d)
    ),
    ("double precision", ""): _doubles.map(lambda number: Decimal(repr(number))),
    ("date", ""): st.dates().map(dt.date.isoformat),
    ("timestamptz", "iso8601"): _instants(0),
    ("timestamptz", "iso8601_ms"): _instants(3),
    ("timestamptz", "iso8601_us"): _instants(6),
    ("timestamptz", "epoch_s"): _epochs(1),
    ("timestamptz", "epoch_ms"): _epochs(1000),
    ("uuid", ""): st.uuids().map(str),
    ("jsonb", ""): _json.filter(lambda value: value is not None),
}
_NAMES: Final = ("a", "b.c", "ü", "$", "it's", 'say "so"', "back\\slash", "0", "-1", "rest", "key", " ", "A", "nested")


@dataclass
class Generated:
    """A mapping of one entity, and what makes records of its domain and outside of it."""

    text: str
    good: st.SearchStrategy[dict[str, Any]] = field(repr=False)
    any: st.SearchStrategy[Any] = field(repr=False)
    mapping: Mapping = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.mapping = mapping.load(self.text)


@st.composite
def _objects(draw: st.DrawFn, *, rest: bool, lossy: bool, depth: int) -> tuple[dict[str, Any], Any, Any]:
    """Columns by name, with paths that begin here; good values, and any values, for the object here."""
    columns: dict[str, Any] = {}
    good: dict[str, Any] = {}
    wild: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=5, unique=True)):
        if depth and draw(st.integers(0, 3)) == 0:
            inner, inner_good, inner_wild = draw(_objects(rest=rest, lossy=lossy, depth=depth - 1))
            for inner_name, deep in inner.items():
                columns[f"{name}/{inner_name}"[:60]] = {**deep, "path": [name, *deep["path"]]}
            good[name] = st.one_of(inner_good, *([st.none()] if rest else []))
            wild[name] = st.one_of(inner_wild, _anything)
            continue
        kind, form = draw(st.sampled_from(sorted(_EXACT)))
        column: dict[str, Any] = {"path": [name], "type": kind} | ({"as": form} if form else {})
        if lossy and kind != "jsonb" and draw(st.booleans()):
            column["lenient"] = True
        if lossy and kind not in {"jsonb", "boolean", "double precision"}:
            column["clean"] = draw(st.lists(st.sampled_from(["empty_as_null", "trim", "lower"]), unique=True))
        columns[name] = column
        good[name] = st.one_of(_EXACT[kind, form], *([st.none()] if rest else []))
        wild[name] = st.one_of(_EXACT[kind, form], _anything)
    more = (
        st.dictionaries(_texts.filter(lambda text: text not in good), _json, max_size=2)
        if rest
        else st.just(dict[str, Any]())
    )
    # What is there at all, and beside it what nobody mapped. Without a rest an object with nothing in it has no place.
    values = st.builds(lambda known, other: {**other, **known}, st.fixed_dictionaries({}, optional=good), more)
    if not rest:
        values = st.fixed_dictionaries(good)
    dirty = st.builds(
        lambda known, other: {**other, **known},
        st.fixed_dictionaries({}, optional=wild),
        st.dictionaries(_texts, _json, max_size=1),
    )
    return columns, values, dirty


@st.composite
def mappings(draw: st.DrawFn, *, lossy: bool = False) -> Generated:
    rest = draw(st.booleans())
    columns, good, wild = draw(_objects(rest=rest, lossy=lossy, depth=2))
    entity: dict[str, Any] = {
        "key": "k:{id}",
        "table": "things",
        "columns": {"id": {"key": "id", "type": "text"}, **{f"c {name}": column for name, column in columns.items()}},
        "primary_key": ["id"],
    }
    if rest:
        entity["rest"] = "rest"
    if lossy and draw(st.booleans()):
        entity["drop"] = [["dropped"]]
        wild = st.builds(lambda value, dropped: {**value, "dropped": dropped}, wild, _json)
    if draw(st.booleans()):
        empty = "absent" if rest and draw(st.booleans()) else "array"
        child: dict[str, Any] = {"path": ["items"], "table": "items", "parent": ["thing_id"], "empty": empty}
        if draw(st.booleans()):
            kind, form = draw(st.sampled_from(sorted(key for key in _EXACT if key[0] != "jsonb")))
            child["columns"] = {"element": {"path": "$", "type": kind} | ({"as": form} if form else {})}
            elements = st.one_of(st.none(), _EXACT[kind, form])
            wild_elements = st.one_of(elements, _anything)
        else:
            child_rest = draw(st.booleans())
            child["columns"], elements, wild_elements = draw(_objects(rest=child_rest, lossy=lossy, depth=1))
            child["columns"] = {f"c {name}": column for name, column in child["columns"].items()}
            if child_rest:
                child["rest"] = "rest"
        entity["children"] = {"items": child}
        arrays = st.lists(elements, max_size=3)
        absent = st.just(dict[str, Any]()) if empty == "absent" else st.nothing()
        good = st.builds(
            lambda value, more: {**value, **more}, good, st.one_of(absent, arrays.map(lambda a: {"items": a}))
        )
        wild_arrays = st.one_of(st.lists(wild_elements, max_size=3), _anything)
        wild = st.builds(lambda value, array: {**value, "items": array}, wild, wild_arrays)
    document = {"mapping": 1, "name": "generated", "source": {"table": "kv"}, "entities": {"thing": entity}}
    return Generated(
        json.dumps(document, ensure_ascii=False),
        good,
        st.one_of(wild, _anything.filter(lambda value: value is not None)),
    )


@asynccontextmanager
async def _installed(dsn: str, map_: Mapping) -> AsyncIterator[Target]:
    conn = await asyncpg.connect(dsn)
    transaction = conn.transaction()
    await transaction.start()
    try:
        yield await Target.install(conn, map_)
    finally:
        await transaction.rollback()
        await conn.close()


def _keyed(values: list[Any]) -> dict[str, Any]:
    return {f"k:{n}": value for n, value in enumerate(values)}


_BACK: Final = """
    select r.key, r.val::text as was, d.value::text as is
      from unnest($1::text[], $2::text[]::jsonb[]) as r(key, val)
      left join {schema}.down($1::text[]) as d on d.key = r.key
     where d.value is distinct from r.val
"""


async def _changed(target: Target, records: dict[str, Any]) -> list[tuple[str, ...]]:
    """The records that do not come back as they were, under the equality of jsonb."""
    rows = await target.conn.fetch(
        _BACK.format(schema=target.sql.schema), list(records), [dumps(value) for value in records.values()]
    )
    return [tuple(row) for row in rows]


@_SETTINGS
@given(generated=mappings(), data=st.data())
def test_down_after_up_is_the_identity_on_the_domain(
    postgres_dsn: str, generated: Generated, data: st.DataObject
) -> None:
    records = _keyed(data.draw(st.lists(generated.good, min_size=1, max_size=30)))

    async def check() -> None:
        async with _installed(postgres_dsn, generated.mapping) as target:
            (row,) = await target.call("fill_compared", records, records.values())
            assert await target.rejects() == {}
            assert dict(row) == {"filled": len(records), "kept": 0, "rejected": 0, "different": []}
            assert await _changed(target, records) == []
            assert (await target.compare(records))["thing"]["different"] == []

    asyncio.run(check())


@_SETTINGS
@given(generated=mappings(lossy=True), data=st.data())
def test_whatever_the_record_it_is_converted_for_good_or_rejected(
    postgres_dsn: str, generated: Generated, data: st.DataObject
) -> None:
    """Nothing raises; and what comes back is converted again to the very same rows, and comes back the same again."""
    records = _keyed(data.draw(st.lists(generated.any, min_size=1, max_size=40)))

    async def check() -> None:
        async with _installed(postgres_dsn, generated.mapping) as target:
            (row,) = await target.call("fill_compared", records, records.values())
            assert row["filled"] + row["rejected"] == len(records)
            assert row["different"] == []
            rejects = await target.rejects()
            assert len(rejects) == row["rejected"]
            returned = await target.down(records)
            assert returned.keys() | rejects.keys() == records.keys()
            found = (await target.compare(returned)).get("thing")
            assert found is None or (found["different"], found["rejected"]) == ([], 0)
            assert await _changed(target, returned) == []
            if generated.mapping.entities["thing"].exact:
                kept = {key: value for key, value in records.items() if key in returned}
                assert await _changed(target, kept) == []
            # Applying comes to the same as filling.
            outcomes = await target.apply(*((key, value, 1) for key, value in records.items()))
            assert {key: problem for key, _, problem in outcomes if problem} == rejects
            assert await target.down(records) == returned

    asyncio.run(check())


# Any order of arrival

_states = st.sampled_from(
    [
        None,
        {"clientId": "c"},
        {**ORDER, "quantity": 1},
        {**ORDER, "quantity": 2, "items": [{"qty": 1, "sku": "b"}]},
        {**ORDER, "quantity": 3, "items": [], "meta": {"tags": ["x"]}},
        {**ORDER, "total": "a number it is not"},
    ]
)


@dataclass
class _History:
    """What was written to the store, version by version, of a few keys."""

    versions: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    drawn: int = 0

    def write(self, key: str, value: Any) -> None:
        self.drawn += 1
        self.versions.setdefault(key, []).append((self.drawn, value))

    def changes(self) -> list[tuple[str, Any, int]]:
        return [(key, value, version) for key, found in self.versions.items() for version, value in found]

    def store(self) -> dict[str, Any]:
        return {key: found[-1][1] for key, found in self.versions.items() if found[-1][1] is not None}


async def _check_nothing_is_older(target: Target, history: _History, before: dict[str, Any]) -> None:
    """No key has rows older than its newest applied version; ``before`` was there before anything was captured."""
    rows = await target.conn.fetch(f"select key, version from {target.sql.schema}.applied")
    applied = {row["key"]: row["version"] for row in rows}
    there = await target.down(history.versions.keys() | before.keys())
    for key in history.versions.keys() | before.keys():
        known = [(0, before.get(key)), *history.versions.get(key, [])]
        possible = [value for version, value in known if version >= applied.get(key, 0)]
        if key in there:
            assert there[key] in possible, key
        elif key in applied:
            assert any(value is None or _is_bad(value) for value in possible), key


def _is_bad(value: dict[str, Any]) -> bool:
    return isinstance(value.get("total"), str)


@_SETTINGS
@given(data=st.data())
def test_any_order_of_changes_duplicates_and_backfill_ends_in_the_newest_state(
    postgres_dsn: str, data: st.DataObject
) -> None:
    keys = [f"order:{n}" for n in range(3)]
    before = {key: value for key in keys if (value := data.draw(_states)) is not None}
    history = _History()
    store = dict(before)

    async def check() -> None:
        async with _installed(postgres_dsn, shop()) as target:
            for _ in range(data.draw(st.integers(1, 12))):
                match data.draw(st.sampled_from(["write", "write", "deliver", "fill"])):
                    case "write":
                        key, value = data.draw(st.sampled_from(keys)), data.draw(_states)
                        history.write(key, value)
                        store.pop(key, None)
                        store.update({key: value} if value is not None else {})
                    case "deliver" if history.drawn:
                        await target.apply(
                            *data.draw(st.lists(st.sampled_from(history.changes()), min_size=1, max_size=6))
                        )
                    case "fill":
                        await target.fill(store)
                await _check_nothing_is_older(target, history, before)
            await target.fill(store)
            if history.drawn:
                await target.apply(*data.draw(st.permutations(history.changes())))
            good = {key: value for key, value in store.items() if not _is_bad(value)}
            assert await target.down(keys) == good
            assert (await target.rejects()).keys() == store.keys() - good.keys()
            assert all(not row["different"] for row in (await target.compare(dict.fromkeys(keys) | store)).values())

    asyncio.run(check())
