"""``replank vault push``: files and folders into the vault."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from replank.errors import DependencyUnavailable
from replank_cli.asking import Token, Url, client_settings
from replank_cli.console import errors, output, print_json
from replank_cli.vault import show
from replank_cli.vault.files import File, find
from replank_cli.vault.options import STANDARD, Json, MetadataText, Mode, Tags, metadata_of
from replank_cli.vault.sending import Outcome, Pusher, Said, Sent
from replank_cli.vault.views import Job

#: The service takes a large content wholly before it answers, and puts it into the object store on the way.
_TIMEOUT: Final = httpx.Timeout(300.0, connect=5.0)
_STYLES: Final[dict[Outcome, str]] = {"new": "green", "version": "green", "unchanged": "dim", "failed": "bold red"}


def push(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", exists=True, help="Files, and folders of them.")],
    name: Annotated[str | None, typer.Option(help="The name of the one file; its own otherwise.")] = None,
    prefix: Annotated[str, typer.Option(help="Put before all names: shop gives shop/orders.")] = "",
    tag: Tags = None,
    metadata: MetadataText = None,
    owner: Annotated[str | None, typer.Option(help="Of new schemas: user:ada. You, otherwise.")] = None,
    description: Annotated[str, typer.Option(help="Of new schemas.")] = "",
    note: Annotated[str, typer.Option(help="What is said of these versions.")] = "",
    parallel: Annotated[int, typer.Option("--parallel", "-j", min=1, max=64)] = 8,
    validate: Annotated[bool, typer.Option("--validate", help="Send none that is no valid JSON Schema.")] = False,
    create_only: Annotated[bool, typer.Option("--create-only", help="Publish no version of what is there.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also versions that live consumers may not be able to read.")
    ] = False,
    resend: Annotated[
        bool, typer.Option("--resend", help="Send also what the vault has: that mends what it has lost.")
    ] = False,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Publish files. What the vault has is not sent again, so the same command goes on after an interruption.

    A file's name is its own, or its path below a folder that is given, without .json. What is there already under that
    name gets a version, unless it is the same; tags, metadata, owner and description are for what is new. Exit status 1
    if a file failed.
    """
    files = find(paths, name=name, prefix=prefix)
    said = Said(owner, description, tag or (), metadata_of(metadata), note, force)
    limits = httpx.Limits(max_connections=parallel, max_keepalive_connections=parallel)
    client = httpx.AsyncClient(**{**client_settings(url, token), "timeout": _TIMEOUT, "limits": limits})
    with _screen(silent=as_json) as screen:
        pusher = Pusher(client, mode, said, screen, create_only=create_only, validate=validate, resend=resend)
        try:
            asyncio.run(_push(pusher, files, parallel))
        except (KeyboardInterrupt, DependencyUnavailable) as stopped:
            screen.close()
            errors.print(
                f"stopped: {len(pusher.done)} of {len(files)} files are done, and nothing is half-written; "
                "the same command goes on where this one stopped",
                highlight=False,
            )
            if isinstance(stopped, KeyboardInterrupt):
                raise typer.Exit(1) from None
            raise
    _summary(pusher.done, as_json=as_json)
    if any(sent.outcome == "failed" for sent in pusher.done):
        raise typer.Exit(1)


async def _push(pusher: Pusher, files: Sequence[File], parallel: int) -> None:
    async with pusher.client:
        await pusher.push(files, parallel=parallel)


class _Screen:
    """A line for each file; on a terminal, below them, how far it all is."""

    def __init__(self, bars: Bars | None, *, silent: bool) -> None:
        self._bars = bars
        self._silent = silent
        self._whole: TaskID | None = None
        self._large: dict[str, TaskID] = {}

    def reading(self, files: int) -> None:
        if self._bars is not None:
            self._whole = self._bars.add_task(f"reading {files:,} files", total=None)

    def begin(self, files: int, size: int) -> None:
        if self._bars is not None and self._whole is not None:
            self._bars.update(self._whole, description=f"publishing {files:,} files", total=size)

    def advance(self, size: int) -> None:
        if self._bars is not None and self._whole is not None:
            self._bars.advance(self._whole, size)

    def processing(self, name: str, job: Job) -> None:
        if self._bars is None:
            return
        if name not in self._large:
            self._large[name] = self._bars.add_task(f"{escape(name)} {job.state}", total=job.total)
        self._bars.update(
            self._large[name], description=f"{escape(name)} {job.state}", completed=job.done, visible=not job.ended
        )

    def end(self, sent: Sent) -> None:
        if not self._silent:
            version = f" version {sent.version}" if sent.version else ""
            told = f"{sent.outcome:<9} {escape(sent.file.name)}{version}"
            style = _STYLES[sent.outcome]
            more = (
                f" ({show.size(sent.size)}{'' if sent.sent else ', known'})"
                if sent.outcome in ("new", "version")
                else ""
            )
            output.print(f"[{style}]{told}[/]{more}", highlight=False)
        if sent.problem:
            errors.print(f"  {sent.file.path}: {sent.problem}", style="red", markup=False, highlight=False)
            if sent.fix:
                errors.print(f"    what to do: {sent.fix}", markup=False, highlight=False)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()


@contextmanager
def _screen(*, silent: bool) -> Iterator[_Screen]:
    if not errors.is_terminal:
        yield _Screen(None, silent=silent)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # Results stay where they are sent to, if that is not the same terminal.
    with Bars(*columns, console=errors, transient=True, redirect_stdout=output.is_terminal) as bars:
        yield _Screen(bars, silent=silent)


def _summary(done: Sequence[Sent], *, as_json: bool) -> None:
    counts = {outcome: sum(sent.outcome == outcome for sent in done) for outcome in _STYLES}
    if as_json:
        files = [
            {
                "path": str(sent.file.path),
                "name": sent.file.name,
                "outcome": sent.outcome,
                "version": sent.version,
                "size": sent.size,
                "sent": sent.sent,
                **({"problem": sent.problem} if sent.problem else {}),
            }
            for sent in done
        ]
        print_json({**counts, "files": files})
        return
    went = sum(sent.size for sent in done if sent.sent)
    output.print(
        f"{counts['new']:,} new, {counts['version']:,} new versions, {counts['unchanged']:,} unchanged, "
        f"{counts['failed']:,} failed; {show.size(went)} sent",
        highlight=False,
    )
