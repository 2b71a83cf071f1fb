"""``replank up``, ``status`` and the rest: the local stack of this repository."""

from __future__ import annotations

import importlib
import sys

import typer

from replank.errors import ConfigurationError

_COMMANDS = {
    "up": "Start the local stack: servers, migrations, services.",
    "down": "Stop what `up` started. Data stays.",
    "status": "What runs, where, and whether it is ready.",
    "logs": "Show a server's or service's log.",
    "env": "Print where the running stack is, for eval.",
}


def register(app: typer.Typer) -> None:
    """Add the stack's commands; they pass their arguments on to `replank_local`, which only this repository has."""
    for name, text in _COMMANDS.items():
        app.command(
            name,
            help=text,
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
            add_help_option=False,
        )(_forward(name))


def _forward(name: str):  # type: ignore[no-untyped-def]
    def command(context: typer.Context) -> None:
        try:
            local = importlib.import_module("replank_local.main")
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"`replank {name}` needs the local stack, which is not installed here",
                fix="run it in a checkout of Replank, after `make .venv`",
            ) from error
        sys.argv = [f"replank {name}", name, *context.args]
        local.main()

    return command
