"""Writing to a key-value table that has no triggers, so that the migration is told all the same."""

from __future__ import annotations

import json
import logging
from typing import Final

import asyncpg
from pydantic import JsonValue

from replank.connection import Connection
from replank.migrate import authority, retired
from replank.migrate.client.trace import current_traceparent
from replank.migrate.sql import identifier, literal, relation, schema_of
from replank.outbox import NotInTransaction

_log: Final = logging.getLogger(__name__)

# Whether there is a migration to tell is known as soon as the table is locked, and stays so until the transaction ends:
# installing and removing it waits for that lock. Not by the catalogs' tables, which show what an old snapshot shows.
_WRITE: Final = """
    with written as ({statement} returning 1)
    select exists (select from written) as changed,
           to_regprocedure({written}) is not null as told,
           to_regprocedure({retired}) is not null as retired
"""
_PUT: Final = """
    insert into {table} ({key}, {value}) values ($1, $2::text::jsonb)
    on conflict ({key}) do update set {value} = excluded.{value}
"""
_DELETE: Final = "delete from {table} where {key} = $1"
# In this order: the trace is known when the change is told.
_WRITTEN: Final = "select set_config('replank.traceparent', $2, true), {schema}.written($1::text[])"


class DualWriter:
    """Writes records of the key-value table, each with its change, in the caller's transaction.

    For databases in which triggers cannot be had (``capture: writer`` among the options of a plan). Every writer must
    use one before the backfill begins, because others are neither seen nor refused. Where there is no migration yet, or
    none any more because it was taken back, it only writes; where one was retired it refuses. Where the triggers are
    installed it is not needed, and tells of each change twice, which does no harm.
    """

    def __init__(self, name: str, *, table: str, key: str = "key", value: str = "value") -> None:
        self.name = name
        names = {"table": relation(table), "key": identifier(key), "value": identifier(value)}
        schema = schema_of(name)
        asked = {"written": literal(f"{schema}.written(text[])"), "retired": literal(retired.guard_of(name, "source"))}
        self._put = _WRITE.format(statement=_PUT.format(**names), **asked)
        self._delete = _WRITE.format(statement=_DELETE.format(**names), **asked)
        self._written = _WRITTEN.format(schema=schema)
        self._alone: bool | None = None

    async def put(self, conn: Connection, key: str, value: JsonValue) -> None:
        """Create or replace a record.

        Raises `replank.migrate.authority.WritesHeld` and `WritesElsewhere` while the store takes no writes (a
        `WriteRouter` deals with them), and `replank.outbox.NotInTransaction`.
        """
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        await self._write(conn, self._put, key, text)

    async def delete(self, conn: Connection, key: str) -> None:
        """Remove a record; one that is not there is no error. Raises as `put` does."""
        await self._write(conn, self._delete, key)

    async def _write(self, conn: Connection, statement: str, key: str, *values: str) -> None:
        if not conn.is_in_transaction():
            raise NotInTransaction(
                "a record can only be written inside a transaction, with its change",
                fix="write `async with conn.transaction():` around it",
            )
        try:
            written = await conn.fetchrow(statement, key, *values)
            if written is None:
                raise AssertionError("a select without a from has a row")
            self._see(alone=not written["told"])
            if written["told"]:
                # What deleted nothing tells nothing: another transaction may be inserting what it did not see. Whether
                # it may write is asked all the same, since what it looked for may be in the other store.
                await conn.fetchrow(self._written, [key] if written["changed"] else [], current_traceparent())
            elif written["retired"]:
                raise authority.WritesElsewhere(
                    f"migration {self.name}: this store takes no writes any more, the other one does",
                    fix="write to the tables",
                )
        except asyncpg.PostgresError as error:
            if refused := authority.refusal(error):
                raise refused from error
            raise

    def _see(self, *, alone: bool) -> None:
        """Say when there is nobody to tell: a name that is misspelt looks like a migration that was not started."""
        if alone and not self._alone:
            _log.info("records are written without a migration to tell of them", extra={"migration": self.name})
        self._alone = alone
