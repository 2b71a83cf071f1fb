"""Comparing answers: what counts as a difference, and how it is named."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replank.migrate.client.answers import MOST_PATHS, differences, paths, shape

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@dataclass
class Product:
    name: str
    price: Decimal


@given(JSON)
def test_an_answer_is_like_itself(answer: Any) -> None:
    assert differences(shape(answer), shape(answer)) == []


@given(JSON, JSON)
def test_answers_that_differ_are_found_out(ours: Any, theirs: Any) -> None:
    alike = ours == theirs and repr(ours) == repr(theirs)
    if alike:
        assert differences(ours, theirs) == []
    elif ours != theirs:
        assert differences(ours, theirs)
        assert differences(theirs, ours)


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ({"a": 1}, {"a": 2}, ["a"]),
        ({"a": 1}, {"b": 1}, ["a", "b"]),
        ({"a": {"b": None}}, {"a": {}}, ["a.b"]),
        ([{"p": 1}, {"p": 2}], [{"p": 1}, {"p": 3}], ["*.p"]),
        ([1, 2], [1], ["$"]),
        ({"items": [1, 2]}, {"items": [2, 1]}, ["items.*"]),
        (True, 1, ["$"]),
        ({"a": 1}, None, ["$"]),
        ({"a": []}, {"a": {}}, ["a"]),
    ],
)
def test_differences_are_named_and_never_quoted(ours: Any, theirs: Any, found: list[str]) -> None:
    assert differences(ours, theirs) == found


def test_what_is_ignored_does_not_count() -> None:
    ours = {"at": 1, "items": [{"price": 1, "name": "a"}], "x": {"y": 1}}
    theirs = {"items": [{"price": 2, "name": "b"}], "x": {"y": 2}}
    assert differences(ours, theirs, paths(["at", "items.*.price", "x"])) == ["items.*.name"]
    assert differences(ours, theirs, paths(["*"])) == []


def test_there_are_never_very_many_paths() -> None:
    ours = {f"field{n}": n for n in range(100)}
    assert len(differences(ours, {})) == MOST_PATHS


def test_the_shape_of_an_answer_is_a_copy() -> None:
    answer = [Product("a", Decimal("1.50"))]
    before = shape(answer)
    answer[0].name = "b"
    assert before == [{"name": "a", "price": "1.50"}]
