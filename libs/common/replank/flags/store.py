"""All SQL of the flags: the authority's tables, and the local copy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from replank import outbox
from replank.connection import Connection
from replank.flags.errors import FlagConflict, FlagNotFound, FlagsMismatch, FlagsNotInstalled
from replank.flags.model import Flag, FlagValue, check_author, check_name, check_rollout, encode_value
from replank.installation import Installation

if TYPE_CHECKING:
    from collections.abc import Iterator

Pool: TypeAlias = "asyncpg.Pool[Any]"

_INSTALLATION: Final = Installation(
    schema="replank_flags",
    name="the flag store",
    package="replank.flags",
    migrations=("0001_tables.sql",),
    mismatch=FlagsMismatch,
)

_CURRENT: Final = "select version, deleted from replank_flags.flag where name = $1 for update"

# A version is at least the time in microseconds: it still grows after the authority's database was restored from a
# backup, or the authority moved to another database, so that every process takes the next change.
_SET: Final = """
with changed as (
    insert into replank_flags.flag as known
        (name, value, enabled, rollout, version, deleted, updated_by, reason, updated_at)
    values ($1, $2::text::jsonb, $3, $4::float8::numeric(6, 3),
            (extract(epoch from clock_timestamp()) * 1000000)::bigint, false, $5, $6, clock_timestamp())
    on conflict (name) do update
       set value = excluded.value, enabled = excluded.enabled, rollout = excluded.rollout,
           version = greatest(known.version + 1, excluded.version), deleted = false,
           updated_by = excluded.updated_by, reason = excluded.reason, updated_at = excluded.updated_at
     where $7::bigint is null or known.version = $7 or ($7 = 0 and known.deleted)
    returning *
), kept as (
    insert into replank_flags.history (name, version, value, enabled, rollout, deleted, updated_by, reason, updated_at)
    select name, version, value, enabled, rollout, deleted, updated_by, reason, updated_at from changed
)
select name, value::text, enabled, rollout::float8, version, deleted, updated_by, reason, updated_at from changed
"""

_DELETE: Final = """
with changed as (
    update replank_flags.flag
       set value = null, enabled = false, rollout = 0, deleted = true, updated_by = $2, reason = $3,
           updated_at = clock_timestamp(),
           version = greatest(version + 1, (extract(epoch from clock_timestamp()) * 1000000)::bigint)
     where name = $1
    returning *
), kept as (
    insert into replank_flags.history (name, version, value, enabled, rollout, deleted, updated_by, reason, updated_at)
    select name, version, value, enabled, rollout, deleted, updated_by, reason, updated_at from changed
)
select name, value::text, enabled, rollout::float8, version, deleted, updated_by, reason, updated_at from changed
"""

_GET: Final = """
select name, value::text, enabled, rollout::float8, version, deleted, updated_by, reason, updated_at
  from replank_flags.flag where name = $1 and not deleted
"""

_LIST: Final = """
select name, value::text, enabled, rollout::float8, version, deleted, updated_by, reason, updated_at
  from replank_flags.flag where $1 or not deleted order by name
"""

_HISTORY: Final = """
select name, value::text, enabled, rollout::float8, version, deleted, updated_by, reason, updated_at
  from replank_flags.history where name = $1 order by version desc limit $2
"""

_LOAD_COPY: Final = "select name, flag::text from replank_flags.copy order by name"

# In the order of names, so that processes which share the database cannot deadlock.
_KEEP_COPY: Final = """
insert into replank_flags.copy as kept (name, version, flag)
select name, version, flag::jsonb
  from unnest($1::text[], $2::bigint[], $3::text[]) as arrived(name, version, flag) order by name
on conflict (name) do update
   set version = excluded.version, flag = excluded.flag, received_at = clock_timestamp()
 where excluded.version > kept.version
