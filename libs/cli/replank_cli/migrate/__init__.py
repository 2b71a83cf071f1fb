"""``replank migrate``: move a live key-value store to tables, and back."""

from __future__ import annotations

import typer

from replank_cli.migrate import comparing, mapping, phases, rejects

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Move a live key-value store to tables, step by step, with a way back at every moment.

    A migration goes planned > capturing > backfilling > verifying > shadow_reads > new_with_fallback > new_only >
    completed. `start` and `advance` lead it on, each refused with what is missing until the next phase is safe;
    `status` says what that is. `rollback` leads back from anywhere, until `retire` ends it for good. Whatever the
    command started goes on in the schema service: leaving `--wait` or `--watch` by Ctrl-C changes nothing.

    Exit status: 0 it is done, or was accepted; 1 it was refused, did not come to pass, or something was found that is
    not as it should be (`check`, `compare --wait`); 2 the command was not understood.
    """,
)

_MAPPING = "Before: the mapping"
_LIFE = "Lead it"
_LOOK = "Look"
_MEND = "Compare and mend"

for panel, name, command in (
    (_MAPPING, "infer", mapping.infer),
    (_MAPPING, "check", mapping.check),
    (_MAPPING, "sql", mapping.sql),
    (_LIFE, "plan", phases.plan),
    (_LIFE, "start", phases.start),
    (_LIFE, "advance", phases.advance),
    (_LIFE, "pause", phases.pause),
    (_LIFE, "resume", phases.resume),
    (_LIFE, "rollback", phases.rollback),
    (_LIFE, "cancel", phases.cancel),
    (_LIFE, "retire", phases.retire),
    (_LIFE, "set", phases.set_),
    (_LIFE, "reads", phases.reads),
    (_LOOK, "status", phases.status),
    (_LOOK, "list", phases.list_),
    (_LOOK, "audit", phases.audit),
    (_MEND, "compare", comparing.compare),
    (_MEND, "mismatches", comparing.mismatches),
    (_MEND, "repair", comparing.repair),
):
    app.command(name, rich_help_panel=panel)(command)
app.add_typer(rejects.app, name="rejects", rich_help_panel=_MEND)
