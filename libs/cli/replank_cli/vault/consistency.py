"""Commands that see whether the vault is whole, and mend it."""

from __future__ import annotations

from typing import Annotated

import typer

from replank_cli.asking import Token, Url
from replank_cli.console import output, print_json
from replank_cli.vault import jobs, show
from replank_cli.vault.options import STANDARD, Json, Limit, Mode, Timeout, Wait
from replank_cli.vault.service import vault
from replank_cli.vault.views import Finding


def check(
    shallow: Annotated[
        bool, typer.Option("--shallow", help="Compare what is listed; do not read every content.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = None,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Compare the tables with the object store. With --wait: exit status 1 if anything is open at the end."""
    with vault(url, token, mode) as service:
        answer = service.ask("POST", "/consistency/check", {"deep": not shallow})
        done = jobs.told(service, answer, wait=wait, timeout=timeout, as_json=as_json)
    if done.result and any(done.result.get("open", {}).values()):
        if not as_json:
            show.lines([f"`replank vault findings --mode {mode}` lists them, `replank vault repair` mends what it can"])
        raise typer.Exit(1)


def findings(
    state: Annotated[str | None, typer.Option(help="open, repaired or gone; any of them with --state all.")] = "open",
    kind: Annotated[str | None, typer.Option(help="Only of this kind: missing, corrupt, orphaned, …")] = None,
    limit: Limit = 100,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """What checks found, the latest first, and what helps."""
    with vault(url, token, mode) as service:
        items = service.pages("/consistency/findings", limit=limit, state=None if state == "all" else state, kind=kind)
    if as_json:
        print_json(items)
    elif not items:
        output.print("nothing was found")
    else:
        show.findings([Finding.model_validate(item) for item in items])


def repair(
    finding: Annotated[list[str] | None, typer.Argument(metavar="[FINDING…]", help="None: all that are open.")] = None,
    wait: Wait = False,
    timeout: Timeout = None,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Mend what was found. With --wait: exit status 1 if anything is left; the findings say what helps against that."""
    with vault(url, token, mode) as service:
        answer = service.ask("POST", "/consistency/repair", {"findings": finding} if finding else {})
        done = jobs.told(service, answer, wait=wait, timeout=timeout, as_json=as_json)
    if done.result and any(done.result.get("left", {}).values()):
        if not as_json:
            show.lines([f"`replank vault findings --mode {mode}` says what helps"])
        raise typer.Exit(1)
