from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from replank.flags import MAX_VALUE_BYTES, Flag, FlagValueTooLarge, InvalidFlag, bucket
from replank.flags.model import check_author, check_name, check_rollout, encode_value
from replank.flags.table import FlagTable
from tests.common.flags.conftest import a_flag


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a" * 129, "ä", "a\n", "a\x00"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidFlag):
        check_name(name)


@pytest.mark.parametrize(
    "value", [None, math.nan, math.inf, b"x", {1, 2}, {"a": object()}, "a\x00b", {"a\x00": 1}, "\ud800"]
)
def test_a_value_that_is_not_json_for_everybody_is_refused(value: Any) -> None:
    with pytest.raises(InvalidFlag):
        encode_value("f", value)


def test_a_value_that_refers_to_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidFlag):
        encode_value("f", value)


def test_a_number_with_more_digits_than_python_prints_is_refused() -> None:
    with pytest.raises(InvalidFlag):
        encode_value("f", 10**5000)


def test_the_size_of_a_value_is_limited_in_bytes() -> None:
    assert encode_value("f", "x" * (MAX_VALUE_BYTES - 2))
    with pytest.raises(FlagValueTooLarge):
        encode_value("f", "x" * (MAX_VALUE_BYTES - 1))
    with pytest.raises(FlagValueTooLarge):
        encode_value("f", "€" * (MAX_VALUE_BYTES // 2))


@pytest.mark.parametrize("rollout", [-0.001, 100.001, math.nan, math.inf, True, "5", None, 0.0001])
def test_a_rollout_that_is_no_percentage_is_refused(rollout: Any) -> None:
    with pytest.raises(InvalidFlag):
        check_rollout("f", rollout)


@pytest.mark.parametrize(("by", "reason"), [("", ""), ("ada", ""), ("user:", ""), ("user:ada", "x" * 2001), (None, "")])
def test_a_change_names_its_author_and_a_reason_that_can_be_kept(by: Any, reason: str) -> None:
    with pytest.raises(InvalidFlag):
        check_author("f", by, reason)


def test_who_is_in_a_rollout_never_changes_between_versions_of_this_library() -> None:
    # Computed independently: int(sha256(b"name\0key").hexdigest()[:16], 16) * 100000 >> 64, divided by 1000.
    assert bucket("new-checkout", "user-1") == 90.116
    assert bucket("new-checkout", "user-2") == 95.626
    assert bucket("f", "ü") == 63.414


def test_a_rollout_reaches_its_share_and_growing_it_only_adds() -> None:
    keys = [f"user-{number}" for number in range(20_000)]
    quarter = {key for key in keys if a_flag("f", rollout=25.0).reaches(key)}
    half = {key for key in keys if a_flag("f", rollout=50.0).reaches(key)}
    other = {key for key in keys if a_flag("g", rollout=25.0).reaches(key)}
    assert 0.235 < len(quarter) / len(keys) < 0.265
    assert quarter < half
    # Independent flags: a quarter of a quarter in common, not the same keys.
    assert 0.045 < len(quarter & other) / len(keys) < 0.08
    assert max(Counter(int(bucket("f", key)) for key in keys).values()) < 300


def test_only_a_newer_version_of_a_flag_is_taken() -> None:
    table = FlagTable()
    assert table.apply(a_flag("f", 1, version=2))
    assert not table.apply(a_flag("f", 2, version=2))
    assert not table.apply(a_flag("f", 0, version=1))
    assert table.live["f"].value == 1
    assert table.apply(a_flag("f", None, version=3, deleted=True, enabled=False))
    assert "f" not in table.live
    assert not table.apply(a_flag("f", 1, version=2))
    assert table.apply(a_flag("f", 4, version=4))
    assert table.live["f"].value == 4


def test_a_flag_survives_its_event() -> None:
    flag = a_flag("f", {"a": [1, 2.5, None, "x"]}, rollout=12.345)
    assert Flag.of(type(flag.changed()).from_value(flag.changed().to_value())) == flag
