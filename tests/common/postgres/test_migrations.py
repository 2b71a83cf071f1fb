"""Migrations run once, in order, in their phase, and finish what was interrupted."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from replank.errors import DependencyUnavailable
from replank.postgres import MigrationError, migrate, pending
from replank.postgres.migrations import MigrationLimits
from replank.testing.faults import unused_address
from replank.testing.wait import eventually

HASTY = MigrationLimits(lock_timeout=0.05, attempts=3, first_delay=0.01, max_delay=0.02)

Package = Callable[[dict[str, str]], str]
_numbers = itertools.count()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Makes an importable package with these migrations; called again, changes them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"migrated_{next(_numbers)}"
    folder = tmp_path / name / "migrations"

    def make(files: dict[str, str]) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "__init__.py").touch()
        for file in folder.iterdir():
            file.unlink()
        for file_name, sql in files.items():
            (folder / file_name).write_text(sql, newline="")
        sys.modules.pop(name, None)
        return name

    return make


async def tables(dsn: str) -> set[str]:
    conn = await asyncpg.connect(dsn)
    try:
        return {row[0] for row in await conn.fetch("select tablename from pg_tables where schemaname = 'public'")}
    finally:
        await conn.close()


ONE = {"0001_pre_a.sql": "create table a (id int); create table b (id int);"}


async def test_applies_each_file_once(postgres_dsn: str, package: Package) -> None:
    name = package(ONE)
    assert [migration.name for migration in await pending(postgres_dsn, name)] == ["0001_pre_a.sql"]
    assert await tables(postgres_dsn) == set(), "asking what is pending changes nothing"
    assert len((await migrate(postgres_dsn, name)).applied) == 1
    assert await tables(postgres_dsn) == {"a", "b"}
    assert (await migrate(postgres_dsn, name)).applied == []


async def test_many_migrators_at_once_apply_each_file_once(postgres_dsn: str, package: Package) -> None:
    name = package({**ONE, "0002_pre_c.sql": "create table c ()"})
    reports = await asyncio.gather(*(migrate(postgres_dsn, name) for _ in range(5)))
    assert sorted(len(report.applied) for report in reports) == [0, 0, 0, 0, 2]


async def test_a_file_that_fails_leaves_nothing_and_says_where(postgres_dsn: str, package: Package) -> None:
    name = package({**ONE, "0002_pre_c.sql": "create table c ();\n\nselect * from no_such_table;"})
    with pytest.raises(MigrationError, match=r"0002_pre_c\.sql.*line 3.*no_such_table"):
        await migrate(postgres_dsn, name)
    assert await tables(postgres_dsn) == {"a", "b"}
    package({**ONE, "0002_pre_c.sql": "create table c ();"})
    assert [migration.number for migration in (await migrate(postgres_dsn, name)).applied] == [2]


async def test_a_file_changed_after_it_was_applied_is_refused(postgres_dsn: str, package: Package) -> None:
    name = package(ONE)
    await migrate(postgres_dsn, name)
    package({"0001_pre_a.sql": "create table a (id bigint);"})
    with pytest.raises(MigrationError, match=r"0001_pre_a\.sql.* is not what was applied"):
        await migrate(postgres_dsn, name)
    with pytest.raises(MigrationError):
        await pending(postgres_dsn, name)


async def test_line_ends_are_no_change(postgres_dsn: str, package: Package) -> None:
    name = package({"0001_pre_a.sql": "create table a (\n id int\n);\n"})
    await migrate(postgres_dsn, name)
    package({"0001_pre_a.sql": "create table a (\r\n id int\r\n);\r\n"})
    assert (await migrate(postgres_dsn, name)).applied == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"0002_pre_a.sql": ""}, "no migration 0001"),
        ({"0001_pre_a.sql": "", "0003_pre_b.sql": ""}, "no migration 0002"),
        ({"0001_pre_a.sql": "", "0001_post_b.sql": ""}, "have the number 0001"),
        ({"1_pre_a.sql": ""}, "no name for a migration"),
        ({"0001_during_a.sql": ""}, "no name for a migration"),
    ],
)
async def test_wrong_numbers_and_names_are_refused(
    postgres_dsn: str, package: Package, files: dict[str, str], complaint: str
) -> None:
    with pytest.raises(MigrationError, match=complaint):
        await migrate(postgres_dsn, package(files))


async def test_a_package_without_migrations_is_an_error() -> None:
    with pytest.raises(MigrationError, match="no folder migrations"):
        await pending("postgresql://unused", "replank.postgres")
    with pytest.raises(MigrationError, match="cannot be imported"):
        await pending("postgresql://unused", "no_such_package_at_all")


RELEASES = [
    {"0001_pre_a.sql": "create table a ()"},
    {"0001_pre_a.sql": "create table a ()", "0002_pre_b.sql": "create table b ()", "0003_post_a.sql": "drop table a"},
]


async def test_post_waits_for_its_phase(postgres_dsn: str, package: Package) -> None:
    name = package(RELEASES[0])
    await migrate(postgres_dsn, name, "pre")
    package(RELEASES[1])
    report = await migrate(postgres_dsn, name, "pre")
    assert [migration.number for migration in report.applied] == [2]
    assert [migration.number for migration in report.waiting] == [3]
    assert await tables(postgres_dsn) == {"a", "b"}
    assert [migration.number for migration in (await migrate(postgres_dsn, name, "post")).applied] == [3]
    assert await tables(postgres_dsn) == {"b"}


async def test_post_before_its_pre_is_refused(postgres_dsn: str, package: Package) -> None:
    name = package(RELEASES[0])
    await migrate(postgres_dsn, name)
    package(RELEASES[1])
    with pytest.raises(MigrationError, match=r"0003_post_a\.sql .* cannot run before 0002_pre_b\.sql"):
        await migrate(postgres_dsn, name, "post")


SKIPPED = {**RELEASES[1], "0004_pre_c.sql": "create table c ()"}


async def test_pre_never_overtakes_post_while_old_code_may_run(postgres_dsn: str, package: Package) -> None:
    name = package(RELEASES[0])
    await migrate(postgres_dsn, name, "pre")
    package(SKIPPED)
    with pytest.raises(MigrationError, match=r"0004_pre_c\.sql .* cannot run before 0003_post_a\.sql"):
        await migrate(postgres_dsn, name, "pre")
    assert await tables(postgres_dsn) == {"a"}, "a plan that cannot be finished is not begun"
    assert len((await migrate(postgres_dsn, name, "all")).applied) == 3


async def test_a_new_database_has_no_old_code_to_wait_for(postgres_dsn: str, package: Package) -> None:
    report = await migrate(postgres_dsn, package(SKIPPED), "pre")
    assert [migration.number for migration in report.applied] == [1, 2, 3, 4]


async def test_a_first_run_that_was_killed_is_finished_by_the_next(postgres_dsn: str, package: Package) -> None:
    name = package({**SKIPPED, "0004_pre_c.sql": "select broken"})
    with pytest.raises(MigrationError):
        await migrate(postgres_dsn, name, "pre")
    package(SKIPPED)
    assert [migration.number for migration in (await migrate(postgres_dsn, name, "pre")).applied] == [4]


async def test_a_database_ahead_of_the_code_is_left_alone(postgres_dsn: str, package: Package) -> None:
    name = package(RELEASES[1])
    await migrate(postgres_dsn, name)
    package(RELEASES[0])
    assert (await migrate(postgres_dsn, name, "pre")).applied == []
    assert await tables(postgres_dsn) == {"b"}


INDEXED = {
    "0001_pre_a.sql": "create table a (id int)",
    "0002_pre_i.sql": "-- replank: no transaction\ncreate index concurrently if not exists a_id on a (id)",
}


async def test_an_index_can_be_built_concurrently(postgres_dsn: str, package: Package) -> None:
    assert len((await migrate(postgres_dsn, package(INDEXED))).applied) == 2


async def test_a_broken_concurrent_build_is_cleared_away_and_built_again(
    postgres_dsn: str, package: Package, pool: asyncpg.Pool
) -> None:
    name = package({"0001_pre_a.sql": INDEXED["0001_pre_a.sql"]})
    await migrate(postgres_dsn, name)
    await pool.execute("insert into a values (1), (1)")
    with pytest.raises(asyncpg.UniqueViolationError):
        await pool.execute("create unique index concurrently a_id on a (id)")
    is_valid = "select indisvalid from pg_index where indexrelid = 'a_id'::regclass"
    assert await pool.fetchval(is_valid) is False
    package(INDEXED)
    await migrate(postgres_dsn, name)
    assert await pool.fetchval(is_valid) is True


async def test_a_statement_that_needs_no_transaction_says_so(postgres_dsn: str, package: Package) -> None:
    name = package({**INDEXED, "0002_pre_i.sql": "create index concurrently a_id on a (id)"})
    with pytest.raises(MigrationError, match="replank: no transaction"):
        await migrate(postgres_dsn, name)


async def test_a_file_that_commits_by_itself_is_refused(postgres_dsn: str, package: Package) -> None:
    with pytest.raises(MigrationError, match="ended its transaction itself"):
        await migrate(postgres_dsn, package({"0001_pre_a.sql": "create table a (); commit;"}))


async def test_a_lock_that_does_not_come_free_ends_in_an_error_and_queues_nobody(
    postgres_dsn: str, package: Package, pool: asyncpg.Pool
) -> None:
    name = package(ONE)
    await migrate(postgres_dsn, name)
    package({**ONE, "0002_pre_a2.sql": "alter table a add column n int"})
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("lock table a in access share mode")
        with pytest.raises(MigrationError, match=r"0002_pre_a2\.sql .* did not get its locks in 3 attempts"):
            await migrate(postgres_dsn, name, limits=HASTY)
        assert await pool.fetchval("select count(*) from a", timeout=1) == 0


async def test_a_lock_that_comes_free_lets_the_migration_through(
    postgres_dsn: str, package: Package, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    name = package(ONE)
    await migrate(postgres_dsn, name)
    package({**ONE, "0002_pre_a2.sql": "alter table a add column n int"})
    patient = MigrationLimits(lock_timeout=0.05, attempts=1000, first_delay=0.01, max_delay=0.02)
    async with pool.acquire() as conn:
        async with conn.transaction():
            await conn.execute("lock table a in access share mode")
            running = asyncio.create_task(migrate(postgres_dsn, name, limits=patient))
            await eventually(lambda: "did not get its locks" in caplog.text, "one attempt failed")
        assert len((await running).applied) == 1


async def test_another_migrator_that_never_ends_is_named(
    postgres_dsn: str, package: Package, pool: asyncpg.Pool
) -> None:
    name = package({"0001_pre_a.sql": "select pg_sleep(5)"})
    slow = asyncio.create_task(migrate(postgres_dsn, name))
    sleeping = "select count(*) from pg_stat_activity where datname = current_database() and query ~ '^select pg_sleep'"

    async def asleep() -> bool:
        return bool(await pool.fetchval(sleeping))

    await eventually(asleep, "the first migrator is at work")
    with pytest.raises(MigrationError, match="another migrator"):
        await migrate(postgres_dsn, name, limits=MigrationLimits(migrator_timeout=0.2))
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_a_server_that_is_down_is_named(package: Package) -> None:
    async with unused_address() as address:
        with pytest.raises(DependencyUnavailable, match="cannot connect to migrate"):
            await migrate(f"postgresql://shop@{address}/shop", package(ONE))


async def test_the_server_going_away_in_the_middle_is_unavailable_and_the_rest_follows_later(
    postgres_dsn: str, package: Package, pool: asyncpg.Pool
) -> None:
    end_me = "select pg_terminate_backend(pg_backend_pid())"
    name = package({**ONE, "0002_pre_end.sql": end_me})
    with pytest.raises(DependencyUnavailable, match="broke"):
        await migrate(postgres_dsn, name)
    package({**ONE, "0002_pre_end.sql": "create table c ()"})
    assert [migration.number for migration in (await migrate(postgres_dsn, name)).applied] == [2]
