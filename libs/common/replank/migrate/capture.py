"""Capture: every change of a record of the key-value table is told to the migration, without touching the application.

Triggers for each statement append what has changed to the database's outbox, in the transaction that changes it, or
(``same_transaction``) apply it to the tables at once. They also refuse writes while the key-value store is not the
authority (`replank.migrate.authority`). What comes back from the tables after the cut-over is taken by the function
``restore``. All of it lives in the schema ``replank_m_<name>``, but for the triggers themselves.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from replank.connection import Connection
from replank.contracts.schema import RecordChanged
from replank.errors import ReplankError
from replank.migrate import preconditions
from replank.migrate.authority import Side, Writes
from replank.migrate.locks import with_locks
from replank.migrate.mapping import Mapping
from replank.migrate.preconditions import error
from replank.migrate.script import script
from replank.migrate.sql import HAS_RELATION, HAS_SCHEMA, identifier, relation, schema_of
from replank.outbox import Finding

_log: Final = logging.getLogger(__name__)

EVENTS: Final = ("insert", "update", "delete", "truncate")

_CREATE_SCHEMA: Final = "create schema if not exists {schema}"
_ENTER: Final = """
    insert into {schema}.authority (side, writes, tables) values ($1, $2, $3)
    on conflict (side) do update set tables = excluded.tables
"""
_LEAVE: Final = "delete from {schema}.authority where side = $1 returning tables"
_TRIGGERS: Final = """
    select t.tgname, t.tgenabled in ('O', 'A') as enabled
      from pg_trigger t join pg_proc p on p.oid = t.tgfoid
     where p.pronamespace = to_regnamespace($1) and t.tgrelid = to_regclass($2) and not t.tgisinternal
"""
_SEQUENCE_CACHE: Final = "select seqcache from pg_sequence where seqrelid = to_regclass($1)"
_GRANT_CLIENT: Final = """
    grant usage on schema {schema} to {role};
    grant execute on function {schema}.written, {schema}.retell_source, {schema}.told_by_source to {role};
    grant select on {schema}.restored, {schema}.authority to {role}
"""
_WAIT_FOR_WRITERS: Final = "lock table {table} in share row exclusive mode"
_REMOVE: Final = """
    drop function if exists {schema}.capture, {schema}.written, {schema}.carry, {schema}.changes, {schema}.restore,
                            {schema}.retell_source, {schema}.told_by_source;
    drop table if exists {schema}.restored
