"""What must be so in a database before a migration touches it.

Each function reads, changes nothing, and answers everything that is in the way, so that it can be put right at once.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from replank.connection import Connection
from replank.installation import MINIMUM_SERVER
from replank.migrate import retired
from replank.migrate.mapping import Mapping
from replank.migrate.sql import HAS_FUNCTION, relation, schema_of
from replank.outbox import Finding

_TABLE: Final = """
    select c.oid::bigint as oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relispartition,
           exists (select from pg_inherits i where c.oid in (i.inhrelid, i.inhparent)) as inherits,
           exists (select from pg_subscription_rel s where s.srrelid = c.oid) as replicated,
           row_security_active(c.oid) as row_security,
           array(select p from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRIGGER']) as p
                  where not has_table_privilege(c.oid, p)) as lacking
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = to_regclass($1)
"""
_COLUMNS: Final = """
    select a.attname, format_type(a.atttypid, null) as type, coalesce(l.collisdeterministic, true) as deterministic,
           a.attnotnull and not a.atthasdef and a.attidentity = '' as required
      from pg_attribute a left join pg_collation l on l.oid = a.attcollation
     where a.attrelid = $1::bigint::oid and a.attnum > 0 and not a.attisdropped
"""
_PRIMARY_KEY: Final = """
    select i.indimmediate, array(select a.attname from unnest(i.indkey[:i.indnkeyatts - 1]) as k(attnum)
                                   join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum) as columns
      from pg_index i where i.indrelid = $1::bigint::oid and i.indisprimary
"""
_OTHER_TRIGGERS: Final = """
    select t.tgname from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
     where t.tgrelid = $1::bigint::oid and starts_with(n.nspname, 'replank_m_') and n.nspname <> $2
"""
_DATABASE: Final = """
    select pg_encoding_to_char(encoding) as encoding,
           case when to_regnamespace($1) is null then has_database_privilege(oid, 'CREATE')
                else (select pg_has_role(nspowner, 'USAGE') from pg_namespace where nspname = $2) end as may_create
      from pg_database where datname = current_database()
"""
# The catalogs alone: a role that may append need not be able to read the outbox's tables.
_OUTBOX: Final = """
    select count(p.oid) = 3 as complete,
           coalesce(bool_and(has_function_privilege(p.oid, 'EXECUTE')), false) and has_schema_privilege(n.oid, 'USAGE')
               as may_append
      from pg_namespace n left join pg_proc p on p.pronamespace = n.oid
                                             and p.proname in ('append', 'append_many', 'append_ordered')
     where n.nspname = 'replank_outbox' group by n.oid
