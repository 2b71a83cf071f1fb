"""Plain-SQL migrations in two phases, for deployments in which old and new code run side by side.

A service keeps its migrations in its package, in ``migrations/``::

    0001_pre_create_policy.sql         before the new code starts; the old code still runs, and must bear it
    0002_post_drop_old_policy.sql      after the old code is gone

Numbers run without gaps over both phases. A file is one transaction; if its first line is
``-- replank: no transaction`` it is one statement outside of any (``create index concurrently if not exists``), and
must be repeatable. What was applied, and the checksum that it had, is kept in ``replank_migrations`` in the same
database.

A migration that cannot get its lock quickly gives up and tries again, because every query that arrives while it waits
queues behind it: a lock timeout turns an outage into a retry.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import asyncpg

from replank.errors import DependencyUnavailable, ReplankError
from replank.postgres.pools import CANNOT_CONNECT, GONE

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_log = logging.getLogger(__name__)

Phase = Literal["pre", "post"]
Selection: TypeAlias = Literal["pre", "post", "all"]

_FILE: Final = re.compile(r"(?P<number>\d{4})_(?P<phase>pre|post)_(?P<title>[a-z0-9_]+)\.sql")
_NO_TRANSACTION: Final = "-- replank: no transaction"
# One migrator at a time per database, whatever package it migrates. The key is "replank mi" in ASCII, cut to 63 bits.
_LOCK: Final = int.from_bytes(b"replankm", "big") >> 1

_TABLES: Final = """
create schema if not exists replank_migrations;
create table if not exists replank_migrations.applied (
    package text not null,
    number integer not null,
    phase text not null check (phase in ('pre', 'post')),
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default clock_timestamp(),
    applied_by text not null default current_user,
    duration_ms double precision not null,
    primary key (package, number)
);
create table if not exists replank_migrations.installed (
    package text primary key,
    at timestamptz not null default clock_timestamp()
);
"""
_TABLES_EXIST: Final = """
select to_regclass('replank_migrations.applied') is not null
   and to_regclass('replank_migrations.installed') is not null
"""
_APPLIED: Final = "select number, name, checksum from replank_migrations.applied where package = $1 order by number"
_RECORD: Final = """
insert into replank_migrations.applied (package, number, phase, name, checksum, duration_ms)
values ($1, $2, $3, $4, $5, $6)
"""
_IS_INSTALLED: Final = "select exists (select from replank_migrations.installed where package = $1)"
_INSTALLED: Final = "insert into replank_migrations.installed (package) values ($1) on conflict do nothing"
_LIMITS: Final = "select set_config('lock_timeout', $1, false), set_config('statement_timeout', $2, false)"
_TRY_LOCK: Final = "select pg_try_advisory_lock($1)"
_UNLOCK: Final = "select pg_advisory_unlock($1)"
# Identifiers come quoted from the server, ready to be put into a statement.
_INVALID_INDEXES: Final = """
select c.relname as name, format('%I.%I', n.nspname, c.relname) as qualified
from pg_index i
join pg_class c on c.oid = i.indexrelid
join pg_namespace n on n.oid = c.relnamespace
where not i.indisvalid
"""


class MigrationError(ReplankError):
    """Migrations that contradict themselves or the database, or that could not be applied."""


@dataclass(frozen=True)
class Migration:
    """One file. ``checksum`` is the SHA-256 of its text with Unix line ends."""

    number: int
    phase: Phase
    name: str
    sql: str = field(repr=False)

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def transactional(self) -> bool:
        return self.sql.split("\n", 1)[0].strip() != _NO_TRANSACTION


@dataclass(frozen=True)
class MigrationReport:
    """What a run did. ``waiting`` are files of the other phase whose time has not come."""

    package: str
    applied: Sequence[Migration]
    waiting: Sequence[Migration]


@dataclass(frozen=True)
class MigrationLimits:
    """How long migrations may take and wait, in seconds."""

    lock_timeout: float = 2.0
    """How long one statement may queue for a lock; everybody else's queries queue behind it meanwhile."""
    statement_timeout: float = 600.0
    attempts: int = 20
    """How often a file is tried that does not get its locks."""
    first_delay: float = 0.2
    max_delay: float = 10.0
    migrator_timeout: float = 300.0
    """How long to wait for another migrator of the same database."""


_DEFAULT_LIMITS: Final = MigrationLimits()


