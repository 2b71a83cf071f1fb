"""Watching a migration until something is so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import typer
from rich.console import Group
from rich.text import Text

from replank_cli.console import errors, output
from replank_cli.following import poll, screen
from replank_cli.migrate import show
from replank_cli.migrate.service import Schema
from replank_cli.migrate.views import ENDS, Migration

#: Where it is to be seen how a migration does.
LOOK: Final = "`replank migrate status` shows it"


def until(
    schema: Schema, migration: Migration, satisfied: Callable[[Migration], bool], *, timeout: float | None, left: str
) -> Migration:
    """Show a migration until ``satisfied``; returns it as it is then.

    Ctrl-C ends the command, and only the command: ``left`` says what that means. Raises `TookTooLong`.
    """
    hint = Text(f"Ctrl-C leaves it to itself: {left}", style="dim")
    try:
        with screen() as on:
            for seen in poll(lambda: schema.migration(migration.id), on, timeout=timeout, left=left, look=LOOK):
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
            for seen in poll(lambda: schema.migration(migration.id), on, timeout=None, left="", look=LOOK):
                on.show(show.status(seen), show.one_line(seen))
                if seen.phase in ENDS and seen.moving_to is None:
                    return
    except KeyboardInterrupt:
        raise typer.Exit from None
