"""What several commands are given."""

from __future__ import annotations

import sys
from typing import Annotated, TypeAlias

import typer

from replank.errors import ConfigurationError

Named: TypeAlias = Annotated[str, typer.Argument(metavar="MIGRATION", help="Its name, or its id.", show_default=False)]
Reason: TypeAlias = Annotated[
    str | None,
    typer.Option("--reason", help="Why: kept in the audit. On a terminal it is asked for.", show_default=False),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="For programs: what the service answered, as JSON.")]
Wait: TypeAlias = Annotated[
    bool, typer.Option("--wait", help="Follow it until it is there. Ctrl-C leaves it to itself, without harm.")
]
Timeout: TypeAlias = Annotated[
    float | None,
    typer.Option("--timeout", min=0, help="With --wait: give up after so many seconds.", show_default=False),
]


def reason_of(given: str | None) -> str:
    """Why something is done: as given, or else asked for, where there is somebody to ask.

    Raises `ConfigurationError` where there is not.
    """
    if given is None and sys.stdin.isatty():
        given = typer.prompt("why (kept in the audit)", err=True)
    if given is None or not given.strip():
        raise ConfigurationError("no reason is given", fix="give --reason: it is kept in the audit")
    return given.strip()
