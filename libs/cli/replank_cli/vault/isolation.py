"""``replank vault verify-isolation``: that neither mode reaches anything of the other, by trying."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from replank_cli.asking import Token, Url, door
from replank_cli.console import print_json
from replank_cli.vault import show
from replank_cli.vault.options import Json
from replank_cli.vault.service import requiring_vault
from replank_cli.vault.views import Isolation

_PATH: Final = "/v1/vault/verify-isolation"


def verify_isolation(
    all_: Annotated[bool, typer.Option("--all", help="Show the modes' own accesses too, which have to work.")] = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Have the service try every access from each mode to the other, with its real credentials, and list the refusals.

    Nothing is changed. Exit status 1 if an access was not refused, or one of a mode's own did not work. Needs the right
    admin on both modes.
    """
    with door(url, token) as asked, requiring_vault():
        answer = asked.ask("POST", _PATH)
    found = Isolation.model_validate(answer)
    if as_json:
        print_json(answer)
    else:
        show.isolation(found, all_=all_)
    if not found.isolated:
        raise typer.Exit(1)
