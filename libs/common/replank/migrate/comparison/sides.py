"""The two databases as a comparison sees them: all SQL of the comparison is here.

The SQL that converts and compares is compiled from the mapping (`replank.migrate.compile`) and lives in the target.
Keys and values travel between the databases as text: neither ever asks the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from replank import outbox
from replank.connection import Connection
from replank.migrate.mapping import Mapping as Map
from replank.migrate.parts import record_key
from replank.migrate.session import session
from replank.migrate.sql import identifier, literal, relation, schema_of
from replank.migrate.topics import Direction, topic

#: `compare` names at most so many keys that differ.
NAMED: Final = 100
_PART: Final = "compare"
_TIMEOUT: Final = 120.0
# So many rows are fetched to see how large they are, then four times as many at once for as long as they are likely to
# fit: a chunk of large records ends before they fill the memory, one of small records takes few round trips.
_PORTION: Final = 250


# The names of the mapping's tables, quoted, are put in for the braces; everything else is a parameter.
_ESTIMATE: Final = "select greatest(reltuples, 0)::bigint from pg_class where oid = to_regclass($1)"
# Two statements, because one that tests for the first page would be planned without the index.
_FIRST: Final = "select {key}, {value}::text from {table} order by {key} limit $1"
_NEXT: Final = "select {key}, {value}::text from {table} where {key} > $2 order by {key} limit $1"
_VALUES: Final = "select {key}, {value}::text from {table} where {key} = any($1::text[])"
_ABSENT: Final = """
    select k.key from unnest($1::text[]) as k(key)
     where not exists (select from {table} t where t.{key} = k.key)
"""
_EXTRA: Final = "select key from {schema}.extra($1, $2, $3)"
_COMPARE: Final = "select entity, records, different, rejected from {schema}.compare($1::text[], $2::text[]::jsonb[])"
_APPLIED: Final = "select key, version from {schema}.{followed} where key = any($1::text[])"
_WRITERS: Final = """
    select key, traceparent from {schema}.{followed} where key = any($1::text[]) and traceparent is not null
"""
_WITH_ROOT: Final = "select key from {schema}.down($1::text[])"
_REJECTED: Final = "select key from {schema}.reject where key = any($1::text[])"
_FIELDS: Final = """
    select distinct k.key, f.relation, f.position, f.column_name
      from unnest($1::text[], $2::text[]::jsonb[]) as k(key, value), {schema}.fields(k.key, k.value) as f
     order by k.key, f.relation, f.position nulls first, f.column_name
"""
# Rows of an array whose record has no row of its own; and the last row that was looked at, to go on after it.
_ORPHANS: Final = """
    with page as materialized (
        select r.* from {child} r {beyond} order by {place} limit $1
    )
    select (select jsonb_build_object({named})::text from page r order by {backwards} limit 1),
           array(select distinct {record} from page r where not exists (select from {root} t where {joined}))
"""
_BEYOND: Final = "where ({place}) > ({values})"
_VALUE_OF: Final = "(select p.{column} from jsonb_populate_record(null::{child}, $2::text::jsonb) as p)"
# Partitions that ended before are not even opened: the bound is on the column that they are divided by.
_CAPTURED: Final = """
    select e.key, max((convert_from(e.value, 'UTF8')::jsonb ->> 'version')::bigint)
      from replank_outbox.event e
     where e.topic = $1 and e.key = any($2::text[]) and e.created_at >= now() - make_interval(secs => $3)
     group by e.key
"""
_EARLIER: Final = """
    select c.key, (c.change -> 'value')::text
      from (select e.key, convert_from(e.value, 'UTF8')::jsonb as change,
                   row_number() over (partition by e.key order by e.id desc) as age
              from replank_outbox.event e where e.topic = $1 and e.key = any($2::text[])) as c
     where c.age between 2 and $3 + 1 and jsonb_typeof(c.change -> 'value') <> 'null'
     order by c.key, c.age
"""
# As many pages as keys are wanted, and of their rows so many at random: rows of one page are neighbours.
_RANDOM: Final = """
    select key from (
        select {key} as key from {table} tablesample system (
            least(100, 100.0 * $2 / greatest(1, pg_relation_size(to_regclass($1))
                                                / current_setting('block_size')::bigint)))
    ) as page order by random() limit $2
"""
_RECENT: Final = """
    select distinct newest.key
      from (select e.key from replank_outbox.event e where e.topic = $1 order by e.xid desc, e.id desc limit $2)
           as newest
