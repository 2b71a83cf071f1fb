"""What a migration changes in the target's schema, while the target is in use.

Tables are only ever made, or taken as they are when they are empty. Indexes are built concurrently. A constraint is
added without looking at the rows that are there, and validated afterwards, when nobody has to wait for it. Every step
looks first at what is there: it can be repeated, and whoever was killed in the middle goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg

from replank.connection import POSTGRES_ERRORS, Connection
from replank.errors import ReplankError
from replank.inbox.outcome import is_transient
from replank.migrate import retired
from replank.migrate.compile import Compiled, Constraint, IndexBuild, Table
from replank.migrate.isolation import is_of_the_data
from replank.migrate.locks import with_locks
from replank.migrate.session import backoff, session
from replank.migrate.sql import HAS_RELATION, relation

_log: Final = logging.getLogger(__name__)

_PART: Final = "ddl"
_PROGRESS_INTERVAL: Final = 1.0
_CANCEL_SLACK: Final = 30.0  # seconds that the server has to give up by itself before the connection is cut
_LONGEST_PAUSE: Final = 10.0

_ALONE: Final = "select pg_try_advisory_lock(hashtextextended($1, 0))"
_INSTALLED: Final = "select to_regclass($1::text || '.applied') is not null"
_HAS_ROWS: Final = "select exists (select from {table})"
_LACKS: Final = """
    select wanted.name, wanted.type, format_type(a.atttypid, a.atttypmod) as found
      from unnest($2::text[], $3::text[]) as wanted(name, type)
      left join pg_attribute a
        on a.attrelid = to_regclass($1) and a.attname = wanted.name and not a.attisdropped and a.attnum > 0
     where a.attname is null or a.atttypid is distinct from to_regtype(wanted.type)
"""
_PRIMARY_KEY: Final = """
    select array_agg(a.attname::text order by k.place)
      from pg_index i, unnest(i.indkey) with ordinality as k(attnum, place)
      join pg_attribute a on true
     where i.indrelid = to_regclass($1) and i.indisprimary and a.attrelid = i.indrelid and a.attnum = k.attnum
"""
_MAY_CREATE_IN: Final = "select has_schema_privilege(oid, 'create') from pg_namespace where nspname = $1"
_MAY_CREATE_SCHEMA: Final = "select has_database_privilege(current_database(), 'create')"
_INDEX: Final = """
    select i.indisvalid as valid, i.indexrelid::regclass::text as name
      from pg_index i join pg_class c on c.oid = i.indexrelid
     where i.indrelid = to_regclass($1) and c.relname = $2
"""
# The name comes from the server, quoted.
_DROP_INDEX: Final = "drop index concurrently if exists {name}"
_PROGRESS: Final = """
    select phase, blocks_done, blocks_total, tuples_done, tuples_total, lockers_done, lockers_total
      from pg_stat_progress_create_index where pid = $1
"""
_CONSTRAINT: Final = "select convalidated from pg_constraint where conrelid = to_regclass($1) and conname = $2"
_IS_NOT_NULL: Final = """
    select a.attnotnull from pg_attribute a where a.attrelid = to_regclass($1) and a.attname = $2 and not a.attisdropped
"""
_LOCK_TIMEOUT: Final = "select set_config('lock_timeout', $1, false)"


class TargetRefused(ReplankError):
    """The target cannot take the tables of a mapping as it is. Nothing was touched; the message names everything."""


class ConstraintViolated(ReplankError):
    """Rows of the target do not satisfy a constraint or a unique index of the mapping."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What rows do not satisfy. ``keys``: of their records, one for each row, at most as many as were asked for."""

    constraint: Constraint | IndexBuild
    keys: tuple[str, ...]


