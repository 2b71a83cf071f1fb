"""Writing to a key-value table that has no triggers, so that the migration is told all the same."""

from __future__ import annotations

import json
from typing import Final

import asyncpg
from pydantic import JsonValue

from replank.connection import Connection
from replank.migrate import authority
from replank.migrate.client.trace import current_traceparent
from replank.migrate.sql import identifier, relation, schema_of
from replank.outbox import NotInTransaction

_PUT: Final = """
    insert into {table} ({key}, {value}) values ($1, $2::text::jsonb)
    on conflict ({key}) do update set {value} = excluded.{value}
"""
_DELETE: Final = "delete from {table} where {key} = $1"
# In this order: the trace is known when the change is told.
_WRITTEN: Final = "select set_config('replank.traceparent', $2, true), {schema}.written(array[$1])"


class DualWriter:
    """Writes records of the key-value table, each with its change, in the caller's transaction.

    For databases in which triggers cannot be had: `replank.migrate.capture.install` with ``triggers=False`` installs
    what it needs. Every writer must then use one, because others are neither seen nor refused. Where the triggers are
    installed it is not needed, and does no harm.
    """

    def __init__(self, name: str, *, table: str, key: str = "key", value: str = "value") -> None:
        self.name = name
        names = {"table": relation(table), "key": identifier(key), "value": identifier(value)}
        self._put = _PUT.format(**names)
        self._delete = _DELETE.format(**names)
        self._written = _WRITTEN.format(schema=schema_of(name))

    async def put(self, conn: Connection, key: str, value: JsonValue) -> None:
        """Create or replace a record.

        Raises `replank.migrate.authority.WritesHeld` and `WritesElsewhere` while the store takes no writes (a
        `WriteRouter` deals with them), `NoAuthority` where capture is not installed, and
        `replank.outbox.NotInTransaction`.
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
            await conn.execute(statement, key, *values)
            await conn.fetchrow(self._written, key, current_traceparent())
        except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedFunctionError) as error:
            raise authority.NoAuthority(
                f"this database is not the source of the migration {self.name}", fix="start the migration first"
            ) from error
        except asyncpg.PostgresError as error:
            if refused := authority.refusal(error):
                raise refused from error
            raise
