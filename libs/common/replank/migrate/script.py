"""SQL that a migration installs: files that read as they are, with the names of one migration put in.

A name stands in a file as psql would have it, ``:"schema"``, a text as ``:'topic'``, so each file can be tried by hand
with ``psql -v``. What is put in is quoted here, and nowhere else.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from typing import Final

from replank.migrate.sql import identifier, literal

# Not after another colon: that is a cast.
_VARIABLE: Final = re.compile(r"(?<!:):(?:\"(?P<name>\w+)\"|'(?P<text>\w+)'|\{(?P<part>\w+)\})")


def script(file: str, variables: Mapping[str, str], parts: Mapping[str, str] | None = None) -> str:
    """The file of ``replank/migrate/scripts`` with its variables put in, as names or as texts.

    ``parts`` are pieces of SQL that the caller composed of quoted names, put in for ``:{part}`` as they are. Raises
    `KeyError` for a variable that the file has and the caller has not.
    """

    def put_in(found: re.Match[str]) -> str:
        if name := found["name"]:
            return identifier(variables[name])
        if text := found["text"]:
            return literal(variables[text])
        return (parts or {})[found["part"]]

    return _VARIABLE.sub(put_in, _read(file))


def _read(file: str) -> str:
    return importlib.resources.files("replank.migrate").joinpath("scripts", file).read_text("utf-8")
