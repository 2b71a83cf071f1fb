"""Reading one's own writes while two stores are kept alike: what a caller has written, as a short text it brings back.

A write is told from one store to the other, and is there a moment later. Its token says which records it was, and which
version of each, so that a read knows whether the store it would ask has them already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, unquote

from replank.connection import Connection
from replank.errors import ReplankError
from replank.migrate.authority import Side

MOST_PAIRS: Final = 20
"""What a token keeps: the newest writes of its bearer. One that wrote more may read an older one of them too early."""

_MOST_CHARACTERS: Final = 64 * 1024
_REMEMBERED: Final = 16384  # characters that a transaction remembers
_LARGEST_VERSION: Final = 2**63 - 1
_LETTERS: Final[dict[Side, str]] = {"source": "s", "target": "t"}
_SIDES: Final[dict[str, Side]] = {letter: side for side, letter in _LETTERS.items()}
_PAIR: Final = re.compile(r"([st])([1-9][0-9]{0,18}):([^,\s]+)")
_VERSIONS: Final = """
    select current_setting('replank_migrate.source_versions', true),
           current_setting('replank_migrate.target_versions', true)
"""


class InvalidToken(ReplankError):
    """A text that is no token."""


@dataclass(frozen=True, slots=True)
class Written:
    """A version of a record, and the side that it was written to."""

    side: Side
    key: str
    version: int


@dataclass(frozen=True, slots=True)
class Token:
    """What its bearer has written and perhaps not everybody has yet. Nothing in it is secret but the records' keys.

    ``str(token)`` is its text form, of ASCII and without blanks, for a header or a cookie; empty when there is nothing
    to wait for. `Token.parse` reads it.
    """

    writes: tuple[Written, ...] = ()

    @classmethod
    def of(cls, writes: Iterable[Written]) -> Self:
        """A token of these writes, oldest first: of each record the newest version, of at most `MOST_PAIRS` records."""
        newest: dict[tuple[Side, str], Written] = {}
        for written in writes:
            known = newest.pop((written.side, written.key), written)
            newest[written.side, written.key] = max(known, written, key=lambda one: one.version)
        return cls(tuple(newest.values())[-MOST_PAIRS:])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form. Raises `InvalidToken`: the text came by way of somebody else."""
        if len(text) > _MOST_CHARACTERS:
            raise _invalid()
        writes = []
        for pair in text.split(",") if text else ():
            found = _PAIR.fullmatch(pair)
            if found is None:
                raise _invalid()
            try:
                key = unquote(found[3], errors="strict")
            except UnicodeDecodeError:
                raise _invalid() from None
            version = int(found[2])
            if "\0" in key or version > _LARGEST_VERSION:  # neither is anything that a database has
                raise _invalid()
            writes.append(Written(_SIDES[found[1]], key, version))
        if len(writes) > MOST_PAIRS:
            raise _invalid()
        return cls.of(writes)

    def __str__(self) -> str:
        return ",".join(
            f"{_LETTERS[written.side]}{written.version}:{quote(written.key, safe=':')}" for written in self.writes
        )

    def __bool__(self) -> bool:
        return bool(self.writes)

    def __iter__(self) -> Iterator[Written]:
        return iter(self.writes)

    def then(self, later: Token) -> Token:
        """What the bearer has written with both: ``later`` are the newer writes."""
        return Token.of((*self.writes, *later.writes))

    def to(self, side: Side) -> Token:
        """The part of it that was written to one side."""
        return Token(tuple(written for written in self.writes if written.side == side))


async def token_of(conn: Connection) -> Token:
    """The token of what the transaction that is open on ``conn`` has written so far; asked before it commits.

    Empty where nothing was captured. Of one statement it has the last `MOST_PAIRS` records.
    """
    ((source, target),) = await conn.fetch(_VERSIONS)
    return Token.of((*_remembered("source", source), *_remembered("target", target)))


def _remembered(side: Side, lines: str | None) -> Iterator[Written]:
    # Each line ends with a line feed, which JSON has only escaped.
    complete = (lines or "").split("\n")[:-1]
    if len(lines or "") >= _REMEMBERED:
        # The database keeps the end of a long list: the first line is perhaps the rest of one.
        complete = complete[1:]
    for line in complete[-MOST_PAIRS:]:
        version, _, key = line.partition(" ")
        yield Written(side, json.loads(key), int(version))


def _invalid() -> InvalidToken:
    return InvalidToken("the token is malformed", fix="send back what the last write answered, unchanged, or nothing")
