"""Waiting ends with the answer, or with an error that says what was waited for."""

from __future__ import annotations

import itertools

import pytest

from replank.testing import eventually


async def test_it_returns_the_first_answer_that_is_true() -> None:
    numbers = itertools.count()
    assert await eventually(lambda: next(numbers) // 3, "a number", interval=0.001) == 1


async def test_it_takes_async_conditions() -> None:
    numbers = itertools.count()

    async def condition() -> int:
        return next(numbers) // 3

    assert await eventually(condition, "a number", interval=0.001) == 1


async def test_what_was_waited_for_and_the_last_answer_are_in_the_error() -> None:
    with pytest.raises(AssertionError, match=r"not within 0.05 s: rows arrive \(last answer: 0\)"):
        await eventually(lambda: 0, "rows arrive", within=0.05)


async def test_a_failed_assertion_means_not_yet() -> None:
    numbers = itertools.count()

    def condition() -> bool:
        assert next(numbers) > 2, "too early"
        return True

    assert await eventually(condition, "later", interval=0.001)

    def never() -> bool:
        raise AssertionError("still too early")

    with pytest.raises(AssertionError, match="later: still too early"):
        await eventually(never, "later", within=0.05)


async def test_any_other_error_passes_through_at_once() -> None:
    def condition() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await eventually(condition, "never", within=60)