"""


async def install(conn: Connection) -> None:
    """Install the flag tables, or bring those that are there up to date. Every service's database needs them.

    The authority's database, where flags are changed, needs the outbox too (`replank.outbox.install`). Safe to repeat
    and to race; the role needs CREATE on the database, or to own the schema ``replank_flags``.

    Raises `FlagsMismatch` for newer tables than this library knows and for a server older than Postgres 15;
    `asyncpg.LockNotAvailableError` when a lock is not to be had within 3 seconds.
    """
    async with _INSTALLATION.installing(conn):
        pass


async def set_flag(
    conn: Connection,
    name: str,
    value: FlagValue,
    *,
    by: str,
    reason: str = "",
    enabled: bool = True,
    rollout: float = 100,
    expected_version: int | None = None,
) -> Flag:
    """Create or change a flag; the change reaches every process once the transaction commits.

    ``by`` says who (``user:ada``). ``expected_version`` makes the change only if the flag is still at that version; 0
    means that there must be no such flag. Joins the transaction that is open on ``conn``, else makes its own. Waits
    while another transaction that changed the same flag stays open.

    Raises `InvalidFlag`, `FlagValueTooLarge`, `FlagConflict`, `FlagsNotInstalled`, and what `replank.outbox.append`
    does.
    """
    check_name(name)
    check_author(name, by, reason)
    text = encode_value(name, value)
    rollout = check_rollout(name, rollout)
    with _installed():
        async with conn.transaction():
            known = await conn.fetchrow(_CURRENT, name)
            if expected_version and known is None:
                raise _conflict(name, expected_version)
            row = await conn.fetchrow(_SET, name, text, enabled, rollout, by, reason, expected_version)
            if row is None:
                raise _conflict(name, expected_version)
            flag = _flag(row)
            await outbox.append(conn, flag.changed(), key=name, subject=name)
    return flag


async def delete_flag(conn: Connection, name: str, *, by: str, reason: str = "") -> Flag:
    """Delete a flag: everybody gets the default of the code that asks. Its history stays.

    Raises `FlagNotFound`, `InvalidFlag`, `FlagsNotInstalled`, and what `replank.outbox.append` does.
    """
    check_name(name)
    check_author(name, by, reason)
    with _installed():
        async with conn.transaction():
            known = await conn.fetchrow(_CURRENT, name)
            if known is None or known["deleted"]:
                raise FlagNotFound(f"there is no flag {name}", fix="list the flags to see their names")
            row = await conn.fetchrow(_DELETE, name, by, reason)
            if row is None:
                raise AssertionError("the row is locked by this transaction")
            flag = _flag(row)
            await outbox.append(conn, flag.changed(), key=name, subject=name)
    return flag


async def get_flag(conn: Connection, name: str) -> Flag | None:
    """The flag in the authority's database, or None."""
    with _installed():
        row = await conn.fetchrow(_GET, name)
    return _flag(row) if row else None


async def list_flags(conn: Connection, *, deleted: bool = False) -> Sequence[Flag]:
    """All flags of the authority's database by name; with ``deleted=True`` also those that were deleted."""
    with _installed():
        return [_flag(row) for row in await conn.fetch(_LIST, deleted)]


async def history(conn: Connection, name: str, *, limit: int = 50) -> Sequence[Flag]:
    """The states that a flag has had, the newest first."""
    with _installed():
        return [_flag(row) for row in await conn.fetch(_HISTORY, name, limit)]


async def load_copy(pool: Pool) -> Sequence[tuple[str, str]]:
    """Name and JSON of every flag that the processes of this database have seen."""
    with _installed():
        return [(row["name"], row["flag"]) for row in await pool.fetch(_LOAD_COPY)]


async def keep_copy(pool: Pool, flags: Sequence[Flag]) -> None:
    """Remember these flags; one that is known in a newer version is left alone."""
    with _installed():
        await pool.execute(
            _KEEP_COPY,
            [flag.name for flag in flags],
            [flag.version for flag in flags],
            [flag.changed().to_value().decode() for flag in flags],
        )


def _conflict(name: str, expected: int | None) -> FlagConflict:
    return FlagConflict(
        f"the flag {name} is not at version {expected}", fix="read it again, and decide on what it is now"
    )


def _flag(row: asyncpg.Record) -> Flag:
    fields = dict(row)
    text = fields.pop("value")
    return Flag(value=None if text is None else json.loads(text), **fields)


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
        if "replank_flags" not in str(error):
            raise
        raise FlagsNotInstalled(
            "this database has no flag tables", fix="run `replank flags install`, or call replank.flags.install"
        ) from error
