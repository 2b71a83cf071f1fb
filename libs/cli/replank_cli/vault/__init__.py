"""``replank vault``: keep schemas and documents, find them, and see that they are whole."""

from __future__ import annotations

import typer

from replank_cli.vault import changing, consistency, get, isolation, jobs, pattern, performance, push, reading

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Keep large JSON schemas and documents: publish versions, find them without reading them, compare them.

    There are two vaults, which share nothing: `--mode standard` and `--mode pro`. A name has segments of letters,
    digits and `._@+-`, joined by slashes.

    Exit status: 0 it is done, or was accepted; 1 it was refused, did not come to pass, or something was found that is
    not as it should be (`validate`, `check --wait`, `repair --wait`, `verify-isolation`); 2 the command was not
    understood.
    """,
)

_CONTENT = "Contents"
_LOOK = "Look"
_CHANGE = "Change"
_WHOLE = "See that it is whole"
_PATTERN = "Move it from rows that hold everything to object storage, and back"

for panel, name, command in (
    (_CONTENT, "push", push.push),
    (_CONTENT, "get", get.get),
    (_CONTENT, "job", jobs.job),
    (_LOOK, "list", reading.list_),
    (_LOOK, "show", reading.show_),
    (_LOOK, "versions", reading.versions),
    (_LOOK, "diff", reading.diff),
    (_LOOK, "validate", reading.validate),
    (_LOOK, "consumers", reading.consumers),
    (_CHANGE, "delete", changing.delete),
    (_CHANGE, "restore", changing.restore),
    (_CHANGE, "tag", changing.tag),
    (_CHANGE, "untag", changing.untag),
    (_WHOLE, "check", consistency.check),
    (_WHOLE, "findings", consistency.findings),
    (_WHOLE, "repair", consistency.repair),
    (_WHOLE, "verify-isolation", isolation.verify_isolation),
    (_PATTERN, "pattern", pattern.pattern),
    (_PATTERN, "migrate", pattern.migrate),
    (_PATTERN, "advance", pattern.advance),
    (_PATTERN, "rollback", pattern.rollback),
    (_PATTERN, "archive-old", pattern.archive_old),
    (_PATTERN, "performance-test", performance.performance_test),
):
    app.command(name, rich_help_panel=panel)(command)