"""


class CaptureRefused(ReplankError):
    """A database cannot be a side of the migration as it is. ``findings`` says everything that is in the way."""

    def __init__(self, name: str, findings: list[Finding]) -> None:
        super().__init__(
            f"the migration {name} cannot be installed here: " + "; ".join(finding.message for finding in findings),
            fix="; ".join(dict.fromkeys(finding.fix for finding in findings)),
        )
        self.findings = tuple(findings)


def trigger_names(name: str) -> dict[str, str]:
    """The names of the triggers that the migration ``name`` has on each of its tables, by event."""
    return {event: f"replank_m_{name}_{event}" for event in EVENTS}


async def install(conn: Connection, mapping: Mapping, *, same_transaction: bool = False, triggers: bool = True) -> None:
    """Install capture on the source, or bring what is there up to date. Safe to repeat; writes go on as they were.

    From its commit on, every change of the key-value table is told. The table is locked against writers for a moment,
    which waits for transactions that have written to it (a second at a time, 30 seconds in all).
    ``same_transaction``: source and target are this database, and changes are applied as they are made; without it they
    go to the outbox. ``triggers=False`` installs all but the triggers, for writers that use a
    `replank.migrate.client.DualWriter`: other writers are then neither seen nor refused.

    The role becomes the owner of what is installed, and the triggers append as this role, so that the application's
    roles need no rights of their own. Raises `CaptureRefused`, with nothing touched, for what
    `replank.migrate.preconditions.of_source` finds, and `replank.migrate.locks.LocksNotGranted`.
    """
    findings = await preconditions.of_source(conn, mapping, same_transaction=same_transaction, triggers=triggers)
    if findings:
        raise CaptureRefused(mapping.name, findings)
    found = await preconditions.table_facts(conn, relation(mapping.source.table))
    if found is None:  # it was there a moment ago
        raise CaptureRefused(mapping.name, [error("no_table", "the key-value table was dropped", "create it again")])
    variables = {
        **common_variables(mapping, "source"),
        "table_schema": found["nspname"],
        "table": found["relname"],
        "key": mapping.source.key,
        "value": mapping.source.value,
    }
    table = f"{identifier(found['nspname'])}.{identifier(found['relname'])}"

    async def put_in() -> None:
        await install_authority(conn, mapping)
        await conn.execute(script("source.sql", variables))
        await install_carrier(conn, "source", variables, same_transaction=same_transaction)
        await enter(conn, mapping, "source", "open", [table])
        if triggers:
            await conn.execute(script("source_triggers.sql", variables))
        else:
            # As making triggers does: whoever has written without telling has ended, whoever writes now tells.
            await conn.execute(_WAIT_FOR_WRITERS.format(table=table))

    await with_locks(conn, put_in)
    _log.info("capture installed", extra={"migration": mapping.name, "same_transaction": same_transaction})


async def remove(conn: Connection, name: str) -> None:
    """Take the triggers off the key-value table, and all that the source's side has; nothing there is no error.

    Writes are neither told nor refused any more. What is in the outbox stays. The schema stays: in a database that is
    both sides it holds the other one, too. Raises `replank.migrate.locks.LocksNotGranted`.
    """
    schema = schema_of(name)

    async def take_out() -> None:
        await leave(conn, name, "source")
        await conn.execute(_REMOVE.format(schema=schema))

    if await conn.fetchval(HAS_RELATION, f"{schema}.authority"):
        await with_locks(conn, take_out)
        _log.info("capture removed", extra={"migration": name})


async def verify(conn: Connection, mapping: Mapping, *, triggers: bool = True) -> list[Finding]:
    """Everything that is wrong with an installed capture; empty when all is well. Reads only."""
    schema = schema_of(mapping.name)
    if not await conn.fetchval(HAS_RELATION, f"{schema}.restored"):
        return [error("not_installed", f"capture of {mapping.name} is not installed", "install it")]
    findings = await preconditions.of_database(conn, mapping)
    if triggers:
        findings += await verify_triggers(conn, mapping.name, relation(mapping.source.table))
    if (cache := await conn.fetchval(_SEQUENCE_CACHE, f"{schema}.version")) != 1:
        findings.append(
            error(
                "sequence_cache",
                f"the sequence {schema}.version caches {cache} values: versions do not follow commits",
                f"alter sequence {schema}.version cache 1",
            )
        )
    return findings


async def grant_client(conn: Connection, name: str, role: str) -> None:
    """Let ``role`` use the parts of `replank.migrate.client` that ask the source. Call it as the owner."""
    await conn.execute(_GRANT_CLIENT.format(schema=schema_of(name), role=identifier(role)))


# What the other side needs as well


async def install_authority(conn: Connection, mapping: Mapping) -> None:
    """The schema of the migration, its versions and its authority, in the transaction that is open on ``conn``."""
    schema = schema_of(mapping.name)
    # Not "if not exists" alone: that asks for CREATE on the database even where there is nothing to create.
    if not await conn.fetchval(HAS_SCHEMA, schema):
        await conn.execute(_CREATE_SCHEMA.format(schema=schema))
    names = {"schema": mapping.schema_name, "name": mapping.name}
    await conn.execute(script("authority.sql", names, {"first_version": str(time.time_ns() // 1000)}))


async def install_carrier(conn: Connection, side: Side, variables: dict[str, str], *, same_transaction: bool) -> None:
    """What carries changes of a side to the other one, and tells of those that are on their way."""
    way = "same_transaction" if same_transaction else "outbox"
    # What was told comes first: what repeats a change asks for it.
    for file in (f"told_{way}.sql", f"{side}_{way}.sql"):
        await conn.execute(script(file, variables))


async def enter(conn: Connection, mapping: Mapping, side: Side, writes: Writes, tables: list[str]) -> None:
    """Write down that this database is a side, of these tables (as SQL reads them). Its state stays, if it has one."""
    await conn.execute(_ENTER.format(schema=schema_of(mapping.name)), side, writes, tables)


async def leave(conn: Connection, name: str, side: Side) -> None:
    """Take the triggers off the tables of a side and forget it, in the transaction that is open on ``conn``."""
    schema = schema_of(name)
    tables: list[str] = await conn.fetchval(_LEAVE.format(schema=schema), side) or []
    for table in tables:
        if not await take_triggers_off(conn, name, table) and await conn.fetchval(HAS_RELATION, table):
            # As dropping triggers does: whoever has told of a change has committed it, and nobody tells any more.
            await conn.execute(_WAIT_FOR_WRITERS.format(table=table))


async def take_triggers_off(conn: Connection, name: str, table: str) -> bool:
    """Take the migration's triggers off one table (as SQL reads it), in the transaction that is open on ``conn``.

    Tells whether there were any.
    """
    found = await conn.fetch(_TRIGGERS, schema_of(name), table)
    for row in found:
        await conn.execute(f"drop trigger if exists {identifier(row['tgname'])} on {table}")
    return bool(found)


async def verify_triggers(conn: Connection, name: str, table: str) -> list[Finding]:
    """Which of the migration's triggers a table (as SQL reads it) lacks."""
    there = {row["tgname"]: row["enabled"] for row in await conn.fetch(_TRIGGERS, schema_of(name), table)}
    findings = []
    for event, trigger in trigger_names(name).items():
        if trigger not in there:
            problem = f"{table} has no trigger {trigger}: nothing is known of a {event}"
            findings.append(error("missing_trigger", problem, "install it again, then compare everything"))
        elif not there[trigger]:
            problem = f"the trigger {trigger} of {table} is disabled: nothing is known of a {event}"
            findings.append(error("disabled_trigger", problem, f"alter table {table} enable trigger {trigger}"))
    return findings


def common_variables(mapping: Mapping, side: Side) -> dict[str, str]:
    """What the scripts of each side are told."""
    return {
        "side": side,
        "topic": mapping.change_topic if side == "source" else mapping.reverse_topic,
        "told_by": f"told_by_{side}",
        "retell": f"retell_{side}",
        "name": mapping.name,
        "schema": mapping.schema_name,
        "type": RecordChanged.event_type,
        "version_sequence": f"{schema_of(mapping.name)}.version",
        **{f"{event}_trigger": trigger for event, trigger in trigger_names(mapping.name).items()},
    }
