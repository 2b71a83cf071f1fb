"""Which files are sent under which names, and what their contents are."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from replank.errors import ConfigurationError, ReplankError

_SUFFIX: Final = ".json"
_MIB: Final = 1024 * 1024
_MOST_VALIDATED: Final = 16 * _MIB


class FileChanged(ReplankError):
    """A file became another one while it was sent."""


class NotASchema(ReplankError):
    """A file is no valid JSON Schema."""


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: ``size`` in bytes, ``sha256`` in hexadecimal digits."""

    file: File
    size: int
    sha256: str

    @property
    def digest(self) -> str:
        """The value of ``Content-Digest`` (RFC 9530)."""
        return f"sha-256=:{base64.b64encode(bytes.fromhex(self.sha256)).decode()}:"


def find(paths: Sequence[Path], *, name: str | None, prefix: str) -> list[File]:
    """The files and their names: the file's own, or below a folder that is given its path, both without ``.json``.

    Of a folder, every ``.json`` file counts that is not hidden. Raises `ConfigurationError` where there are none, or
    two have one name.
    """
    named = [(path, name or path.name) for path in paths if not path.is_dir()]
    named += [
        (path, path.relative_to(folder).as_posix()) for folder in paths if folder.is_dir() for path in _below(folder)
    ]
    if not named:
        raise ConfigurationError(f"there is no {_SUFFIX} file below {', '.join(map(str, paths))}", fix="name files")
    if name is not None and len(named) > 1:
        raise ConfigurationError(f"--name is for one file, and these are {len(named)}", fix="take --prefix")
    before = prefix.rstrip("/") + "/" if prefix else ""
    files: dict[str, File] = {}
    for path, own in named:
        full = before + (own if name is not None else own.removesuffix(_SUFFIX))
        other = files.setdefault(full, File(path, full))
        if other.path != path:
            raise ConfigurationError(
                f"{other.path} and {path} would both be {full}", fix="push them one by one, with --name or --prefix"
            )
    return list(files.values())


def _below(folder: Path) -> Iterator[Path]:
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        yield from (Path(at, one) for one in sorted(names) if one.endswith(_SUFFIX) and not one.startswith("."))


def read(file: File) -> Content:
    """Read a file through, in constant memory. Raises `OSError`."""
    with file.path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
        return Content(file, opened.tell(), digest.hexdigest())


def require_schema(content: Content) -> None:
    """Raise `NotASchema` unless a file is a valid JSON Schema of the draft that it names, or else of the latest."""
    if content.size > _MOST_VALIDATED:
        raise NotASchema(
            f"it is too large to be validated: more than {_MOST_VALIDATED // _MIB} MiB",
            fix="push it without --validate",
        )
    try:
        schema = json.loads(content.file.path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NotASchema(f"it is no JSON: {error}", fix="correct it") from error
    if not isinstance(schema, dict | bool):
        raise NotASchema("it is a document and no JSON Schema", fix="push it without --validate")
    kind = validator_for(schema, default=Draft202012Validator)
    # Not `check_schema`, which takes a pattern for wrong that only Python does not understand. (A boolean is a schema,
    # too, which the library's stubs do not say.)
    metaschema = cast("dict[str, Any]", kind.META_SCHEMA)
    fault = next(kind(metaschema).iter_errors(cast("Any", schema)), None)
    if fault is not None:
        where = "".join(f"/{part}" for part in fault.absolute_path)
        raise NotASchema(
            f"it is no valid JSON Schema: {where or 'the whole'} breaks the rule {fault.validator} of "
            f"{metaschema.get('$id', metaschema.get('id', 'its metaschema'))}",
            fix="correct it, or push it without --validate",
        )
