"""``replank migrate rejects``: records that could not be converted, looked at, sent again, or given up."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import typer

from replank.errors import ConfigurationError
from replank_cli.asking import Token, Url
from replank_cli.console import moment, output, print_json, print_table
from replank_cli.migrate.options import Json, Named, Reason, reason_of
from replank_cli.migrate.service import schema
from replank_cli.migrate.views import Reject

app = typer.Typer(
    add_completion=False,
    help="Records that could not be converted: look at them, send them again once they are mended, give them up.",
    no_args_is_help=True,
)

Keys: TypeAlias = Annotated[list[str] | None, typer.Argument(metavar="[KEY…]", help="Keys of records.")]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="All that are open.")]


@app.command("list")
def list_(
    migration: Named,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000)] = 100,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """The records by key, with the field that is at fault and the reason. Never a value."""
    with schema(url, token) as service:
        items = service.pages(f"/{service.migration(migration).id}/rejects", limit=limit)
    if as_json:
        print_json(items)
        return
    found = [Reject.model_validate(item) for item in items]
    if not found:
        output.print("no rejects")
        return
    print_table(
        ("key", "field", "reason", "attempts", "last at", "accepted"),
        (
            (one.key, one.path, one.reason, one.attempts, moment(one.last_at), "yes" if one.accepted else "")
            for one in found
        ),
    )
    if len(found) == limit:
        output.print(f"… there may be more than these {limit}: --limit shows them", highlight=False)


@app.command()
def retry(
    migration: Named,
    keys: Keys = None,
    all_: All = False,
    reason: Reason = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Send records again as they are now, after they were mended in the key-value store."""
    chosen = _chosen(keys, all_)
    why = reason_of(reason)
    with schema(url, token) as service:
        found = service.migration(migration)
        answer = service.post(f"/{found.id}/rejects/retry", {"keys": chosen, "reason": why})
    if as_json:
        print_json(answer)
        return
    output.print(
        f"{answer['asked']} sent again; what is still wrong is in `replank migrate rejects list {found.name}` "
        "a moment later",
        markup=False,
        highlight=False,
    )


@app.command()
def accept(
    migration: Named,
    keys: Keys = None,
    all_: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    reason: Reason = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Accept that these records will not be in the tables. After the cut-over they are lost to the application."""
    chosen = _chosen(keys, all_)
    why = reason_of(reason)
    with schema(url, token) as service:
        found = service.migration(migration)
        if not yes:
            which = "ALL rejected records" if chosen is None else f"{len(chosen)} records"
            typer.confirm(f"give up {which} of {found.name}?", abort=True, err=True)
        answer: Any = service.post(f"/{found.id}/rejects/accept", {"keys": chosen, "reason": why})
    if as_json:
        print_json(answer)
        return
    output.print(f"{answer['accepted']} accepted", highlight=False)


def _chosen(keys: list[str] | None, all_: bool) -> list[str] | None:
    """The keys, ``None`` for all of them: that is said, never meant by leaving something out."""
    if bool(keys) == all_:
        raise ConfigurationError("say which records", fix="give their keys, or --all")
    return keys or None
