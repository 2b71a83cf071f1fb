"""Names and texts inside SQL that is written by a program: the one place where they are quoted."""

from __future__ import annotations

from typing import Final

IDENTIFIER_BYTES: Final = 63
"""What Postgres keeps of a name: the rest it would cut off in silence."""


def identifier(name: str) -> str:
    """A name as SQL reads it, whatever is in it.

    Raises `ValueError` for what Postgres cannot hold as a name: nothing, a NUL, or more than 63 bytes of UTF-8.
    """
    if not name or "\0" in name or len(name.encode()) > IDENTIFIER_BYTES:
        raise ValueError(f"not a name that Postgres can hold: {name[:80]!r}")
    return '"' + name.replace('"', '""') + '"'


def relation(name: str) -> str:
    """A table's name as SQL reads it, with its schema: ``orders`` is in ``public``, ``shop.orders`` in ``shop``."""
    schema, _, table = name.rpartition(".")
    return f"{identifier(schema or 'public')}.{identifier(table)}"


def literal(text: str) -> str:
    """A text as SQL reads it, the same under every setting of ``standard_conforming_strings``."""
    if "\0" in text:
        raise ValueError("a text in SQL cannot hold a NUL")
    quoted = "'" + text.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def schema_of(migration: str) -> str:
    """The schema that a migration owns in its source and in its target, quoted."""
    return identifier(f"replank_m_{migration}")


HAS_RELATION: Final = "select to_regclass($1) is not null"
HAS_FUNCTION: Final = "select to_regprocedure($1) is not null"
HAS_SCHEMA: Final = "select to_regnamespace($1) is not null"

FILL_LANES: Final = 2
"""How many chunks of a backfill may be filled at a time."""


def fill_lock(migration: str, lane: int) -> str:
    """The advisory lock that whoever fills in a lane takes alone, and whoever applies changes shares, lane by lane."""
    return f"hashtextextended({literal(f'replank_m_{migration}.fill.{lane}')}, 0)"