class AnotherAtWork(ReplankError):
    """Another process changes the schema of this migration's target."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a step may wait and work, in seconds."""

    lock_timeout: float = 1.0
    """How long a strong lock is waited for in one go: everybody else's statements queue behind it meanwhile."""
    within: float = 60.0
    """How long a strong lock is tried for, all attempts together."""
    statement_timeout: float = 6 * 3600.0
    """How long one index may take to build, or one constraint to validate."""
    wait_for_writers: float = 3600.0
    """How long the build of an index may wait for a transaction of others to end. Nobody waits for it meanwhile."""
    attempts: int = 5
    """How often an index is built that did not come to an end, or a validation tried that did not get its lock."""


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far the build of an index is: ``done`` of ``total``, in what the phase counts (blocks, rows or lockers)."""

    index: str
    phase: str
    done: int
    total: int


_DEFAULT_LIMITS: Final = Limits()


async def check(conn: Connection, compiled: Compiled, *, anew: bool = False) -> None:
    """See that the tables of the mapping can be made, or taken. Reads only.

    Raises `TargetRefused` with everything in the way: a table that holds rows, one that is not as the mapping has it,
    a schema that is not there, a privilege that is missing. What the migration itself has made before is no obstacle,
    but with ``anew``, for a run that begins with nothing.
    """
    installed = await conn.fetchval(_INSTALLED, compiled.schema)
    faults: list[str] = []
    for table in compiled.tables:
        if not await conn.fetchval(HAS_RELATION, table.sql):
            faults += await _cannot_create(conn, table)
            continue
        faults += await _differences(conn, table)
        if guard := await retired.closed_by(conn, table.sql):
            faults.append(f"the table {table.name} refuses writes by {guard}, which a retired migration has left")
        if (anew or not installed) and await conn.fetchval(_HAS_ROWS.format(table=table.sql)):
            faults.append(f"the table {table.name} holds rows already")
    if not installed and not await conn.fetchval(_MAY_CREATE_SCHEMA):
        faults.append("this role may not create a schema in the database")
    if faults:
        raise TargetRefused(
            f"the target cannot take the migration {compiled.mapping.name}: {'; '.join(dict.fromkeys(faults))}",
            fix="grant what is missing, or name tables that are absent or empty",
        )


async def create_tables(
    dsn: str,
    compiled: Compiled,
    *,
    anew: bool = False,
    also: Callable[[Connection], Awaitable[None]] | None = None,
    limits: Limits = _DEFAULT_LIMITS,
) -> None:
    """Make the tables that are missing, and the migration's own schema with its functions, all at once or not at all.

    ``anew`` drops what an earlier run has left in that schema, progress and versions. ``also`` is done on the same
    connection in the same transaction, perhaps several times: what must be so from the tables' first moment on, such
    as that nobody may write to them (`replank.migrate.reverse.install`).

    Raises as `check` does, with nothing touched, and `AnotherAtWork`.
    """
    async with _alone(dsn, compiled, limits) as conn:

        async def work() -> None:
            await check(conn, compiled, anew=anew)
            for table in compiled.tables:
                if not await conn.fetchval(HAS_RELATION, table.sql):
                    await conn.execute(table.create)
            if anew:
                await conn.execute(compiled.drop)
            await conn.execute(compiled.functions)
            if also is not None:
                await also(conn)

        await with_locks(conn, work, patience=limits.lock_timeout, within=limits.within)


async def build_indexes(
    dsn: str,
    compiled: Compiled,
    *,
    limits: Limits = _DEFAULT_LIMITS,
    on_progress: Callable[[IndexProgress], None] | None = None,
) -> None:
    """Build the indexes that are missing, one after the other, while the tables are written to; and analyze the tables.

    What a build that failed or was killed left behind, an index that is not valid, is dropped and built again. Raises
    `ConstraintViolated` for a unique index that cannot be, `AnotherAtWork`, and what Postgres says in the end.
    """
    async with _alone(dsn, compiled, limits) as conn:
        for index in compiled.indexes:
            await _build(dsn, conn, index, limits, on_progress)
        # The first reads come soon after, sooner than autovacuum looks at tables that were filled just now.
        for table in compiled.tables:
            await conn.execute(f"analyze {table.sql}")


async def add_constraints(dsn: str, compiled: Compiled, *, limits: Limits = _DEFAULT_LIMITS) -> None:
    """Add the constraints that are missing, and validate them all, while the tables are written to.

    Raises `ConstraintViolated` that names the constraint; those before it are done, and it holds for new rows itself.
    Raises `AnotherAtWork` and `replank.migrate.locks.LocksNotGranted`.
    """
    async with _alone(dsn, compiled, limits) as conn:
        for constraint in compiled.constraints:
            await _constrain(conn, constraint, limits)


async def violations(
    conn: Connection, constraints: Iterable[Constraint | IndexBuild], *, at_most: int
) -> list[Violation]:
    """The constraints and unique indexes that rows of the target do not satisfy, whether they are there or not.

    Reads only. Each table is read as a whole, until ``at_most`` rows are found. A row is counted also where the one
    that it refers to is on its way: while appliers are at work, ask again before you believe it.
    """
    found = []
    for constraint in constraints:
        if constraint.violated is None:
            continue
        rows = await conn.fetch(f"{constraint.violated} limit $1", at_most)
        if rows:
            found.append(Violation(constraint, tuple(row[0] for row in rows)))
    return found


async def drop_constraints(dsn: str, compiled: Compiled, *, limits: Limits = _DEFAULT_LIMITS) -> None:
    """Take the constraints away again, before an applier writes to the tables: it follows the order of single records.

    Raises `AnotherAtWork` and `replank.migrate.locks.LocksNotGranted`.
    """
    async with _alone(dsn, compiled, limits) as conn:
        for constraint in reversed(compiled.constraints):
            await _execute(conn, constraint.drop, limits)


async def drop(dsn: str, compiled: Compiled, *, tables: bool, limits: Limits = _DEFAULT_LIMITS) -> None:
    """Drop the migration's own schema; with ``tables`` its tables as well, rows and all. What is gone is no error."""
    async with _alone(dsn, compiled, limits) as conn:
        made = [table.drop for table in reversed(compiled.tables)] if tables else []
        await _execute(conn, (compiled.drop, *made), limits)


