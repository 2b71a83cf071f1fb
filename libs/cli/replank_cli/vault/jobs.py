"""``replank vault job``: what the service does in the background, and following it to its end."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.text import Text

from replank_cli.asking import Token, Url
from replank_cli.console import errors, output, print_json
from replank_cli.following import poll, screen
from replank_cli.vault import show
from replank_cli.vault.options import STANDARD, Json, Mode, Timeout, Wait
from replank_cli.vault.service import Vault, vault
from replank_cli.vault.views import Job

_GOES_ON: Final = "the job goes on"


def job(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    wait: Wait = False,
    timeout: Timeout = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Have it cancelled.")] = False,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """How far a job is, and what came of it. Exit status 1 if it failed, or was cancelled."""
    with vault(url, token, mode) as service:
        answer = service.ask("POST", f"/jobs/{job_id}/cancel") if cancel else service.get(f"/jobs/{job_id}")
        told(service, answer, wait=wait, timeout=timeout, as_json=as_json)


def told(service: Vault, answer: Any, *, wait: bool, timeout: float | None, as_json: bool) -> Job:
    """Show a job, followed to its end if one waits for that. Ends the command with 1 where it did not come to pass."""
    if wait:
        answer = _followed(service, answer, timeout)
    found = Job.model_validate(answer)
    if as_json:
        print_json(answer)
    else:
        output.print(show.job(found))
        if not found.ended:
            show.lines([f"`replank vault job {found.id} --mode {service.mode} --wait` follows it"])
    if found.state in ("failed", "cancelled"):
        raise typer.Exit(1)
    return found


def _followed(service: Vault, answer: Any, timeout: float | None) -> Any:
    job_id = answer["id"]
    look = f"`replank vault job {job_id} --mode {service.mode}` shows it"
    try:
        with screen() as on:
            for seen in poll(
                lambda: service.get(f"/jobs/{job_id}"), on, timeout=timeout, left=_GOES_ON, look=look, every=0.5
            ):
                line = show.job_line(Job.model_validate(seen))
                on.show(Text(line), line)
                if Job.model_validate(seen).ended:
                    return seen
    except KeyboardInterrupt:
        errors.print(f"left to itself: {_GOES_ON}; {look}", markup=False, highlight=False)
        raise typer.Exit(1) from None
    raise AssertionError("unreachable: polling has no end")
