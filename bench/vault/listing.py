"""Pages of listings, of ever more schemas, from the vault and from rows that hold their contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import asyncpg
import httpx
from uuid_utils.compat import uuid7

from bench.runs import Void
from bench.vault.samples import field_names, of_fields, real_schemas
from bench.vault.stand import NEW, OLD, USER, Door
from bench.vault.turns import Side, in_turns
from bench.waits import Waits
from replank_schema.vault.codec import FRAME
from replank_schema.vault.model import words_of
from replank_schema.vault.scan import Scanner

PAGE: Final = 50
REAL: Final = 1_000
"""So many schemas, the first by name, have real contents. All pages are theirs, whatever the total is: so it is the
total that changes, and not what is on the page."""
FIELDS: Final = 50
"""The others have so many fields, and smaller contents."""

_TEAMS: Final = 50
_OWNERS: Final = 200
_CHUNK: Final = 2_000
_SEED: Final = 7
_SMALL: Final = "small"
_OLD_EVERY: Final = 5
"""Pages of the old pattern take so long that fewer have to do."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a listing. ``middle``: the page is in the middle of all; ``old``: whether the old pattern
    can answer it at all."""

    name: str
    query: Mapping[str, Any]
    middle: bool = False
    old: bool = True


FIRST: Final = Question("first page", {})
OF_MANY: Final = (
    Question("page in the middle", {}, middle=True),
    Question("largest first", {"sort": "-size"}),
    Question("by tag", {"tag": "team-7"}),
    Question("by owner", {"owner": "user:owner-7"}),
    Question("by metadata", {"metadata": json.dumps({"team": 7, "tier": "gold"})}),
    Question("by a word", {"q": field_names()[100]}, old=False),
    Question("by two words", {"q": " ".join(field_names()[100:300:100])}, old=False),
)
"""What is asked beside the first page where there are most. Most of the page's schemas have the one word; the two are
together in about one of 200 schemas."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A question and how long it took to answer it. ``old`` is None where the old pattern cannot."""

    question: str
    new: Waits
    old: Waits | None


async def ask(new: Door, old: Door, question: Question, *, total: int, turns: int) -> Listed:
    """Ask both, in turns. Raises `Void` when they do not answer with the same schemas."""
    sides = [Side(await _asking(new, question, total))]
    if question.old:
        sides.append(Side(await _asking(old, question, total), _OLD_EVERY))
        names = [[item["name"] for item in (await side.ask(0)).json()["items"]] for side in sides]
        if names[0] != names[1]:
            raise Void(f"the two patterns answer the question {question.name!r} differently")
    waits = await in_turns(*sides, turns=turns)
    return Listed(question.name, waits[0], waits[1] if question.old else None)


async def _asking(door: Door, question: Question, total: int) -> Callable[[int], Awaitable[httpx.Response]]:
    query = dict(question.query)
    if question.middle:
        # The first of those ten whose numbers begin so: where a page ends, whatever it was filtered by, one may begin.
        query["cursor"] = (await door.page(name=_name(total // 2)[:-1], limit=1)).json()["next"]

    async def page(_: int) -> httpx.Response:
        return await door.page(limit=min(PAGE, total), **query)

    if not (await page(0)).json()["items"]:
        raise Void(f"nothing is found by the question {question.name!r}")
    return page


@dataclass(slots=True)
class Seeded:
    """How many schemas there are in both modes."""

    dsn: str
    total: int = 0
    _shas: Mapping[str, str] = field(default_factory=dict)

    async def grow(self, total: int) -> None:
        """Have ``total`` of them, in both, with the same facts, as tables that are in use: vacuumed and analysed.

        They are written as rows: a listing reads no content, and of the old pattern the content is in the row.
        """
        connection = await asyncpg.connect(self.dsn)
        try:
            if not self._shas:
                self._shas = await _seed_contents(connection)
            for start in range(self.total, total, _CHUNK):
                rows = [self._row(number) for number in range(start, min(start + _CHUNK, total))]
                await connection.copy_records_to_table(
                    "schema", schema_name=f"vault_{NEW}", columns=_COLUMNS, records=rows
                )
                await connection.execute(_COPY_INLINE, [row[0] for row in rows])
            self.total = total
            for mode, table in ((NEW, "schema"), (OLD, "inline_schema")):
                await connection.execute(f"vacuum (analyze) vault_{mode}.{table}")
        finally:
            await connection.close()

    def _row(self, number: int) -> tuple[Any, ...]:
        random = Random(_SEED * 1_000_003 + number)
        base = _base(number)
        if base == _SMALL:
            fields, size = FIELDS, 8_000 + random.randrange(2_000)
        else:
            fields, size = 4 * FIELDS, len(real_schemas()[base])
        return (
            uuid7(),
            _name(number),
            "schema",
            fields,
            size,
            self._shas[base],
            f"user:owner-{number % _OWNERS}",
            " ".join(random.sample(field_names(), 8)),
            [f"team-{number % _TEAMS}", random.choice(("draft", "public"))],
            json.dumps({"team": number % _TEAMS, "tier": random.choice(("gold", "silver"))}),
            words_of(random.sample(field_names(), fields)),
            USER,
            USER,
        )


def _base(number: int) -> str:
    """Which content the ``number``-th schema has."""
    names = list(real_schemas())
    return names[number % len(names)] if number < REAL else _SMALL


def _name(number: int) -> str:
    """In the order of the numbers, before those of the event contracts, which the service publishes by itself."""
    return f"bench/{'real' if number < REAL else _SMALL}/{number:06}"


_COLUMNS: Final = (
    *("id", "name", "kind", "field_count", "size", "sha256", "owner", "description", "tags", "metadata", "words"),
    *("created_by", "updated_by"),
)
_CONTENTS: Final = "create table public.bench_content (sha256 text primary key, content text not null)"
_BLOB: Final = f"""
    insert into vault_{NEW}.blob (sha256, size, stored_size, frame_size, kind, field_count, fields_exact, fields, state,
                                  stored_at)
    values ($1, $2, $2, {FRAME}, $3, $4, $5, $6, 'stored', now())
"""
_COPY_INLINE: Final = f"""
    insert into vault_{OLD}.inline_schema (id, version, name, kind, field_count, size, sha256, owner, description, tags,
                                           metadata, created_by, updated_by, published_by, content)
    select id, 1, name, kind, field_count, size, sha256, owner, description, tags, metadata, created_by, updated_by,
           created_by, content
      from vault_{NEW}.schema join public.bench_content using (sha256)
     where id = any($1)
"""


async def _seed_contents(connection: asyncpg.Connection) -> Mapping[str, str]:
    """The contents that schemas refer to, and their digests by name."""
    await connection.execute(_CONTENTS)
    digests = {}
    for name, text in {**real_schemas(), _SMALL: of_fields(FIELDS, 0)}.items():
        digests[name] = sha256 = hashlib.sha256(text).hexdigest()
        scanner = Scanner()
        scanner.feed(text)
        facts = scanner.finish()
        await connection.execute("insert into public.bench_content values ($1, $2)", sha256, text.decode())
        await connection.execute(
            _BLOB, sha256, len(text), facts.kind, facts.field_count, facts.fields_exact, list(facts.fields)
        )
    return digests
