"""Commands that lead a mode from the old pattern, where a row holds the whole content, to the new one, and back."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from replank_cli.asking import Token, Url
from replank_cli.console import output, print_json
from replank_cli.vault import jobs, show
from replank_cli.vault.options import STANDARD, Json, Mode, Timeout, Wait
from replank_cli.vault.service import vault
from replank_cli.vault.views import Pattern

#: What comes next in each phase, as commands without the mode.
_NEXT: Final = {
    "planned": "`replank vault migrate --wait` moves it to the new pattern",
    "rolled_back": "`replank vault migrate --wait` moves it to the new pattern again",
    "backfilling": "it moves; `replank vault rollback` takes it back",
    "verifying": "it is verified; `replank vault rollback` takes it back",
    "new_with_fallback": "`replank vault advance` ends the fallback, `replank vault rollback` takes it back",
    "new_only": "`replank vault advance` calls it completed, `replank vault rollback` takes it back",
    "completed": "`replank vault archive-old` has the archiver keep the old rows and deletes them; until then there is "
    "a way back",
    "archiving": "the archiver takes the old rows over; `replank vault rollback` takes it back until it has them",
}


def pattern(mode: Mode = STANDARD, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """In which pattern a mode keeps its schemas, and how far it is on its way."""
    with vault(url, token, mode) as service:
        answer = service.get("/pattern")
    _shown(answer, as_json=as_json)


def migrate(
    wait: Wait = False,
    timeout: Timeout = None,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Write to both patterns from now on, move what is there to the new one, and verify every content of it.

    May be asked again: it goes on, or moves again what was rejected and has been mended.
    """
    with vault(url, token, mode) as service:
        answer = service.ask("POST", "/pattern/migrate")
        done = jobs.told(service, answer, wait=wait, timeout=timeout, as_json=as_json)
        rejected = (done.result or {}).get("rejected", 0)
        if rejected and not as_json:
            show.lines([f"`replank vault pattern --mode {mode}` names what was rejected"])
    if rejected:
        raise typer.Exit(1)


def advance(
    force: Annotated[bool, typer.Option("--force", help="Also with rejects or mismatches.")] = False,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Read without the fallback to the old pattern; the second time, call the migration completed."""
    with vault(url, token, mode) as service:
        answer = service.ask("POST", "/pattern/advance", query={"force": "true"} if force else {})
    _shown(answer, as_json=as_json)


def rollback(mode: Mode = STANDARD, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Read and write the old pattern from now on, at once. It has every write."""
    with vault(url, token, mode) as service:
        answer = service.ask("POST", "/pattern/rollback")
    _shown(answer, as_json=as_json)


def archive_old(
    wait: Wait = False,
    timeout: Timeout = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Hand the old rows to the archiver. They are deleted once it has read back that it has them, each as it is then.

    After that there is no way back to the old pattern.
    """
    with vault(url, token, mode) as service:
        if not yes:
            rows = Pattern.model_validate(service.get("/pattern")).old_rows
            typer.confirm(f"archive and delete {rows:,} old rows of the mode {mode}?", abort=True, err=True)
        answer = service.ask("POST", "/pattern/archive-old")
        jobs.told(service, answer, wait=wait, timeout=timeout, as_json=as_json)
    if not as_json:
        show.lines([f"`replank vault pattern --mode {mode}` shows when the archiver has them and they are gone"])


def _shown(answer: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    found = Pattern.model_validate(answer)
    output.print(show.pattern(found))
    if found.phase in _NEXT:
        show.lines([f"next: {_NEXT[found.phase]}"])