@asynccontextmanager
async def _alone(dsn: str, compiled: Compiled, limits: Limits) -> AsyncIterator[Connection]:
    async with session(
        dsn,
        _PART,
        timeout=limits.statement_timeout + _CANCEL_SLACK,
        statement_timeout=_milliseconds(limits.statement_timeout),
    ) as conn:
        if not await conn.fetchval(_ALONE, f"{compiled.mapping.schema_name}.ddl"):
            raise AnotherAtWork(
                f"another process changes the tables of {compiled.mapping.name}", fix="wait until it is done"
            )
        yield conn


async def _cannot_create(conn: Connection, table: Table) -> list[str]:
    schema = table.name.rpartition(".")[0] or "public"
    allowed = await conn.fetchval(_MAY_CREATE_IN, schema)
    if allowed is None:
        return [f"there is no schema {schema} for the table {table.name}"]
    return [] if allowed else [f"this role may not create the table {table.name} in the schema {schema}"]


async def _differences(conn: Connection, table: Table) -> list[str]:
    names, types = [name for name, _ in table.columns], [kind for _, kind in table.columns]
    faults = [
        f"the table {table.name} has no column {row['name']}"
        if row["found"] is None
        else f"the column {row['name']} of {table.name} is {row['found']}, the mapping has {row['type']}"
        for row in await conn.fetch(_LACKS, table.sql, names, types)
    ]
    if await conn.fetchval(_PRIMARY_KEY, table.sql) != list(table.primary_key):
        faults.append(f"the primary key of {table.name} is not ({', '.join(table.primary_key)})")
    return faults


