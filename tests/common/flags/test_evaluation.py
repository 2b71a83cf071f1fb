from __future__ import annotations

import timeit
from typing import Any

import pytest
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from replank.flags import Flag
from replank.flags.evaluation import Convert, as_boolean, as_float, as_integer, as_object, as_string, evaluate
from tests.common.flags.conftest import a_flag


def ask(flag: Flag | None, default: Any, convert: Convert, key: str | None = None, *, stale: bool = False) -> Any:
    return evaluate({flag.name: flag} if flag else {}, "f", default, key, convert, stale=stale)


@pytest.mark.parametrize(
    ("convert", "value", "expected"),
    [
        (as_boolean, True, True),
        (as_boolean, False, False),
        (as_string, "", ""),
        (as_integer, 7, 7),
        (as_integer, 7.0, 7),
        (as_float, 7, 7.0),
        (as_float, 0.5, 0.5),
        (as_object, {"a": 1}, {"a": 1}),
        (as_object, [1], [1]),
    ],
)
def test_a_flag_gives_its_value_as_the_type_asked_for(convert: Convert, value: Any, expected: Any) -> None:
    answer = ask(a_flag("f", value), "default", convert)
    assert answer.value == expected
    assert type(answer.value) is type(expected)
    assert (answer.reason, answer.variant, answer.error_code) == (Reason.STATIC, "on", None)
    assert answer.flag_metadata == {"version": 1}


@pytest.mark.parametrize(
    ("convert", "value"),
    [
        (as_boolean, 1),
        (as_boolean, "true"),
        (as_string, 1),
        (as_integer, True),
        (as_integer, 1.5),
        (as_integer, "1"),
        (as_float, True),
        (as_float, "1"),
        (as_float, 10**400),
        (as_object, "{}"),
        (as_object, 1),
    ],
)
def test_a_value_of_another_type_is_an_error_and_gives_the_default(convert: Convert, value: Any) -> None:
    answer = ask(a_flag("f", value), "default", convert)
    assert answer.value == "default"
    assert (answer.reason, answer.error_code) == (Reason.ERROR, ErrorCode.TYPE_MISMATCH)


def test_an_unknown_flag_gives_the_default_and_says_why() -> None:
    answer = ask(None, True, as_boolean)
    assert answer.value is True
    assert (answer.reason, answer.error_code) == (Reason.ERROR, ErrorCode.FLAG_NOT_FOUND)


def test_a_disabled_flag_gives_the_default() -> None:
    answer = ask(a_flag("f", False, enabled=False), True, as_boolean)
    assert answer.value is True
    assert (answer.reason, answer.error_code) == (Reason.DISABLED, None)


def test_a_partial_rollout_splits_by_targeting_key_and_needs_one() -> None:
    flag = a_flag("f", "new", rollout=50.0)
    keys = [str(number) for number in range(100)]
    inside = next(key for key in keys if flag.reaches(key))
    outside = next(key for key in keys if not flag.reaches(key))
    reached = ask(flag, "old", as_string, inside)
    assert (reached.value, reached.reason, reached.variant) == ("new", Reason.SPLIT, "on")
    others = ask(flag, "old", as_string, outside)
    assert (others.value, others.reason, others.variant) == ("old", Reason.SPLIT, "off")
    unknown = ask(flag, "old", as_string)
    assert (unknown.value, unknown.error_code) == ("old", ErrorCode.TARGETING_KEY_MISSING)


@pytest.mark.parametrize(("rollout", "expected"), [(0.0, "old"), (100.0, "new")])
def test_a_rollout_to_none_or_all_needs_no_targeting_key(rollout: float, expected: str) -> None:
    for key in (None, "user-1"):
        assert ask(a_flag("f", "new", rollout=rollout), "old", as_string, key).value == expected


def test_an_answer_says_that_it_may_be_out_of_date() -> None:
    answer = ask(a_flag("f", True), False, as_boolean, stale=True)
    assert (answer.value, answer.reason) == (True, Reason.STALE)


def test_what_a_caller_does_to_an_object_does_not_change_the_flag() -> None:
    flag = a_flag("f", {"a": [1]})
    ask(flag, {}, as_object).value["a"].append(2)
    assert ask(flag, {}, as_object).value == {"a": [1]}


def test_asking_is_a_lookup_in_memory() -> None:
    flags = {f"flag-{number}": a_flag(f"flag-{number}") for number in range(1000)}
    took = min(
        timeit.repeat(
            lambda: evaluate(flags, "flag-500", False, None, as_boolean, stale=False), number=10_000, repeat=5
        )
    )
    print(f"evaluation: {took / 10_000 * 1e9:.0f} ns")
    # A hundred times what it takes: only a lookup that leaves memory would be slower.
    assert took / 10_000 < 100e-6