def load(package: str) -> list[Migration]:
    """The migrations of an importable package, in order.

    Raises `MigrationError` for a badly named file, a number that occurs twice, and a gap.
    """
    try:
        folder = importlib.resources.files(package).joinpath("migrations")
    except ModuleNotFoundError:
        raise MigrationError(f"the package {package} cannot be imported") from None
    if not folder.is_dir():
        raise MigrationError(f"the package {package} has no folder migrations")
    migrations = sorted((_read(file) for file in folder.iterdir() if file.name.endswith(".sql")), key=_by_number)
    for expected, migration in enumerate(migrations, start=1):
        if migration.number < expected:
            raise MigrationError(
                f"two migrations of {package} have the number {migration.number:04}; one is {migration.name}",
                fix="give the one that was never deployed the next free number",
            )
        if migration.number > expected:
            raise MigrationError(
                f"{package} has no migration {expected:04}, but {migration.name}",
                fix="number migrations without gaps: a gap is a file that was forgotten",
            )
    return migrations


async def pending(dsn: str, package: str, phase: Selection = "all") -> list[Migration]:
    """What `migrate` would apply, in order. Changes nothing in the database."""
    migrations = load(package)
    async with _connected(dsn, package) as conn:
        plan, _ = await _plan(conn, package, migrations, phase)
        return plan


async def migrate(
    dsn: str, package: str, phase: Selection = "all", *, limits: MigrationLimits = _DEFAULT_LIMITS
) -> MigrationReport:
    """Apply the pending migrations of one phase, or of both in their order.

    - ``pre`` before new code starts, ``post`` once no old code runs, ``all`` where no code runs at all.
    - A database that has never been migrated completely has no old code: there ``pre`` also applies the ``post`` files
      that stand before a ``pre`` file, and a run that was killed is finished by the next.
    - A database ahead of the package (code that was rolled back) is left as it is.

    Safe to run by several processes at once. Raises `MigrationError` for a file that was changed after it was applied,
    a file of one phase that would overtake one of the other, locks that never came free, and SQL that fails (the
    database is then as the last complete file left it); `DependencyUnavailable` when the server cannot be reached.
    """
    migrations = load(package)
    async with _connected(dsn, package) as conn, _only_migrator(conn, limits):
        await conn.execute(_TABLES)
        plan, waiting = await _plan(conn, package, migrations, phase)
        await conn.execute(_LIMITS, _milliseconds(limits.lock_timeout), _milliseconds(limits.statement_timeout))
        for migration in plan:
            started = time.monotonic()
            await _apply(conn, package, migration, limits)
            _log.info("applied %s of %s in %.2f s", migration.name, package, time.monotonic() - started)
        if not any(migration.phase == "pre" for migration in waiting):
            await conn.execute(_INSTALLED, package)
    return MigrationReport(package, plan, waiting)


def _read(file: Traversable) -> Migration:
    match = _FILE.fullmatch(file.name)
    if match is None:
        raise MigrationError(
            f"{file.name} is no name for a migration", fix="call it NNNN_pre_<what>.sql or NNNN_post_<what>.sql"
        )
    return Migration(
        number=int(match["number"]),
        phase="pre" if match["phase"] == "pre" else "post",
        name=file.name,
        # A checkout with Windows line ends is the same migration.
        sql=file.read_text(encoding="utf-8").replace("\r\n", "\n"),
    )


def _by_number(migration: Migration) -> tuple[int, str]:
    return migration.number, migration.name


async def _plan(
    conn: asyncpg.Connection[asyncpg.Record], package: str, migrations: list[Migration], phase: Selection
) -> tuple[list[Migration], list[Migration]]:
    applied: dict[int, asyncpg.Record] = {}
    installed = False
    if await conn.fetchval(_TABLES_EXIST):
        applied = {row["number"]: row for row in await conn.fetch(_APPLIED, package)}
        installed = await conn.fetchval(_IS_INSTALLED, package)
    for migration in migrations:
        row = applied.get(migration.number)
        if row is not None and row["checksum"] != migration.checksum:
            raise MigrationError(
                f"{migration.name} of {package} is not what was applied to this database as {row['name']}",
                fix="restore the file and put the change into a new migration",
            )
    ahead = [row["name"] for number, row in applied.items() if number > len(migrations)]
    if ahead:
        _log.warning("the database is ahead of %s: it has %s", package, ", ".join(ahead))

    todo = [migration for migration in migrations if migration.number not in applied]
    if phase == "all":
        return todo, []
    if phase == "pre" and not installed:
        last_pre = max((migration.number for migration in todo if migration.phase == "pre"), default=0)
        return (
            [migration for migration in todo if migration.number <= last_pre],
            [migration for migration in todo if migration.number > last_pre],
        )
    plan: list[Migration] = []
    waiting: list[Migration] = []
    for migration in todo:
        if migration.phase != phase:
            waiting.append(migration)
        elif waiting:
            raise MigrationError(
                f"{migration.name} of {package} cannot run before {waiting[0].name}",
                fix=f"finish the release of {waiting[0].name} first, or stop all code and migrate both phases (all)",
            )
        else:
            plan.append(migration)
    return plan, waiting


