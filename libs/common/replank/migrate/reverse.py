"""The target's side: the tables refuse writes until they are the authority, and then tell of every change.

Triggers for each statement on every root and child table. What they tell is that a *record* has changed, whichever of
its rows it was: two transactions that change different rows of one record are put one after the other, and the change
carries no value. Whoever applies it to the key-value store reads the record then, with ``down``: whole, as it was
committed. In a database that is both sides (``same_transaction``) the record is written back at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

from replank.connection import Connection
from replank.migrate import preconditions
from replank.migrate.capture import (
    CaptureRefused,
    common_variables,
    enter,
    install_authority,
    install_carrier,
    leave,
    take_triggers_off,
    verify_triggers,
)
from replank.migrate.locks import with_locks
from replank.migrate.mapping import Mapping
from replank.migrate.parts import record_key
from replank.migrate.preconditions import error
from replank.migrate.script import script
from replank.migrate.sql import HAS_FUNCTION, HAS_RELATION, identifier, relation, schema_of
from replank.outbox import Finding

_log: Final = logging.getLogger(__name__)

_GRANT_CLIENT: Final = """
    grant usage on schema {schema} to {role};
    grant execute on function {schema}.count_reads, {schema}.entity_of,
                              {schema}.retell_target, {schema}.told_by_target to {role};
    grant select on {schema}.applied, {schema}.authority to {role}
"""
_REMOVE: Final = """
    drop function if exists {schema}.carry_back, {schema}.lock_records, {schema}.count_reads,
                            {schema}.retell_target, {schema}.told_by_target;
    drop table if exists {schema}.compared_read
"""
_SIDE: Final = "select tables from {schema}.authority where side = 'target'"
_DROP_FUNCTION: Final = "drop function if exists {schema}.{function}"


class _Rows(NamedTuple):
    """One table of the target, and which record a row of it belongs to."""

    table: str
    function: str
    key: str
    """The record's key as an SQL expression over the columns of the row ``r``."""


async def install(conn: Connection, mapping: Mapping, *, same_transaction: bool = False) -> None:
    """Install the target's side, closed to writes, on tables that are there; or bring it up to date. Safe to repeat.

    When it returns, only appliers write to the tables, until `replank.migrate.authority.open`. Each table is locked
    against writers for a moment, one after the other. ``same_transaction`` as in `replank.migrate.capture.install`,
    which comes first then. Raises `CaptureRefused`, with nothing touched, and `replank.migrate.locks.LocksNotGranted`.
    """
    if findings := await check(conn, mapping, same_transaction=same_transaction):
        raise CaptureRefused(mapping.name, findings)
    variables = common_variables(mapping, "target")

    tables = {}
    for rows in _rows(mapping):
        found = await preconditions.table_facts(conn, relation(rows.table))
        if found is None:
            raise CaptureRefused(mapping.name, [_no_table(rows.table)])
        tables[rows] = (found["nspname"], found["relname"])

    async def put_in() -> None:
        await install_authority(conn, mapping)
        await conn.execute(script("target.sql", variables))
        await install_carrier(conn, "target", variables, same_transaction=same_transaction)
        names = [f"{identifier(schema)}.{identifier(table)}" for schema, table in tables.values()]
        await enter(conn, mapping, "target", "closed", names)

    await with_locks(conn, put_in)
    # One table at a time: whoever holds one and waits for another meets transactions that came the other way round.
    for rows, (schema, table) in tables.items():
        named = {**variables, "table_schema": schema, "table": table, "function": rows.function}
        guard = script("target_table.sql", named, {"record_key": rows.key})
        await with_locks(conn, partial(conn.execute, guard))
    _log.info("the target's side is installed", extra={"migration": mapping.name, "same_transaction": same_transaction})


async def check(conn: Connection, mapping: Mapping, *, same_transaction: bool = False) -> list[Finding]:
    """Everything that keeps `install` from working; empty if nothing does. Reads only."""
    findings = await preconditions.of_database(conn, mapping)
    if same_transaction:
        schema = schema_of(mapping.name)
        for function in (f"{schema}.restore(text[], jsonb[], bigint[], text[])", f"{schema}.down(text[])"):
            if not await conn.fetchval(HAS_FUNCTION, function):
                findings.append(
                    error("no_function", f"there is no {function}", "install capture and the compiled mapping")
                )
    else:
        findings += await preconditions.of_outbox(conn)
    for rows in _rows(mapping):
        found = await preconditions.table_facts(conn, relation(rows.table))
        if found is None:
            findings.append(_no_table(rows.table))
        elif "TRIGGER" in found["lacking"]:
            table = rows.table
            findings.append(error("denied", f"this role lacks TRIGGER on {table}", f"grant trigger on {table} to it"))
    return findings


async def tables_of(conn: Connection, name: str) -> list[str]:
    """The tables (as SQL reads them) of the target's side; none where it is not installed. Reads only."""
    schema = schema_of(name)
    if not await conn.fetchval(HAS_RELATION, f"{schema}.authority"):
        return []
    return await conn.fetchval(_SIDE.format(schema=schema)) or []


async def silence(conn: Connection, mapping: Mapping) -> None:
    """Tell of no change any more, and refuse none, until `install`; which side takes the writes stays written down.

    What was not told meanwhile the key-value store gets from a `replank.migrate.backfill.ReverseBackfill` alone. Raises
    `replank.migrate.locks.LocksNotGranted`.
    """

    for table in await tables_of(conn, mapping.name):
        await with_locks(conn, partial(take_triggers_off, conn, mapping.name, table))
    _log.info("the target's side is silent", extra={"migration": mapping.name})


async def remove(conn: Connection, mapping: Mapping) -> None:
    """Take the triggers off the tables, and all that the target's side has; nothing there is no error.

    Everybody may write to the tables again, and nothing is told. Raises `replank.migrate.locks.LocksNotGranted`.
    """
    schema = schema_of(mapping.name)

    async def take_out() -> None:
        await leave(conn, mapping.name, "target")
        for rows in _rows(mapping):
            await conn.execute(_DROP_FUNCTION.format(schema=schema, function=identifier(rows.function)))
        await conn.execute(_REMOVE.format(schema=schema))

    if await conn.fetchval(HAS_RELATION, f"{schema}.authority"):
        await with_locks(conn, take_out)
        _log.info("the target's side is removed", extra={"migration": mapping.name})


async def verify(conn: Connection, mapping: Mapping) -> list[Finding]:
    """Everything that is wrong with an installed target's side; empty when all is well. Reads only."""
    schema = schema_of(mapping.name)
    if not await conn.fetchval(HAS_RELATION, f"{schema}.compared_read"):
        return [error("not_installed", f"the target's side of {mapping.name} is not installed", "install it")]
    findings = []
    for rows in _rows(mapping):
        findings += await verify_triggers(conn, mapping.name, relation(rows.table))
    return findings


async def grant_client(conn: Connection, name: str, role: str) -> None:
    """Let ``role`` use the parts of `replank.migrate.client` that ask the target. Call it as the owner."""
    await conn.execute(_GRANT_CLIENT.format(schema=schema_of(name), role=identifier(role)))


def _rows(mapping: Mapping) -> Iterator[_Rows]:
    for name, entity in mapping.entities.items():
        yield _Rows(entity.table, f"on_{name}", record_key(entity, entity.primary_key))
        for child_name, child in entity.children.items():
            yield _Rows(child.table, f"on_{name}_{child_name}", record_key(entity, child.parent))


def _no_table(table: str) -> Finding:
    return error("no_table", f"there is no table {table}", "create the target's tables first")
