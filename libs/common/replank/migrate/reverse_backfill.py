"""The backfill on the way back: makes the key-value store what the tables are, while the tables are written to.

For a rollback long after the cut-over, when changes of the tables have not been carried back for a while. Capture on
the tables runs again before it begins; what this reads and what capture carries meet at the key-value store under one
rule, the version: each chunk locks its records as their writers do, draws a version, and reads them as of then. A
change that was committed before has a lower version and is in what was read; one that comes after has a higher one. So
``restore`` takes them in any order.

First every record that the tables hold is written where it differs, then every record is removed that the tables
have no more. A record that never made it into the tables, because it was rejected, is left alone.
"""

# ruff: noqa: S608 - the names of a mapping go through replank.migrate.sql

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from replank.connection import POSTGRES_ERRORS, Connection
from replank.inbox.outcome import is_transient
from replank.migrate import isolation
from replank.migrate.backfill import BackfillSettings
from replank.migrate.mapping import Mapping
from replank.migrate.session import backoff, session
from replank.migrate.sql import identifier, relation, schema_of
from replank.migrate.throttle import Throttle

_log: Final = logging.getLogger(__name__)

_PART: Final = "reverse-backfill"
# As many records as have a lock of their own; with more, a chunk would hold up every writer of the tables.
_MOST_LOCKED: Final = 250


@dataclass(frozen=True, slots=True)
class ReverseProgress:
    """Where a reverse backfill stands. It begins anew in every run: a record that agrees already costs a look."""

    rows: int = 0
    """Root rows that were looked at."""
    written: int = 0
    """Records that were missing in the key-value store or differed there."""
    records: int = 0
    """Records of the key-value store that were looked at, once all rows were."""
    removed: int = 0
    waiting_for: str = ""
    done: bool = False


class ReverseBackfill:
    """``await ReverseBackfill(…).run()``, cancelled to pause; parameters as for `replank.migrate.backfill.Backfill`.

    The tables take the writes, and both sides are installed (`replank.migrate.capture`, `replank.migrate.reverse`).
    """

    def __init__(
        self,
        *,
        mapping: Mapping,
        source: str,
        target: str,
        settings: Callable[[], BackfillSettings] = BackfillSettings,
        on_progress: Callable[[ReverseProgress], None] | None = None,
    ) -> None:
        self.name = mapping.name
        self._mapping = mapping
        self._source = source
        self._target = target
        self._settings = settings
        self._on_progress = on_progress
        self._sql = _Statements(mapping)
        self._throttle = Throttle(source=source, target=target, settings=lambda: settings().throttle)
        self._progress = ReverseProgress()
        self._problem = ""

    @property
    def progress(self) -> ReverseProgress:
        """Where it stands."""
        return replace(self._progress, waiting_for=self._problem or self._throttle.waiting_for)

    async def run(self) -> ReverseProgress:
        """Return when the key-value store has every record of the tables and no other of their entities.

        Databases that are away are waited for; it begins anew then. Raises what Postgres says where waiting does not
        help, such as SQLSTATE RPL03 when the key-value store takes the writes.
        """
        attempt = 0
        while True:
            self._progress = ReverseProgress()
            try:
                timeout = self._settings().statement_timeout
                async with (
                    session(self._source, _PART, timeout=timeout, applier=self.name) as source,
                    session(self._target, _PART, timeout=timeout) as target,
                ):
                    self._problem = ""
                    await self._write_all(source, target)
                    await self._remove_all(source, target)
            except POSTGRES_ERRORS as error:
                if not is_transient(error):
                    raise
                self._problem = isolation.name_of(error)
                _log.warning("reverse backfill waits", extra={"migration": self.name, "error": type(error).__name__})
                await asyncio.sleep(backoff(attempt, self._settings().backoff))
                attempt += 1
            else:
                self._report(replace(self._progress, done=True))
                return self.progress

    async def _write_all(self, source: Connection, target: Connection) -> None:
        for entity in self._mapping.entities:
            async for keys in self._pages(target, self._sql.roots, entity):
                written, removed = await self._restore(source, target, keys)
                at = self._progress
                self._report(
                    replace(at, rows=at.rows + len(keys), written=at.written + written, removed=at.removed + removed)
                )

    async def _remove_all(self, source: Connection, target: Connection) -> None:
        async for keys in self._pages(source, self._sql.records):
            gone = [row["key"] for row in await target.fetch(self._sql.gone, keys)]
            written, removed = await self._restore(source, target, gone)
            at = self._progress
            self._report(
                replace(at, records=at.records + len(keys), written=at.written + written, removed=at.removed + removed)
            )

    async def _pages(self, conn: Connection, statement: str, *arguments: str) -> AsyncIterator[list[str]]:
        after: str | None = None
        while True:
            await self._throttle.admit()
            rows = min(self._settings().chunk_rows, _MOST_LOCKED)
            keys = [row["key"] for row in await conn.fetch(statement, after, rows, *arguments)]
            if not keys:
                return
            after = keys[-1]
            yield keys
            self._throttle.spent(len(keys))

    async def _restore(self, source: Connection, target: Connection, keys: Sequence[str]) -> tuple[int, int]:
        """Make records what the tables say of them; how many were written and removed."""
        if not keys:
            return 0, 0
        async with target.transaction():
            await target.execute(self._sql.lock, keys)
            # In a statement of its own: it sees what was committed by those who held the locks.
            rows = await target.fetch(self._sql.read, keys)
        (done,) = await source.fetch(
            self._sql.restore,
            [row["key"] for row in rows],
            [row["value"] for row in rows],
            [row["version"] for row in rows],
        )
        return done["written"], done["removed"]

    def _report(self, progress: ReverseProgress) -> None:
        self._progress = progress
        if self._on_progress is not None:
            self._on_progress(self.progress)


class _Statements:
    """The statements for one mapping: the names of its schema and table are all that is not a parameter."""

    def __init__(self, mapping: Mapping) -> None:
        schema = schema_of(mapping.name)
        table, key, value = (
            relation(mapping.source.table),
            identifier(mapping.source.key),
            identifier(mapping.source.value),
        )
        self.roots = f"select key from {schema}.extra($1, $2, $3)"
        self.records = f"""
            select {key} as key from {table} where $1::text is null or {key} > $1 order by {key} limit $2
        """
        self.gone = f"""
            select k.key from unnest($1::text[]) as k(key)
             where {schema}.entity_of(k.key) is not null
               and not exists (select from {schema}.reject r where r.key = k.key)
               and not exists (select from {schema}.down($1::text[]) d where d.key = k.key)
        """
        self.lock = f"select {schema}.lock_records($1::text[])"
        self.read = f"""
            with drawn as materialized (select nextval('{schema}.version') as version),
                 rows as materialized (select d.key, d.value::text as value from {schema}.down($1::text[]) as d)
            select k.key, r.value, v.version
              from unnest($1::text[]) as k(key) cross join drawn v left join rows r on r.key = k.key
        """
        # Only what differs, as JSON: 1.50 is 1.5.
        self.restore = f"""
            select b.written, b.removed, (select count(*) from {schema}.restore(b.keys, b.vals, b.versions, b.traces))
              from (select count(*) filter (where w.val is not null) as written,
                           count(*) filter (where w.val is null) as removed,
                           array_agg(w.key) as keys, array_agg(w.val) as vals, array_agg(w.version) as versions,
                           array_agg(null::text) as traces
                      from unnest($1::text[], $2::text[]::jsonb[], $3::bigint[]) as w(key, val, version)
                      left join {table} s on s.{key} = w.key
                     where s.{value} is distinct from w.val) as b
        """
