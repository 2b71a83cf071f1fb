"""The command tree and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as command_of

from replank.errors import ReplankError
from replank_cli.console import errors

_STACK: Final = ("up", "down", "status", "logs", "env")
_LIBRARY: Final = {
    "demo": "demo",
    "events": "events",
    "outbox": "outbox",
    "relay": "relay",
    "dlq": "dlq",
    "flags": "flags",
    "migrate": "migrate",
    "vault": "vault",
    "trace": "traces",
}


class _Commands(TyperGroup):
    """Loads a command's module when it is asked for: all of them together take seconds, any one takes little."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        return [*_STACK, *_LIBRARY]

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup | None:  # noqa: ARG002
        if cmd_name in _STACK:
            app = importlib.import_module("replank_cli.stack").forward(cmd_name)
        elif cmd_name in _LIBRARY:
            app = importlib.import_module(f"replank_cli.{_LIBRARY[cmd_name]}").app
        else:
            return None
        command = command_of(app)
        command.name = cmd_name
        return command  # type: ignore[return-value]


app = typer.Typer(name="replank", cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def replank() -> None:
    """Replace every plank of a live Postgres while it sails."""


def main() -> None:
    """Run the command; a known error is said on standard error with exit status 1, never a traceback.

    It is one line, and what to do about it; more lines where several things are wrong.
    """
    try:
        app()
    except ReplankError as error:
        first, _, more = error.message.partition("\n")
        errors.print(f"error: {first}", style="bold red", markup=False, highlight=False)
        if more:
            errors.print(more, markup=False, highlight=False)
        if error.fix:
            errors.print(f"  what to do: {error.fix}", markup=False, highlight=False)
        sys.exit(1)
