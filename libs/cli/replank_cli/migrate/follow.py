"""Watching a migration until something is so: live on a terminal, else a line for each change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from replank.errors import DependencyUnavailable, ReplankError
from replank_cli.console import errors, output
from replank_cli.migrate import show
from replank_cli.migrate.service import Refused, Schema
from replank_cli.migrate.views import ENDS, Migration

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


def poll(ask: Callable[[], Any], on: Screen, *, timeout: float | None, left: str) -> Iterator[Any]:
    """What ``ask`` returns, every second, until whoever reads has enough.

    A service that is away is waited for: it comes back, and what it works on goes on. Raises `TookTooLong` after
    ``timeout`` seconds; ``left`` says what becomes then of what was waited for.
    """
    deadline = time.monotonic() + timeout if timeout is not None else None
    while True:
        try:
            yield ask()
        except (DependencyUnavailable, Refused) as error:
            if isinstance(error, Refused) and error.status < _SERVER_TROUBLE:
                raise
            on.show(Text(f"{error.message}; still asking", style="yellow"), f"{error.message}; still asking")
        if deadline is not None and time.monotonic() + _EVERY > deadline:
            raise TookTooLong(f"it took longer than {timeout:g} s: {left}", fix="`replank migrate status` shows it")
        time.sleep(_EVERY)


def until(
    schema: Schema, migration: Migration, satisfied: Callable[[Migration], bool], *, timeout: float | None, left: str
) -> Migration:
    """Show a migration until ``satisfied``; returns it as it is then.

    Ctrl-C ends the command, and only the command: ``left`` says what that means. Raises `TookTooLong`.
    """
    hint = Text(f"Ctrl-C leaves it to itself: {left}", style="dim")
    try:
        with screen() as on:
            for seen in poll(lambda: schema.migration(migration.id), on, timeout=timeout, left=left):
                on.show(Group(show.status(seen), Text(), hint), show.one_line(seen))
                if satisfied(seen):
                    found: Migration = seen
                    return found
    except KeyboardInterrupt:
        errors.print(f"left to itself: {left}", markup=False, highlight=False)
        raise typer.Exit(1) from None
    raise AssertionError("unreachable: polling has no end")


def watch(schema: Schema, migration: Migration) -> None:
    """Show a migration until it has come to an end, or Ctrl-C."""
    try:
        with screen(output) as on:
            for seen in poll(lambda: schema.migration(migration.id), on, timeout=None, left=""):
                on.show(show.status(seen), show.one_line(seen))
                if seen.phase in ENDS and seen.moving_to is None:
                    return
    except KeyboardInterrupt:
        raise typer.Exit from None