"""


@dataclass(frozen=True, slots=True)
class Counted:
    """What one call of `compare` says, all entities together: records by entity, and the keys that differ."""

    records: Mapping[str, int]
    different: frozenset[str]
    rejected: int
    """Records that cannot be converted: they are not among the others."""


@dataclass(frozen=True, slots=True)
class Look:
    """A key at one moment: its record, the newest change of it that is captured and that is applied, the verdict.

    ``captured`` is nothing where no change was captured lately (`ComparisonSettings.in_flight`).
    """

    value: str | None
    captured: int | None
    applied: int | None
    different: bool

    @property
    def in_flight(self) -> bool:
        """Whether a captured change has yet to be applied."""
        return self.captured is not None and (self.applied is None or self.applied < self.captured)


class Sides:
    """Connections to source and target, and the questions that a comparison asks them. Made by `opened`."""

    def __init__(self, source: Connection, target: Connection, mapping: Map, direction: Direction) -> None:
        self.source = source
        self.target = target
        self.mapping = mapping
        self.leader, self.follower = (source, target) if direction == "forward" else (target, source)
        self.topic = topic(mapping.name, direction)
        self._outbox: bool | None = None
        self._names = {
            "schema": schema_of(mapping.name),
            "table": relation(mapping.source.table),
            "key": identifier(mapping.source.key),
            "value": identifier(mapping.source.value),
            # What each side keeps of the changes that reached it: see `apply` and `restore`.
            "followed": "applied" if direction == "forward" else "restored",
        }

    async def estimate(self) -> int:
        """About how many records there are, from the planner's statistics; 0 where nothing is known."""
        return int(await self.source.fetchval(_ESTIMATE, self._names["table"]))

    async def chunk(self, after: str | None, *, rows: int, bytes_: int) -> tuple[list[str], list[str]]:
        """Keys and values (JSON text) of the records after a key, in the order of the key's own index."""
        keys: list[str] = []
        values: list[str] = []
        size = 0
        portion = _PORTION
        statement, arguments = (self._sql(_FIRST), [rows]) if after is None else (self._sql(_NEXT), [rows, after])
        async with self.source.transaction(readonly=True):
            cursor = await self.source.cursor(statement, *arguments)
            while size < bytes_ and len(keys) < rows and (fetched := await cursor.fetch(portion)):
                for key, value in fetched:
                    keys.append(key)
                    values.append(value)
                    size += len(value)
                    if size >= bytes_:
                        break
                portion = max(1, min(4 * portion, (bytes_ - size) * len(keys) // max(1, size)))
        return keys, values

    async def roots(self, entity: str, after: str | None, rows: int) -> list[str]:
        """The keys of an entity's root rows after a key, in the order of the primary key."""
        return [key for (key,) in await self.target.fetch(self._sql(_EXTRA), after, rows, entity)]

    async def orphans(self, entity: str, child: str, after: str | None, rows: int) -> tuple[list[str], str | None]:
        """The keys of child rows whose root row is not there, among some rows after a place; and the next place.

        The walk over the root rows does not meet them. There is no next place after the last row.
        """
        parent, rows_of = self.mapping.entities[entity], self.mapping.entities[entity].children[child]
        place = [identifier(name) for name in (*rows_of.parent, rows_of.position)]
        table = relation(rows_of.table)
        names = {
            "child": table,
            "root": relation(parent.table),
            "place": ", ".join(f"r.{name}" for name in place),
            "backwards": ", ".join(f"r.{name} desc" for name in place),
            "named": ", ".join(
                f"{literal(name)}, r.{identifier(name)}" for name in (*rows_of.parent, rows_of.position)
            ),
            "record": record_key(parent, rows_of.parent),
            "joined": " and ".join(
                f"t.{identifier(one)} = r.{identifier(other)}"
                for one, other in zip(parent.primary_key, rows_of.parent, strict=True)
            ),
        }
        values = ", ".join(_VALUE_OF.format(column=name, child=table) for name in place)
        beyond = "" if after is None else _BEYOND.format(place=names["place"], values=values)
        statement = _ORPHANS.format(beyond=beyond, **names)
        ((last, keys),) = await self.target.fetch(statement, rows, *([] if after is None else [after]))
        return keys, last

    async def without_record(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys for which the key-value store has no record."""
        return [key for (key,) in await self.source.fetch(self._sql(_ABSENT), keys)]

    async def compare(self, keys: Sequence[str], values: Sequence[str | None]) -> Counted:
        """Compare records, given as JSON text, with the rows of their keys. Every key that differs is named."""
        rows = await self.target.fetch(self._sql(_COMPARE), keys, values)
        if len(keys) > 1 and any(len(row["different"]) >= NAMED for row in rows):
            half = len(keys) // 2
            first = await self.compare(keys[:half], values[:half])
            second = await self.compare(keys[half:], values[half:])
            return Counted(
                _added(first.records, second.records),
                first.different | second.different,
                first.rejected + second.rejected,
            )
        return Counted(
            {row["entity"]: row["records"] for row in rows},
            frozenset(key for row in rows for key in row["different"]),
            sum(row["rejected"] for row in rows),
        )

    async def look(self, keys: Sequence[str], *, in_flight: float) -> dict[str, Look]:
        """Look at keys: first at the key-value store, then at the tables; each of the two in one snapshot."""
        captured: dict[str, int] = {}
        applied: dict[str, int] = {}
        async with _snapshot(self.source):
            values = dict(await self.source.fetch(self._sql(_VALUES), keys))
            await self._versions(self.source, keys, captured, applied, in_flight)
        async with _snapshot(self.target):
            await self._versions(self.target, keys, captured, applied, in_flight)
            different = (await self.compare(keys, [values.get(key) for key in keys])).different
            # A record that cannot be converted has no rows on either side of a comparison, and so no difference.
            different |= await self.rejected(list(values))
        return {key: Look(values.get(key), captured.get(key), applied.get(key), key in different) for key in keys}

    async def _versions(
        self,
        conn: Connection,
        keys: Sequence[str],
        captured: dict[str, int],
        applied: dict[str, int],
        in_flight: float,
    ) -> None:
        if conn is self.leader:
            if await self._has_outbox():
                captured.update(await conn.fetch(_CAPTURED, self.topic, keys, in_flight))
        else:
            applied.update(await conn.fetch(self._sql(_APPLIED), keys))

    async def with_root(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that have a root row."""
        return {key for (key,) in await self.target.fetch(self._sql(_WITH_ROOT), keys)}

    async def rejected(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys whose record is known not to be convertible."""
        return {key for (key,) in await self.target.fetch(self._sql(_REJECTED), keys)}

    async def fields(self, keys: Sequence[str], values: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """By key, the names of the fields that differ."""
        found: dict[str, list[str]] = {}
        for key, table, position, column in await self.target.fetch(self._sql(_FIELDS), keys, values):
            row = table if position is None else f"{table}[{position}]"
            # Without a column it is the row as a whole that one side does not have.
            found.setdefault(key, []).append(row if column is None else f"{row}.{column}")
        return {key: tuple(places) for key, places in found.items()}

    async def earlier(self, keys: Sequence[str], *, each: int) -> dict[str, list[str]]:
        """By key, the values (JSON text) of earlier changes that are still kept, at most ``each`` a key."""
        found: dict[str, list[str]] = {}
        if not await self._has_outbox():
            return found
        for key, value in await self.leader.fetch(_EARLIER, self.topic, keys, each):
            found.setdefault(key, []).append(value)
        return found

    async def writers(self, keys: Sequence[str]) -> dict[str, str]:
        """By key, the trace id of the change that the following side applied last, where it was traced."""
        rows = await self.follower.fetch(self._sql(_WRITERS), keys)
        return {key: traceparent.split("-")[1] for key, traceparent in rows}

    async def random_keys(self, wanted: int) -> list[str]:
        """Keys of random records: see `replank.migrate.comparison.sample` for how random they are."""
        return [key for (key,) in await self.source.fetch(self._sql(_RANDOM), self._names["table"], wanted)]

    async def recent_keys(self, wanted: int) -> list[str]:
        """Keys of the newest captured changes, deleted ones among them."""
        if not await self._has_outbox():
            return []
        return [key for (key,) in await self.leader.fetch(_RECENT, self.topic, wanted)]

    async def _has_outbox(self) -> bool:
        """Whether the leading side has one: where changes are applied as they are made nothing is ever under way."""
        if self._outbox is None:
            self._outbox = await outbox.is_installed(self.leader)
        return self._outbox

    def _sql(self, statement: str) -> str:
        return statement.format_map(self._names)


@asynccontextmanager
async def opened(source: str, target: str, mapping: Map, direction: Direction) -> AsyncIterator[Sides]:
    """Both sides, connected for the length of the block. Errors are asyncpg's (`replank.connection`)."""
    async with (
        session(source, _PART, timeout=_TIMEOUT) as source_conn,
        session(target, _PART, timeout=_TIMEOUT) as target_conn,
    ):
        yield Sides(source_conn, target_conn, mapping, direction)


@asynccontextmanager
async def _snapshot(conn: Connection) -> AsyncIterator[None]:
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        yield


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
