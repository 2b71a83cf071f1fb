"""Waiting for a condition, with a deadline: the only place in the tests that sleeps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

Value = TypeVar("Value")


@overload
async def eventually(
    condition: Callable[[], Awaitable[Value]], message: str, *, within: float = 10.0, interval: float = 0.02
) -> Value: ...
@overload
async def eventually(
    condition: Callable[[], Value], message: str, *, within: float = 10.0, interval: float = 0.02
) -> Value: ...
async def eventually(
    condition: Callable[[], Any], message: str, *, within: float = 10.0, interval: float = 0.02
) -> Any:
    """Ask ``condition`` (plain or async) until it answers something true, and return that.

    An `AssertionError` raised by the condition counts as "not yet". After ``within`` seconds `AssertionError` is raised
    with ``message``, the last answer, and the last such error as its cause. Any other exception passes through at once.
    """
    deadline = time.monotonic() + within
    while True:
        answer: Any = None
        failure: AssertionError | None = None
        try:
            outcome = condition()
            answer = await outcome if inspect.isawaitable(outcome) else outcome
            if answer:
                return answer
        except AssertionError as error:
            failure = error
        if time.monotonic() >= deadline:
            last = f": {failure}" if failure else f" (last answer: {answer!r})"
            raise AssertionError(f"not within {within:g} s: {message}{last}") from failure
        await asyncio.sleep(interval)