async def _build(
    dsn: str,
    conn: Connection,
    index: IndexBuild,
    limits: Limits,
    on_progress: Callable[[IndexProgress], None] | None,
) -> None:
    # Not a short one: what waits here holds up nobody, and an attempt that gives up leaves an invalid index.
    await _set_lock_timeout(conn, limits.wait_for_writers)
    for attempt in range(1, limits.attempts + 1):
        there = await conn.fetchrow(_INDEX, relation(index.table), index.name)
        if there is not None:
            if there["valid"]:
                return
            await conn.execute(_DROP_INDEX.format(name=there["name"]))
        watching = asyncio.create_task(_watch(dsn, conn.get_server_pid(), index.name, on_progress))
        try:
            await conn.execute(index.create)
        except asyncpg.PostgresError as error:
            if is_of_the_data(error):
                raise ConstraintViolated(
                    f"the index {index.name} of {index.table} cannot be built: {type(error).__name__}",
                    fix="mend the rows that are in its way, or take the index out of the mapping",
                ) from error
            if attempt == limits.attempts or not is_transient(error):
                raise
            _log.warning("an index is built again", extra={"index": index.name, "error": type(error).__name__})
            await asyncio.sleep(backoff(attempt, _LONGEST_PAUSE))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _watch(dsn: str, pid: int, index: str, on_progress: Callable[[IndexProgress], None] | None) -> None:
    """Tell how far the build is, until cancelled. That it cannot be told is no reason to stop the build."""
    if on_progress is None:
        return
    try:
        async with session(dsn, _PART, timeout=_CANCEL_SLACK) as conn:
            while True:
                if (row := await conn.fetchrow(_PROGRESS, pid)) is not None:
                    unit = "blocks" if row["blocks_total"] else "tuples" if row["tuples_total"] else "lockers"
                    on_progress(IndexProgress(index, row["phase"], row[f"{unit}_done"], row[f"{unit}_total"]))
                await asyncio.sleep(_PROGRESS_INTERVAL)
    except POSTGRES_ERRORS as error:
        _log.info("the progress of an index is not known", extra={"index": index, "error": type(error).__name__})


async def _constrain(conn: Connection, constraint: Constraint, limits: Limits) -> None:
    table = relation(constraint.table)
    validated = await conn.fetchval(_CONSTRAINT, table, constraint.name)
    if validated is None:
        if constraint.kind == "not null" and await conn.fetchval(_IS_NOT_NULL, table, constraint.columns[0]):
            return
        await _execute(conn, (constraint.add,), limits)
    if not validated:
        await _validate(conn, constraint, limits)
    await _execute(conn, constraint.finish, limits)


async def _validate(conn: Connection, constraint: Constraint, limits: Limits) -> None:
    # Its own lock stops neither readers nor writers, so it may be held for as long as reading the table takes.
    for attempt in range(1, limits.attempts + 1):
        await _set_lock_timeout(conn, limits.lock_timeout)
        try:
            await conn.execute(constraint.validate)
        except asyncpg.PostgresError as error:
            if is_of_the_data(error):
                raise ConstraintViolated(
                    f"rows of {constraint.table} violate {constraint.name} ({', '.join(constraint.columns)})",
                    fix="mend or delete these rows, then add the constraints again",
                ) from error
            if attempt == limits.attempts or not is_transient(error):
                raise
            await asyncio.sleep(backoff(attempt, _LONGEST_PAUSE))
        else:
            return


async def _execute(conn: Connection, statements: Sequence[str], limits: Limits) -> None:
    """Do short steps that need strong locks, all at once or not at all."""

    async def work() -> None:
        for statement in statements:
            await conn.execute(statement)

    if statements:
        await with_locks(conn, work, patience=limits.lock_timeout, within=limits.within)


async def _set_lock_timeout(conn: Connection, seconds: float) -> None:
    await conn.execute(_LOCK_TIMEOUT, _milliseconds(seconds))


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
