"""Stacks of real servers: started, killed, restarted on their data, stopped, and gone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import pytest_asyncio

from replank.testing import eventually
from replank.testing.servers import create_topic
from replank_local import Stack, ports, processes
from replank_local.errors import NotRunning, StackError
from replank_local.processes import Identity

pytestmark = pytest.mark.servers

VALKEY = "valkey-authorization"


@pytest_asyncio.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """One of the servers that start in no time: enough to see how processes are handled."""
    async with Stack(tmp_path / "stack", servers=[VALKEY]) as started:
        yield started


@pytest_asyncio.fixture
async def postgres(tmp_path: Path) -> AsyncIterator[Stack]:
    async with Stack(tmp_path / "stack", servers=["postgres"]) as started:
        yield started


def all_processes(stack: Stack) -> list[Identity]:
    return [member for identity in stack.state.processes.values() for member in processes.family(identity)]


async def query(stack: Stack, statement: str) -> object:
    connection = await asyncpg.connect(stack.endpoints.postgres())
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_postgres_that_was_killed_starts_again_on_its_data_and_port(postgres: Stack) -> None:
    await query(postgres, "create table kept as select 41 + 1 as answer")
    port, first = postgres.ports["postgres"], postgres.identity("postgres")
    assert first is not None
    family = processes.family(first)
    assert len(family) > 3, "the postmaster and its children"

    await postgres.kill("postgres")
    assert not any(processes.alive(member) for member in family)
    assert not postgres.running("postgres")
    await postgres.start("postgres")

    assert postgres.identity("postgres") != first
    assert postgres.ports["postgres"] == port
    assert await query(postgres, "select answer from kept") == 42


async def test_a_lock_file_with_the_pid_of_a_stranger_does_not_keep_postgres_down(postgres: Stack) -> None:
    await postgres.kill("postgres")
    lock = postgres.root / "data" / "postgres" / "data" / "postmaster.pid"
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    await postgres.start("postgres")
    assert await query(postgres, "select 1") == 1


async def test_postgres_asks_for_a_password_even_on_loopback(postgres: Stack) -> None:
    dsn = f"postgresql://postgres:wrong@{ports.HOST}:{postgres.ports['postgres']}/postgres"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(dsn)


async def test_postgres_is_durable_and_decodes_logically(postgres: Stack) -> None:
    assert await query(postgres, "show fsync") == "on"
    assert await query(postgres, "show wal_level") == "logical"
    assert await query(postgres, "show data_checksums") == "on"
    assert await query(postgres, "select count(*) from pg_extension where extname = 'plpgsql'") == 1
    assert await query(postgres, "show shared_preload_libraries") == "pg_stat_statements"


async def test_starting_what_runs_changes_nothing(stack: Stack) -> None:
    before = dict(stack.state.processes)
    await stack.start(VALKEY)
    assert stack.state.processes == before


async def test_a_restart_is_another_process_on_the_same_port(stack: Stack) -> None:
    before, port = stack.identity(VALKEY), stack.ports[VALKEY]
    await stack.restart(VALKEY)
    assert stack.identity(VALKEY) != before
    assert stack.ports[VALKEY] == port
    assert await stack.is_ready(VALKEY)


async def test_a_stack_that_is_closed_leaves_no_process(tmp_path: Path) -> None:
    async with Stack(tmp_path / "stack", servers=["postgres", VALKEY]) as stack:
        members = all_processes(stack)
        assert len(members) > 4
    assert not any(processes.alive(member) for member in members)
    assert stack.state.processes == {}


async def test_stopping_and_killing_what_does_not_run_is_clear(stack: Stack) -> None:
    await stack.stop(VALKEY)
    await stack.stop(VALKEY)
    with pytest.raises(NotRunning, match="valkey-authorization is not running"):
        await stack.kill(VALKEY)


async def test_a_port_that_somebody_took_meanwhile_is_replaced(stack: Stack) -> None:
    await stack.stop(VALKEY)
    taken = stack.ports[VALKEY]
    with socket.create_server((ports.HOST, taken)):
        await stack.start(VALKEY)
        assert stack.ports[VALKEY] != taken
        assert await stack.is_ready(VALKEY)


async def test_a_server_that_cannot_start_is_named_with_the_end_of_its_log(postgres: Stack) -> None:
    await postgres.stop("postgres")
    configuration = postgres.root / "data" / "postgres" / "data" / "postgresql.conf"
    configuration.write_text(configuration.read_text() + "work_mem = nonsense\n")
    with pytest.raises(StackError, match=r"postgres ended while it was starting(.|\n)*work_mem"):
        await postgres.start("postgres")


async def test_a_process_can_be_halted_and_go_on(stack: Stack) -> None:
    stack.signal(VALKEY, signal.SIGSTOP)
    identity = stack.identity(VALKEY)
    assert identity is not None
    status = psutil.Process(identity.pid).status
    await eventually(lambda: status() == psutil.STATUS_STOPPED, "it halts")
    stack.signal(VALKEY, signal.SIGCONT)
    assert await stack.is_ready(VALKEY)


@pytest.mark.skipif(os.geteuid() != 0, reason="only for root does Postgres run as another account")
async def test_where_the_account_of_postgres_cannot_reach_its_data_is_elsewhere_and_goes_with_the_stack(
    tmp_path: Path,
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    async with Stack(hidden / "stack", servers=["postgres"]) as stack:
        elsewhere = (stack.root / "data" / "postgres").resolve()
        assert not elsewhere.is_relative_to(hidden)
        assert (elsewhere / "data" / "PG_VERSION").exists()
    assert not elsewhere.exists()


def test_an_unknown_server_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"no such server: oracle.*postgres"):
        Stack(tmp_path, servers=["oracle"])


async def test_kafka_that_was_killed_keeps_its_topics(tmp_path: Path) -> None:
    async with Stack(tmp_path / "stack", servers=["kafka"]) as stack:
        await create_topic(stack.endpoints.kafka, "kept", partitions=1)
        await stack.kill("kafka")
        await stack.start("kafka")
        with pytest.raises(Exception, match="kept"):
            await create_topic(stack.endpoints.kafka, "kept", partitions=1)


PROGRAM = """
import asyncio, pathlib, sys
from replank_local import Stack

