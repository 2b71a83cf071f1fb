"""``replank vault get``: a content out of the vault, proven to be what was published."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Final

import typer

from replank.errors import ConfigurationError, ReplankError
from replank_cli.asking import Token, TryAgain, Url
from replank_cli.console import errors
from replank_cli.vault import show
from replank_cli.vault.options import STANDARD, Mode, Named, Number
from replank_cli.vault.service import Vault, requiring_vault, vault
from replank_cli.vault.views import Version

_RANGE: Final = re.compile(r"(\d+)-(\d*)")
_ATTEMPTS: Final = 8
_READ: Final = 1024 * 1024


class Damaged(ReplankError):
    """What arrived is not what was published."""


@dataclass(frozen=True, slots=True)
class Content:
    """A version's content, or the bytes of it from ``first`` to before ``end``."""

    path: str
    sha256: str
    first: int
    end: int


def get(
    named: Named,
    version: Number = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Into this file; else standard output.")
    ] = None,
    range_: Annotated[
        str | None, typer.Option("--range", metavar="FIRST-LAST", help="Only these bytes, the first being 0.")
    ] = None,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
) -> None:
    """Fetch a content, in constant memory. It is held against its SHA-256 before the file gets its name.

    A connection that breaks is taken up again where it broke, and so is a command that was interrupted, if it writes
    to the same file. Part of a content (--range) cannot be proven.
    """
    with vault(url, token, mode) as service:
        schema = service.schema(named)
        number = version or schema.version
        path = f"/{schema.id}/versions/{number}"
        found = Version.model_validate(service.get(path))
        first, end = _range_of(range_, found.size)
        content = Content(f"{service.prefix}{path}/content", found.sha256, first, end)
        whole = (first, end) == (0, found.size)
        try:
            if out is None:
                _to_output(service, content, whole=whole)
            else:
                _to_file(service, content, out, whole=whole)
        except KeyboardInterrupt:
            if out is not None:
                errors.print("stopped: the same command goes on where this one stopped", highlight=False)
            raise typer.Exit(1) from None
    if out is not None:
        told = f"{schema.name} version {number}, {show.size(end - first)}" + (
            f", sha256 {found.sha256} as published" if whole else f", bytes {first} to {end - 1}"
        )
        errors.print(f"{out}: {told}", markup=False, highlight=False)


def _range_of(text: str | None, size: int) -> tuple[int, int]:
    if text is None:
        return 0, size
    found = _RANGE.fullmatch(text)
    if found is None or (found[2] and int(found[2]) < int(found[1])):
        raise ConfigurationError(f"{text!r} is no range of bytes", fix="give one such as 0-99, or 100- for the rest")
    first, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    if first >= size:
        raise ConfigurationError(f"the content has {size} bytes", fix="ask for a range within it")
    return first, end


def _to_output(service: Vault, content: Content, *, whole: bool) -> None:
    digest = hashlib.sha256()
    write = sys.stdout.buffer
    for chunk in _chunks(service, content, content.first):
        digest.update(chunk)
        write.write(chunk)
    write.flush()
    if whole and digest.hexdigest() != content.sha256:
        raise _damaged(content, digest.hexdigest())


def _to_file(service: Vault, content: Content, out: Path, *, whole: bool) -> None:
    # Named by what it is to become, so that what another version left is never taken for the beginning of this one.
    wanted = f"{content.sha256[:16]}.{content.first}-{content.end}"
    partial = out.with_name(f".{out.name}.{wanted}.part")
    try:
        with partial.open("a+b") as opened:
            digest = _digest_of_there(opened, most=content.end - content.first)
            for chunk in _chunks(service, content, content.first + opened.tell()):
                digest.update(chunk)
                opened.write(chunk)
            opened.flush()
            os.fsync(opened.fileno())
        if whole and digest.hexdigest() != content.sha256:
            partial.unlink()
            raise _damaged(content, digest.hexdigest())
        partial.replace(out)
    except OSError as error:
        raise ReplankError(
            f"{error.filename or partial} cannot be written: {error.strerror}", fix="give another --output"
        ) from error


def _digest_of_there(opened: IO[bytes], *, most: int) -> Any:
    """The digest of what an interrupted command has left, which the file ends with; what is too much is dropped."""
    opened.seek(0, os.SEEK_END)
    if opened.tell() > most:
        opened.truncate(0)
    opened.seek(0)
    digest = hashlib.sha256()
    while chunk := opened.read(_READ):
        digest.update(chunk)
    return digest


def _chunks(service: Vault, content: Content, at: int) -> Iterator[bytes]:
    """The bytes from ``at``, asked for again from where a connection broke."""
    broke = 0
    while at < content.end:
        began = at
        try:
            for chunk in _asked(service, content, at):
                at += len(chunk)
                yield chunk
        except TryAgain as error:
            # What gets on is tried for as long as it gets on.
            broke = 1 if at > began else broke + 1
            if broke >= _ATTEMPTS:
                raise error.error from error
            time.sleep(min(0.1 * 2**broke, 4.0))


def _asked(service: Vault, content: Content, at: int) -> Iterator[bytes]:
    headers = {
        # What the vault compresses comes in frames that not every client reads.
        "accept-encoding": "identity",
        "range": f"bytes={at}-{content.end - 1}",
        "if-range": f'"{content.sha256}"',
    }
    with requiring_vault(), service.door.stream(content.path, headers) as response:
        if response.status_code != 206:
            raise Damaged(
                f"bytes {at} to {content.end - 1} were asked for, and the service answered {response.status_code}",
                fix="something between here and the service does not know ranges (RFC 9110): ask it directly",
            )
        yield from response.iter_raw()


def _damaged(content: Content, got: str) -> Damaged:
    return Damaged(
        f"what arrived has the SHA-256 {got}, not {content.sha256} as it was published",
        fix="ask again; if it is so again, `replank vault check --wait` says whether the vault's own copy is damaged",
    )
