"""The command tree and the one place where errors become exit codes."""

from __future__ import annotations

import sys

import typer

from replank.errors import ReplankError
from replank_cli import demo, dlq, events, flags, outbox, relay, stack, traces
from replank_cli.console import errors

app = typer.Typer(
    name="replank",
    help="Replace every plank of a live Postgres while it sails.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
stack.register(app)
app.command("demo")(demo.demo)
app.add_typer(events.app, name="events")
app.add_typer(outbox.app, name="outbox")
app.add_typer(relay.app, name="relay")
app.add_typer(dlq.app, name="dlq")
app.add_typer(flags.app, name="flags")
app.add_typer(traces.app, name="trace")


def main() -> None:
    """Run the command; a known error is one line on standard error and exit status 1, never a traceback."""
    try:
        app()
    except ReplankError as error:
        errors.print(f"[bold red]error:[/] {error.message}", highlight=False)
        if error.fix:
            errors.print(f"  [dim]what to do:[/] {error.fix}", highlight=False)
        sys.exit(1)