async def main() -> None:
    async with Stack(pathlib.Path(sys.argv[1]), servers=["postgres", "valkey-authorization"]):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_nothing_survives_a_program_that_is_killed_with_its_stack_up(tmp_path: Path) -> None:
    root = tmp_path / "stack"
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(root), stdout=asyncio.subprocess.PIPE
    )
    assert program.stdout is not None
    assert await program.stdout.readline() == b"up\n"
    members = all_processes(Stack(root, servers=()))
    assert len(members) > 4
    program.kill()
    await program.wait()
    await eventually(lambda: not any(processes.alive(member) for member in members), "all of it ends", within=15)


LEAVING_PROGRAM = """
import asyncio, pathlib, sys
from replank_local import Stack

stack = Stack(pathlib.Path(sys.argv[1]), servers=["s3"], lifetime="detached")
asyncio.run(stack.start("s3"))
"""


async def test_a_detached_stack_stays_and_is_found_and_stopped_by_another_program(tmp_path: Path) -> None:
    root = tmp_path / "stack"
    leaving = await asyncio.create_subprocess_exec(sys.executable, "-c", LEAVING_PROGRAM, str(root))
    assert await leaving.wait() == 0
    found = Stack(root, servers=["s3"], lifetime="detached")
    assert await found.is_ready("s3")
    with pytest.raises(StackError, match="make down"):
        found.remove_data()
    await found.stop_all()
    assert not found.any_running()
    found.remove_data()
    assert not (root / "data").exists()
