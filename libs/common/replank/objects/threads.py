"""Blocking calls off the event loop, in threads of our own, and what becomes of them when a task is cancelled."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

Args = ParamSpec("Args")
Result = TypeVar("Result")


class Threads:
    """A bounded pool. Calls see the context variables, and so the current span, of the task that makes them."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    def start(self, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Future[Result]:
        """Queue a call. Cancelling a task that awaits its future does not stop a call that runs: see `settled`."""
        context = contextvars.copy_context()
        return self._pool.submit(lambda: context.run(call, *args, **kwargs))

    async def run(self, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Make a call and wait for it. If the task is cancelled, the call runs on and its result is dropped."""
        return await asyncio.wrap_future(self.start(call, *args, **kwargs))

    def close(self) -> None:
        """Take no more calls; those that run come to their end, those still queued do not begin."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def settled(calls: Iterable[Future[Any]]) -> None:
    """Wait until none of these calls runs any more, whatever came of them. Those not yet begun do not begin."""
    running = [asyncio.wrap_future(call) for call in calls if not call.cancel() and not call.done()]
    if running:
        await asyncio.gather(*running, return_exceptions=True)
