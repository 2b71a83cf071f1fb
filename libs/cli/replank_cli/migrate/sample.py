"""A sample of a key-value table, read from the store itself, beside whoever writes it."""

from __future__ import annotations

import asyncpg

from replank.connection import Connection
from replank.errors import ReplankError
from replank.migrate.mapping import Source
from replank.migrate.sql import identifier, relation

#: So many keys are looked at for each record of a sample, so that rare kinds of records are met.
_KEYS_A_RECORD = 50
_STATEMENT_WITHIN = "300s"

_ESTIMATED = "select greatest(reltuples, 0)::float8 from pg_class where oid = to_regclass($1)"
# Half of the sample as the records are; the other half in turn from each kind of key (what stands before the first
# separator), because a kind of which there are ten among a million is an entity all the same.
_KEYS = """
    with drawn as materialized (
        select {key} as key, regexp_replace({key}, '[:/|.#].*', '') as kind
          from {table} tablesample system ($1)
    ),
    ranked as (
        select key, row_number() over (order by random()) as any_kind,
               row_number() over (partition by kind order by random()) as of_kind
          from drawn
    ),
    chosen as (
        (select key from ranked where any_kind <= $2 / 2)
        union all
        (select key from ranked where any_kind > $2 / 2 order by of_kind, any_kind limit ($2 + 1) / 2)
    )
    select key from chosen
"""
_RECORDS = "select {key}, {value}::text from {table} where {key} = any ($1::text[])"


async def read(conn: Connection, source: Source, wanted: int) -> list[tuple[str, str]]:
    """About ``wanted`` records of a store: (key, JSON text).

    All of them where there are no more. Of a small store every key is looked at; of a large one those of random pages,
    `_KEYS_A_RECORD` times as many as are wanted. Reads only; raises `ReplankError` if the table is not as described.
    """
    table, key, value = relation(source.table), identifier(source.key), identifier(source.value)
    try:
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            await conn.execute(f"set local statement_timeout = '{_STATEMENT_WITHIN}'")
            estimated = await conn.fetchval(_ESTIMATED, table)
            if estimated is None:
                raise ReplankError(f"there is no table {source.table}", fix="give its name, with its schema: --table")
            # Of a table that was never analysed nobody knows how large it is: all of its keys, then.
            share = min(100.0, 100.0 * wanted * _KEYS_A_RECORD / estimated) if estimated else 100.0
            chosen = await conn.fetch(_KEYS.format(table=table, key=key), share, wanted)
            rows = await conn.fetch(
                _RECORDS.format(table=table, key=key, value=value), [record["key"] for record in chosen]
            )
            return [(found, text) for found, text in rows]
    except asyncpg.PostgresError as error:
        raise ReplankError(
            f"cannot read {source.table}: {error}",
            fix="name the table and its columns (--table, --key, --value), and let the role select from it",
        ) from error
