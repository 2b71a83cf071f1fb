"""Two JSON values are told apart by the paths that were added, removed or changed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replank_schema.vault.difference import Difference, difference, equal
from tests.schema.vault.real import REAL_SCHEMAS

CASES: list[tuple[object, object, Difference]] = [
    ({"a": 1}, {"a": 1}, Difference((), (), (), 0)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, Difference((), (), (), 0)),
    (1, 1.0, Difference((), (), (), 0)),
    (1, True, Difference((), (), ("",), 1)),
    ([0], [False], Difference((), (), ("/0",), 1)),
    (None, 0, Difference((), (), ("",), 1)),
    ({"a": 1}, {"b": {"c": 1}}, Difference(("/b",), ("/a",), (), 2)),
    ({"a": {"b": 1}}, {"a": [1]}, Difference((), (), ("/a",), 1)),
    ({"a": {"b": 1, "c": 2}}, {"a": {"b": 2, "d": 3}}, Difference(("/a/d",), ("/a/c",), ("/a/b",), 3)),
    ([1, 2, 3], [0, 1, 2, 3], Difference(("/3",), (), ("/0", "/1", "/2"), 4)),
    ([1, 2, 3], [1], Difference((), ("/1", "/2"), (), 2)),
    ({"a/b": {"~": 1, "": 1}}, {"a/b": {"~": 2, "": 2}}, Difference((), (), ("/a~1b/~0", "/a~1b/"), 2)),
]


@pytest.mark.parametrize(("old", "new", "expected"), CASES)
def test_paths_are_those_that_came_went_or_changed(old: object, new: object, expected: Difference) -> None:
    assert difference(old, new) == expected


def test_the_list_is_bounded_and_all_are_counted() -> None:
    found = difference({str(number): 0 for number in range(50)}, {str(number): 1 for number in range(70)}, limit=10)

    assert (len(found.added) + len(found.removed) + len(found.changed), found.count) == (10, 70)


def test_values_nested_deeper_than_python_calls_are_compared() -> None:
    old: Any = 1
    new: Any = 2
    for _ in range(5_000):
        old, new = [old], [new]

    assert difference(old, new).changed == ("/0" * 5_000,)


SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, 1.5]) | st.sampled_from(["", "a"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b/", "~"]), inner, max_size=3),
    max_leaves=10,
)


def at(value: Any, path: str) -> Any:
    for token in path.split("/")[1:]:
        member = token.replace("~1", "/").replace("~0", "~")
        value = value[int(member)] if isinstance(value, list) else value[member]
    return value


def put(value: Any, path: str, new: Any) -> None:
    *above, token = path.split("/")[1:]
    holder = at(value, "".join(f"/{each}" for each in above))
    member = token.replace("~1", "/").replace("~0", "~")
    if isinstance(holder, dict):
        holder[member] = new
    elif int(member) == len(holder):
        holder.append(new)
    else:
        holder[int(member)] = new


def normal(value: Any) -> str:
    """One text for all values that are the same JSON."""
    return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)


@given(VALUES, VALUES)
def test_the_paths_are_all_that_it_takes_to_make_the_new_value_of_the_old(old: Any, new: Any) -> None:
    found = difference(old, new)

    assert (found.count == 0) is (normal(old) == normal(new)) is equal(old, new)
    made = {"root": copy.deepcopy(old)}
    for path in [*found.changed, *found.added]:
        put(made, f"/root{path}", at(new, path))
    for path in reversed(found.removed):
        holder = at(made, f"/root{path}".rpartition("/")[0])
        member = path.rpartition("/")[2].replace("~1", "/").replace("~0", "~")
        del holder[int(member) if isinstance(holder, list) else member]
    assert normal(made["root"]) == normal(new)


@given(VALUES, VALUES)
def test_what_was_added_one_way_was_removed_the_other(old: Any, new: Any) -> None:
    there, back = difference(old, new), difference(new, old)

    assert set(there.added) == set(back.removed)
    assert set(there.changed) == set(back.changed)


def test_a_change_in_a_real_schema_is_the_one_found() -> None:
    old = json.loads(REAL_SCHEMAS["github-workflows.json"])
    new = copy.deepcopy(old)
    new["properties"]["more"] = {"type": "string"}
    new["$schema"] = "another"
    del new["definitions"]["architecture"]

    assert difference(old, new) == Difference(("/properties/more",), ("/definitions/architecture",), ("/$schema",), 3)
