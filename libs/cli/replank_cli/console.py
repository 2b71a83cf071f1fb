"""The two terminals of the command: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

output = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)

_NO_WIDTH: Final = 100_000


def print_json(value: Any) -> None:
    """One line of JSON, for programs; ``--json`` on a command selects it."""
    output.print(json.dumps(value, default=str, ensure_ascii=False), markup=False, highlight=False)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    console: Console = output,
) -> None:
    """A plain table for people. Cells are text: whatever they hold, it is never read as markup, and never cut off."""
    table = Table(title=title, box=None, pad_edge=False, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    print_whole(table, console)


def print_whole(drawn: RenderableType, console: Console = output) -> None:
    """Something drawn, never cut off: a pipe or a file has no width, so each line of it is one line there."""
    wide = console if console.is_terminal else Console(file=console.file, width=_NO_WIDTH)
    wide.print(drawn)


def moment(at: datetime | None) -> str:
    """A moment in the reader's own time zone, to the second."""
    return at.astimezone().isoformat(sep=" ", timespec="seconds") if at is not None else ""
