"""Commands that change what is said of schemas, delete them and bring them back."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import typer

from replank.contracts.schema import VaultMode
from replank.errors import ReplankError
from replank_cli.asking import Refused, Token, Url
from replank_cli.console import errors, output, print_json
from replank_cli.vault.options import STANDARD, Json, Mode, Named
from replank_cli.vault.service import vault
from replank_cli.vault.views import Schema

_AT_ONCE: Final = 500

Several: TypeAlias = Annotated[list[str], typer.Argument(metavar="NAME|ID…")]
SomeTags: TypeAlias = Annotated[list[str], typer.Option("--tag", help="May be given many times.")]


def delete(
    named: Named,
    force: Annotated[bool, typer.Option("--force", help="Also if somebody uses it.")] = False,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Delete a schema softly: its name is free, and `restore` brings it back with all its versions.

    Refused with the names of those who would break, where somebody uses it.
    """
    with vault(url, token, mode) as service:
        schema = service.schema(named)
        query = {"force": "true"} if force else {}
        try:
            answer = service.ask("DELETE", f"/{schema.id}", query=query, revision=schema.revision)
        except Refused as refused:
            if refused.slug != "still-used":
                raise
            raise ReplankError(refused.message, fix="have them stop, or delete it with --force") from refused
    _told(answer, "deleted; `replank vault restore` brings it back", as_json=as_json)


def restore(named: Named, mode: Mode = STANDARD, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Bring a deleted schema back, with all its versions."""
    with vault(url, token, mode) as service:
        answer = service.ask("POST", f"/{service.deleted(named).id}/restore")
    _told(answer, "restored", as_json=as_json)


def tag(
    named: Several, tags: SomeTags, mode: Mode = STANDARD, url: Url = None, token: Token = None, as_json: Json = False
) -> None:
    """Put tags on schemas. Exit status 1 if one of them could not be changed; the others are."""
    _bulk("tag", named, tags, mode, url, token, as_json=as_json)


def untag(
    named: Several, tags: SomeTags, mode: Mode = STANDARD, url: Url = None, token: Token = None, as_json: Json = False
) -> None:
    """Take tags off schemas. Exit status 1 if one of them could not be changed; the others are."""
    _bulk("untag", named, tags, mode, url, token, as_json=as_json)


def _bulk(
    action: Literal["tag", "untag"],
    named: list[str],
    tags: list[str],
    mode: VaultMode,
    url: str | None,
    token: str | None,
    *,
    as_json: bool,
) -> None:
    results: list[Any] = []
    with vault(url, token, mode) as service:
        names = {schema.id: schema.name for schema in map(service.schema, named)}
        ids = list(names)
        for first in range(0, len(ids), _AT_ONCE):
            body = {"action": action, "ids": ids[first : first + _AT_ONCE], "tags": tags}
            results += service.ask("POST", "/bulk", body)["results"]
    failed = [result for result in results if not result["ok"]]
    if as_json:
        print_json(results)
    else:
        output.print(f"{len(results) - len(failed)} {action}ged", highlight=False)
    for result in failed:
        errors.print(f"{names[result['id']]}: {result['problem']}", style="red", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


def _told(answer: Any, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    schema = Schema.model_validate(answer)
    output.print(f"{schema.name} ({schema.id}) {what}", markup=False, highlight=False)