async def _apply(
    conn: asyncpg.Connection[asyncpg.Record], package: str, migration: Migration, limits: MigrationLimits
) -> None:
    delay = limits.first_delay
    for attempt in range(1, limits.attempts + 1):
        started = time.monotonic()
        try:
            if migration.transactional:
                async with conn.transaction():
                    await conn.execute(migration.sql)
                    if not conn.is_in_transaction():
                        raise MigrationError(
                            f"{migration.name} of {package} ended its transaction itself: it is not recorded",
                            fix="remove commit and rollback from the file, and check what it left behind",
                        )
                    await _record(conn, package, migration, started)
            else:
                await _drop_broken_indexes(conn, migration)
                await conn.execute(migration.sql)
                await _record(conn, package, migration, started)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if attempt == limits.attempts:
                raise MigrationError(
                    f"{migration.name} of {package} did not get its locks in {attempt} attempts of "
                    f"{limits.lock_timeout:g} s: {error}",
                    fix="look in pg_stat_activity for the long transaction that holds them, and run again",
                ) from error
            pause = delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            _log.warning("%s did not get its locks (%s); again in %.1f s", migration.name, error, pause)
            await asyncio.sleep(pause)
            delay = min(delay * 2, limits.max_delay)
        except asyncpg.ActiveSQLTransactionError as error:
            raise MigrationError(
                f"{migration.name} of {package} failed: {error}",
                fix=f"start the file with '{_NO_TRANSACTION}' and keep it to a single statement",
            ) from error
        except GONE:
            raise
        except asyncpg.PostgresError as error:
            raise MigrationError(f"{migration.name} of {package} failed: {_describe(error, migration)}") from error
        else:
            return


async def _record(conn: asyncpg.Connection[asyncpg.Record], package: str, migration: Migration, started: float) -> None:
    duration = (time.monotonic() - started) * 1000
    await conn.execute(
        _RECORD, package, migration.number, migration.phase, migration.name, migration.checksum, duration
    )


async def _drop_broken_indexes(conn: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    # A concurrent build that was killed leaves an invalid index, which "if not exists" would take for the real one.
    for index in await conn.fetch(_INVALID_INDEXES):
        if re.search(rf"\b{re.escape(index['name'])}\b", migration.sql):
            _log.warning("%s: dropping the index %s, left by a broken build", migration.name, index["qualified"])
            await conn.execute(f"drop index concurrently if exists {index['qualified']}")


def _describe(error: asyncpg.PostgresError, migration: Migration) -> str:
    fields = error.as_dict()
    if "position" not in fields:
        return str(error)
    line = migration.sql.count("\n", 0, int(fields["position"]) - 1) + 1
    return f"line {line}: {error}"


@asynccontextmanager
async def _connected(dsn: str, package: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    try:
        conn = await asyncpg.connect(dsn, timeout=10, server_settings={"application_name": f"migrate {package}"[:63]})
    except (*CANNOT_CONNECT, TimeoutError) as error:
        raise DependencyUnavailable(
            "postgres",
            f"cannot connect to migrate {package}: {str(error) or 'no answer in time'}",
            fix="check that the server of the DSN is up and lets this role in",
        ) from error
    try:
        yield conn
    except (*GONE, asyncpg.InterfaceError, OSError) as error:
        if not conn.is_closed():
            raise
        raise DependencyUnavailable(
            "postgres",
            f"the connection that migrates {package} broke: {error}",
            fix="run the migrations again: they go on after the last complete file",
        ) from error
    finally:
        await conn.close(timeout=10)


@asynccontextmanager
async def _only_migrator(conn: asyncpg.Connection[asyncpg.Record], limits: MigrationLimits) -> AsyncIterator[None]:
    # Asking again and again, because a session that waits inside pg_advisory_lock holds a snapshot, and a concurrent
    # index build of the migrator that it waits for would wait for that snapshot.
    deadline = time.monotonic() + limits.migrator_timeout
    while not await conn.fetchval(_TRY_LOCK, _LOCK):
        if time.monotonic() >= deadline:
            raise MigrationError(
                f"another migrator of this database is still at work after {limits.migrator_timeout:g} s",
                fix="wait for it, or end its session: its application_name starts with 'migrate'",
            )
        await asyncio.sleep(0.1)
    try:
        yield
    finally:
        if not conn.is_closed():
            await conn.fetchval(_UNLOCK, _LOCK)


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