"""


async def of_source(
    conn: Connection, mapping: Mapping, *, same_transaction: bool = False, triggers: bool = True
) -> list[Finding]:
    """Everything that keeps `replank.migrate.capture.install` from working here; empty if nothing does. Reads only.

    Also what would make it work wrongly: a table whose changes triggers do not all see, a key that is not unique by
    itself, a role that does not see every row. ``triggers=False``: what only triggers need is not asked for.
    """
    if conn.get_server_version().major < MINIMUM_SERVER:
        return [error("server", f"the source is older than Postgres {MINIMUM_SERVER}", "upgrade the server")]
    findings = await of_database(conn, mapping)
    if same_transaction:
        apply = f"{schema_of(mapping.name)}.apply(text[], jsonb[], bigint[], text[])"
        if not await conn.fetchval(HAS_FUNCTION, apply):
            findings.append(
                error("no_target", "this database does not have the compiled functions", "install the target first")
            )
    else:
        findings += await of_outbox(conn)
    facts = await table_facts(conn, relation(mapping.source.table))
    if facts is None:
        table = mapping.source.table
        findings.append(error("no_table", f"there is no table {table}", "correct source.table in the mapping"))
        return findings
    findings += _check_table(mapping, facts, triggers=triggers)
    if facts["relkind"] in ("r", "p"):
        findings += await _check_columns(conn, mapping, facts["oid"])
    if guard := await retired.closed_by(conn, relation(mapping.source.table)):
        message = f"{mapping.source.table} takes no writes: a migration that was retired left it closed"
        findings.append(error("retired", message, f"drop function {guard} cascade, if nobody writes to it by mistake"))
    findings += [
        error("other_migration", f"another migration captures this table by {trigger}", "end that migration first")
        for (trigger,) in await conn.fetch(_OTHER_TRIGGERS, facts["oid"], mapping.schema_name)
    ]
    return findings


async def of_outbox(conn: Connection) -> list[Finding]:
    """What keeps this role from appending to the outbox of this database. Whether a relay runs is not asked."""
    found = await conn.fetchrow(_OUTBOX)
    if found is None or not found["complete"]:
        return [error("no_outbox", "this database has no outbox", "run `replank outbox install --dsn …`")]
    if not found["may_append"]:
        return [error("append_denied", "this role may not append to the outbox", "call outbox.grant_append for it")]
    return []


async def table_facts(conn: Connection, table: str) -> asyncpg.Record | None:
    """What the server knows of a table (as SQL reads it): ``oid``, ``nspname``, ``relname`` and more; None: no such."""
    return await conn.fetchrow(_TABLE, table)


async def of_database(conn: Connection, mapping: Mapping) -> list[Finding]:
    schema = schema_of(mapping.name)
    ((encoding, may_create),) = await conn.fetch(_DATABASE, schema, mapping.schema_name)
    findings = []
    if encoding != "UTF8":
        findings.append(error("encoding", f"the database's encoding is {encoding}", "move to a database in UTF8"))
    if not may_create:
        findings.append(
            error(
                "schema_denied",
                f"this role may neither create the schema {schema} nor use it as its own",
                "grant it CREATE on the database, or the ownership of the schema that is there",
            )
        )
    return findings


def _check_table(mapping: Mapping, facts: asyncpg.Record, *, triggers: bool) -> list[Finding]:
    table = mapping.source.table
    lacking = [right for right in facts["lacking"] if triggers or right != "TRIGGER"]
    findings = []
    # A writer that tells of its changes itself does so whichever partition they are in.
    ordinary = (facts["relkind"] == "r" and not facts["inherits"]) or (facts["relkind"] == "p" and not triggers)
    if not ordinary or facts["relispartition"]:
        findings.append(
            error(
                "not_a_table",
                f"{table} is no ordinary table: not all of its changes pass through its own triggers",
                "copy the records to an ordinary table first, or tell of the changes with a DualWriter",
            )
        )
    elif facts["relpersistence"] != "p":
        findings.append(
            error(
                "not_permanent",
                f"{table} is unlogged or temporary: after a crash it is empty, and no trigger tells of it",
                f"alter table {table} set logged",
            )
        )
    if facts["replicated"]:
        findings.append(
            error(
                "replicated",
                f"{table} receives changes by logical replication, which does not fire these triggers",
                "migrate from the publisher",
            )
        )
    if facts["row_security"]:
        findings.append(
            error(
                "row_security",
                f"row-level security hides rows of {table} from this role",
                "use the table's owner, or a role with bypassrls",
            )
        )
    if lacking:
        rights = ", ".join(lacking)
        findings.append(
            error("denied", f"this role lacks {rights} on {table}", f"grant {rights.lower()} on {table} to the role")
        )
    return findings


async def _check_columns(conn: Connection, mapping: Mapping, oid: int) -> list[Finding]:
    source = mapping.source
    columns = {row["attname"]: row for row in await conn.fetch(_COLUMNS, oid)}
    findings = [
        error(
            "no_column", f"{source.table} has no column {column}", "correct source.key and source.value in the mapping"
        )
        for column in (source.key, source.value)
        if column not in columns
    ]
    if findings:
        return findings
    primary_key = await conn.fetchrow(_PRIMARY_KEY, oid)
    if primary_key is None or primary_key["columns"] != [source.key]:
        have = f"({', '.join(primary_key['columns'])})" if primary_key else "nothing"
        findings.append(
            error(
                "primary_key",
                f"the primary key of {source.table} is {have}, not ({source.key})",
                f"alter table {source.table} add primary key ({source.key})",
            )
        )
    elif not primary_key["indimmediate"]:
        findings.append(
            error(
                "deferrable_key",
                f"the primary key of {source.table} is deferrable: two transactions may hold one key at a time",
                "make the primary key not deferrable",
            )
        )
    if columns[source.key]["type"] not in {"text", "character varying"}:
        found = columns[source.key]["type"]
        findings.append(error("key_type", f"{source.table}.{source.key} is {found}, not text", "make it text"))
    elif not columns[source.key]["deterministic"]:
        findings.append(
            error(
                "key_collation",
                f"the collation of {source.table}.{source.key} takes different keys for equal",
                "give it a deterministic collation",
            )
        )
    if columns[source.value]["type"] != "jsonb":
        found = columns[source.value]["type"]
        findings.append(error("value_type", f"{source.table}.{source.value} is {found}, not jsonb", "make it jsonb"))
    findings += [
        error(
            "required_column",
            f"{source.table}.{column} must be given: a record that comes back from the tables has no value for it",
            "give the column a default",
        )
        for column, row in columns.items()
        if row["required"] and column not in {source.key, source.value}
    ]
    return findings


def error(code: str, message: str, fix: str) -> Finding:
    """A finding that keeps the migration from working."""
    return Finding("error", code, message, fix)
