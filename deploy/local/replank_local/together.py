"""Several things at the same time, each of which may fail."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from replank_local.errors import StackError


async def together(*steps: Coroutine[Any, Any, None]) -> None:
    """Do the steps at the same time, and wait for all of them even if one fails: none is broken off half-way.

    Raises one `StackError` with the texts of all that failed that way; any other error as it is.
    """
    results = await asyncio.gather(*steps, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    unexpected = [failure for failure in failures if not isinstance(failure, StackError)]
    if unexpected:
        raise unexpected[0]
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise StackError("\n".join(str(failure) for failure in failures))
