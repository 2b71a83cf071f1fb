"""How a benchmark goes about its runs: within its time, one after the other, each of them good or void."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

import psutil
from rich.console import Console

from bench.postgres import CountersLost
from bench.procs import ProcessFailed
from bench.report import Report
from replank.testing.wait import eventually

BUDGET_S: Final = 560.0
"""After so long no further run is begun, and one that is running is given up: the whole stays under ten minutes."""

_BUSY_PERCENT: Final = 15.0

Measured = TypeVar("Measured")


class Void(RuntimeError):
    """A run whose numbers must not be used: something was lost or changed, did not come in time, or was too short."""


class Runs:
    """The runs of one benchmark. The time begins when it is made."""

    def __init__(self, report: Report, console: Console) -> None:
        self._report = report
        self._console = console
        self._end = time.monotonic() + BUDGET_S
        self.void = False
        """Whether a run of ours was void."""

    async def attempt(
        self,
        what: str,
        measure: Callable[[], Awaitable[Measured]],
        summary: Callable[[Measured], str],
        *,
        ours: bool = True,
    ) -> Measured | None:
        """One run. None, and a note under the table, when it was void or there was no time for it."""
        left = self._end - time.monotonic()
        if left <= 0:
            self._report.note(f"{what}: left out, the time for the whole benchmark was used up")
            return None
        began = time.monotonic()
        try:
            async with asyncio.timeout(left):
                measured = await measure()
        except (Void, ProcessFailed, CountersLost) as error:
            self.void = self.void or ours
            self._report.note(f"{what}: void: {error}")
            self._console.print(f"{what}: void", style="red")
            return None
        except TimeoutError:
            self._report.note(f"{what}: given up, the time for the whole benchmark was used up")
            return None
        self._console.print(f"{what}: {summary(measured)} ({time.monotonic() - began:.0f} s)", highlight=False)
        return measured


async def in_time(
    condition: Callable[[], Awaitable[Any] | Any], what: str, *, within: float, interval: float = 0.02
) -> None:
    """Wait until the condition holds. Raises `Void` when that took more than ``within`` seconds."""
    try:
        await eventually(condition, what, within=within, interval=interval)
    except AssertionError as error:
        raise Void(str(error)) from None


def console() -> Console:
    """Where a benchmark prints."""
    return Console(width=None if sys.stdout.isatty() else 200)


def note_a_busy_machine(report: Report) -> None:
    """Say under the table that the machine was busy with something else, if it is."""
    if (busy := psutil.cpu_percent(interval=1.0)) > _BUSY_PERCENT:
        report.note(f"the machine was busy before the benchmark began ({busy:.0f} %): read the numbers with care")


def run(name: str, benchmark: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a benchmark and exit with its status. Ended from outside, it ends its processes and drops what it made."""
    try:
        sys.exit(asyncio.run(_ending_on_sigterm(benchmark)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(f"bench-{name}: ended before it had finished; nothing was written")


async def _ending_on_sigterm(benchmark: Coroutine[Any, Any, int]) -> int:
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    return await benchmark
