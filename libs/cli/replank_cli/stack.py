"""``replank up``, ``status`` and the rest: the local stack of this repository."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import typer

from replank.errors import ConfigurationError

_HELP: Final = {
    "up": "Start the local stack: servers, migrations, services.",
    "down": "Stop what `up` started. Data stays.",
    "status": "What runs, where, and whether it is ready.",
    "logs": "Show a server's or service's log.",
    "env": "Print where the running stack is, for eval.",
}


def forward(name: str) -> typer.Typer:
    """A command that passes its arguments on to `replank_local`, which only this repository has."""
    app = typer.Typer(add_completion=False)

    @app.command(
        name,
        help=_HELP[name],
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        add_help_option=False,
    )
    def command(context: typer.Context) -> None:
        try:
            local = importlib.import_module("replank_local.main")
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"`replank {name}` needs the local stack, which is not installed here",
                fix="run it in a checkout of Replank, after `make .venv`",
            ) from error
        sys.argv = ["replank", name, *context.args]
        local.main()

    return app
