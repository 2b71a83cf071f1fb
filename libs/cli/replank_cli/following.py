"""Watching something that a service does until it is so: live on a terminal, else a line for each change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from replank.errors import DependencyUnavailable, ReplankError
from replank_cli.asking import Refused
from replank_cli.console import errors

_EVERY: Final = 1.0
_SERVER_TROUBLE: Final = 500


class TookTooLong(ReplankError):
    """What was waited for did not come in the time that was given to it."""


class Screen(Protocol):
    """Where a watched thing is shown."""

    def show(self, whole: RenderableType, line: str) -> None:
        """Show it: ``whole`` where there is a terminal, else ``line``, if it is another than the last one."""


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def show(self, whole: RenderableType, line: str) -> None:  # noqa: ARG002 - the other kind of screen shows it
        if line != self._last:
            self._console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, highlight=False)
            self._last = line


class _Terminal:
    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, whole: RenderableType, line: str) -> None:  # noqa: ARG002 - the other kind of screen shows it
        self._live.update(whole, refresh=True)


@contextmanager
def screen(console: Console = errors) -> Iterator[Screen]:
    """A place to show something that changes. What is shown last stays."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        yield _Terminal(live)


def poll(
    ask: Callable[[], Any], on: Screen, *, timeout: float | None, left: str, look: str, every: float = _EVERY
) -> Iterator[Any]:
    """What ``ask`` returns, ``every`` so many seconds, until whoever reads has enough.

    A service that is away is waited for: it comes back, and what it works on goes on. Raises `TookTooLong` after
    ``timeout`` seconds; ``left`` says what becomes then of what was waited for, and ``look`` where that is to be seen.
    """
    deadline = time.monotonic() + timeout if timeout is not None else None
    while True:
        try:
            yield ask()
        except (DependencyUnavailable, Refused) as error:
            if isinstance(error, Refused) and error.status < _SERVER_TROUBLE:
                raise
            on.show(Text(f"{error.message}; still asking", style="yellow"), f"{error.message}; still asking")
        if deadline is not None and time.monotonic() + every > deadline:
            raise TookTooLong(f"it took longer than {timeout:g} s: {left}", fix=look)
        time.sleep(every)
