"""A migration of a sample, on the server where it would happen, of which nothing stays.

What a dry run tells is not what a simulation thinks: the mapping is compiled into a throw-away schema, the sample goes
through the very functions that would move it, comes back, and is compared with what it was.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from replank.connection import Connection
from replank.migrate.compile import compile as compiled
from replank.migrate.mapping import Mapping

KEYS_SHOWN: Final = 5
"""How many keys are named as examples of each finding."""

_CHUNK: Final = 1000
_ELEMENT: Final = re.compile(r"\[\d+\]")
_SETTINGS: Final = "set local lock_timeout = '3s'"
_FILL: Final = "select different from {schema}.fill_compared($1, $2)"
_REJECTS: Final = "select key, path, reason from {schema}.reject order by key"
# What comes back, what it was, and whether it stays as it is from then on.
_BACK: Final = """
    select d.key, d.value = r.val as same, d.value::text as value
      from unnest($1::text[], $2::text[]::jsonb[]) as r(key, val) join {schema}.down($1::text[]) as d on d.key = r.key
"""
_COMPARE: Final = "select c.different from {schema}.compare($1::text[], $2::text[]::jsonb[]) as c"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Records that could not be converted, for one reason."""

    entity: str | None
    """None for keys that no entity has."""
    path: str
    """The field, with ``[]`` for whichever element of an array."""
    reason: str
    records: int
    keys: tuple[str, ...]
    """Up to `KEYS_SHOWN` examples."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What became of a sample. Every record is counted once: exact, lenient, broken, rejected or ignored."""

    records: int
    exact: int
    """Came back as they were."""
    lenient: int
    """Came back cleaned or rounded, as the mapping allows, and stay so when they go around again."""
    broken: tuple[str, ...]
    """Keys that came back otherwise, or not at all: a fault of the compiler's. A mapping with any must not be used."""
    ignored: int
    rejects: tuple[Rejected, ...]
    """The most frequent first."""
    entities: dict[str, int]
    """How many records of each entity were in the sample."""

    @property
    def rejected(self) -> int:
        """How many records could not be converted."""
        return sum(group.records for group in self.rejects)

    @property
    def rejected_share(self) -> float:
        """The share of the records that could not be converted, 0 to 1."""
        return self.rejected / self.records if self.records else 0.0


async def dry_run(conn: Connection, mapping: Mapping, rows: Iterable[tuple[str, str]]) -> DryRun:
    """Move a sample there and back again in a transaction that is rolled back.

    ``rows`` are (key, value as JSON text); of a key that occurs twice the last one counts. Works in a schema of its own
    name, so that it is in nobody's way: the role needs CREATE on the database, and TEMPORARY nothing. Raises
    `asyncpg.InsufficientPrivilegeError` without it.
    """
    sample = dict(rows)
    rehearsal = _rehearsal(mapping)
    sql = compiled(rehearsal)
    transaction = conn.transaction()
    await transaction.start()
    try:
        await conn.execute(_SETTINGS)
        await conn.execute(sql.functions)
        for table in sql.tables:
            await conn.execute(table.create)
        return await _move(conn, mapping, sql.schema, sample)
    finally:
        await transaction.rollback()


def _rehearsal(mapping: Mapping) -> Mapping:
    """The same mapping under another name, with its tables in the schema that is the migration's own."""
    name = f"dry_{uuid.uuid4().hex[:16]}"
    schema = f"replank_m_{name}"
    entities = {}
    for number, (entity_name, entity) in enumerate(mapping.entities.items()):
        children = {
            child_name: child.model_copy(update={"table": f"{schema}.t{number}_{place}"})
            for place, (child_name, child) in enumerate(entity.children.items())
        }
        entities[entity_name] = entity.model_copy(update={"table": f"{schema}.t{number}", "children": children})
    return mapping.model_copy(update={"name": name, "entities": entities})


async def _move(conn: Connection, mapping: Mapping, schema: str, sample: dict[str, str]) -> DryRun:
    back, compare = _BACK.format(schema=schema), _COMPARE.format(schema=schema)
    entity_of = {key: mapping.entity_of(key) for key in sample}
    exact: set[str] = set()
    lenient: set[str] = set()
    records = iter(sample.items())
    while chunk := list(islice(records, _CHUNK)):
        keys, values = [key for key, _ in chunk], [value for _, value in chunk]
        different: list[str] = await conn.fetchval(_FILL.format(schema=schema), keys, values)
        returned = await conn.fetch(back, keys, values)
        exact |= {row["key"] for row in returned if row["same"]} - set(different)
        # What came back otherwise is sent around once more: from then on it has to stay as it is.
        again = [row for row in returned if not row["same"]]
        rows = await conn.fetch(compare, [row["key"] for row in again], [row["value"] for row in again])
        unsteady = {key for row in rows for key in row["different"]} | set(different)
        lenient |= {row["key"] for row in again if _may_change(mapping, entity_of[row["key"]])} - unsteady
    rejects = await conn.fetch(_REJECTS.format(schema=schema))
    refused = {row["key"] for row in rejects}
    ignored = {key for key, entity in entity_of.items() if entity is None} - refused
    found: defaultdict[tuple[str | None, str, str], list[str]] = defaultdict(list)
    for row in rejects:
        found[entity_of[row["key"]], _ELEMENT.sub("[]", row["path"]), row["reason"]].append(row["key"])
    groups = (
        Rejected(entity, path, reason, len(keys), tuple(keys[:KEYS_SHOWN]))
        for (entity, path, reason), keys in found.items()
    )
    return DryRun(
        records=len(sample),
        exact=len(exact),
        lenient=len(lenient),
        broken=tuple(sorted(sample.keys() - exact - lenient - refused - ignored)),
        ignored=len(ignored),
        rejects=tuple(sorted(groups, key=lambda group: (-group.records, group.path))),
        entities=dict(Counter(entity for entity in entity_of.values() if entity is not None)),
    )


def _may_change(mapping: Mapping, entity: str | None) -> bool:
    return entity is not None and not mapping.entities[entity].exact
