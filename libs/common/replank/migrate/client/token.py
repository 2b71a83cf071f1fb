"""Reading one's own writes while two stores are kept alike: what a caller has written, as a short text it brings back.

A write is told from one store to the other, and is there a moment later. Its token says which records it was, and which
version of each, so that a read knows whether the store it would ask has them already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, unquote

import asyncpg

from replank.connection import Connection
from replank.errors import ReplankError
from replank.migrate.authority import NoAuthority, Side, refusal
from replank.migrate.sql import schema_of

MOST_PAIRS: Final = 20
"""What a token keeps: the newest writes of its bearer. One that wrote more may read an older one of them too early."""

_MOST_CHARACTERS: Final = 64 * 1024
_LARGEST_VERSION: Final = 2**63 - 1
_LETTERS: Final[dict[Side, str]] = {"source": "s", "target": "t"}
_SIDES: Final[dict[str, Side]] = {letter: side for side, letter in _LETTERS.items()}
_PAIR: Final = re.compile(r"([st])([1-9][0-9]{0,18}):([^,\s]+)")
_VERSIONS: Final = """
    select current_setting('replank_migrate.source_versions', true),
           current_setting('replank_migrate.target_versions', true)
"""
_RETELL: Final = "select {schema}.retell_{side}($1::text[])"


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

    Empty where nothing was captured: a statement that changes nothing is not. Who repeats a write asks for
    `token_of_records`. Of one statement it has the last `MOST_PAIRS` records.
    """
    ((source, target),) = await conn.fetch(_VERSIONS)
    return Token.of((*_remembered("source", source), *_remembered("target", target)))


async def token_of_records(conn: Connection, name: str, side: Side, keys: Sequence[str]) -> Token:
    """As `token_of`, and it covers the records with these keys as they are now, whoever has written them.

    For a write that may be the repetition of an earlier one, whose answer was lost: it changes nothing, but what it
    repeats may still be on its way. ``keys`` are those of the migration ``name``, ``side`` is the store that ``conn``
    writes to. The records which this transaction did not change are told once more, which costs as much as changing
    them. Of a record that the key-value store does not have any more it knows the deletion if that was among the last
    10,000 changes. Raises as a write does: `WritesHeld`, `WritesElsewhere`, and `NoAuthority` where there is no
    migration.
    """
    token = await token_of(conn)
    known = {written.key for written in token.to(side)}
    unchanged = [key for key in dict.fromkeys(keys) if key and key not in known]
    if not unchanged:
        return token
    try:
        await conn.execute(_RETELL.format(schema=schema_of(name), side=side), unchanged)
    except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedFunctionError) as error:
        raise NoAuthority(
            f"this database is not the {side} of the migration {name}", fix="start the migration first"
        ) from error
    except asyncpg.PostgresError as error:
        if refused := refusal(error):
            raise refused from error
        raise
    return await token_of(conn)


def _remembered(side: Side, lines: str | None) -> Iterator[Written]:
    # Each line ends with a line feed, which JSON has only escaped.
    for line in (lines or "").split("\n")[:-1][-MOST_PAIRS:]:
        version, _, key = line.partition(" ")
        yield Written(side, json.loads(key), int(version))


def _invalid() -> InvalidToken:
    return InvalidToken("the token is malformed", fix="send back what the last write answered, unchanged, or nothing")
