"""The commands behind `make up`, `down`, `status`, `env`, `test`: exit statuses, clear texts, nothing left behind."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import asyncpg
import pytest

from replank.testing import eventually
from replank_local import Stack, processes, state
from replank_local.places import TEST_PREFIX
from replank_local.processes import Identity

pytestmark = pytest.mark.timeout(300)  # whole stacks start here, on machines that do other things too


async def local(*arguments: str, root: Path) -> tuple[int, str, str]:
    """Run the command; its exit status, standard output and standard error."""
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "replank_local", *arguments[:1], "--root", str(root), *arguments[1:]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await command.communicate()
    assert command.returncode is not None
    return command.returncode, out.decode(), err.decode()


def runs(root: Path) -> list[Path]:
    return sorted(root.glob(f"{TEST_PREFIX}*"))


def listed(root: Path) -> list[Identity]:
    return [member for identity in state.load(root).processes.values() for member in processes.family(identity)]


async def test_without_a_stack_down_is_fine_and_the_others_say_what_to_do(tmp_path: Path) -> None:
    assert (await local("down", root=tmp_path))[0] == 0
    for command in ("env", "status"):
        code, out, err = await local(command, root=tmp_path)
        assert code == 1
        assert out == ""
        assert "not running" in err
        assert "make up" in err
        assert "Traceback" not in err


async def test_a_broken_state_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    code, _, err = await local("status", root=tmp_path)
    assert code == 1
    assert "state.json" in err
    assert "Traceback" not in err


@pytest.mark.servers
async def test_clean_refuses_while_something_runs_and_down_then_clean_leaves_nothing(tmp_path: Path) -> None:
    stack = Stack(tmp_path, servers=["s3"], lifetime="detached")
    await stack.start("s3")
    members = listed(tmp_path)
    code, _, err = await local("clean", root=tmp_path)
    assert code == 1
    assert "make down" in err
    assert (await local("down", root=tmp_path))[0] == 0
    assert not any(processes.alive(member) for member in members)
    assert (tmp_path / "data" / "s3").exists(), "down keeps data"
    assert (await local("clean", root=tmp_path))[0] == 0
    assert not (tmp_path / "data").exists()


@pytest.mark.servers
async def test_status_shows_a_dead_server_with_the_end_of_its_log(tmp_path: Path) -> None:
    stack = Stack(tmp_path, servers=["s3"], lifetime="detached")
    await stack.start("s3")
    stack.log("s3").write_text("something went wrong\n")
    await stack.kill("s3")
    code, out, _ = await local("status", root=tmp_path)
    assert code == 1
    assert "s3 is dead" in out
    assert "something went wrong" in out
    await stack.stop_all()


async def refused(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn)
    except asyncpg.InsufficientPrivilegeError:
        return True
    await connection.close()
    return False


@pytest.mark.servers
async def test_up_twice_is_up_once_and_each_service_reaches_its_own_database_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLANK_STACK", "native")
    assert (await local("up", "--only-servers", root=tmp_path))[0] == 0
    first = state.load(tmp_path)
    assert (await local("up", "--only-servers", root=tmp_path))[0] == 0
    assert state.load(tmp_path) == first
    members = listed(tmp_path)

    code, out, _ = await local("env", root=tmp_path)
    assert code == 0
    dsns = dict(re.findall(r"export REPLANK_(SCHEMA|AUTH_CACHE|BENCHMARK|ARCHIVER)_DSN=(\S+)", out))
    for service, dsn in dsns.items():
        others = [other.rpartition("/")[2] for name, other in dsns.items() if name != service]
        assert not await refused(dsn)
        assert [await refused(f"{dsn.rpartition('/')[0]}/{other}") for other in (*others, "postgres")] == [True] * 4

    assert (await local("down", root=tmp_path))[0] == 0
    assert not any(processes.alive(member) for member in members)
    assert state.load(tmp_path).ports == first.ports
    assert (await local("clean", root=tmp_path))[0] == 0


PRINT_VARIABLES = "import os; print(*sorted(name for name in os.environ if name.startswith('REPLANK_TEST_')))"


@pytest.mark.servers
async def test_a_command_gets_servers_of_its_own_and_they_are_gone_after_it(tmp_path: Path) -> None:
    code, out, _ = await local("test", "--", sys.executable, "-c", PRINT_VARIABLES, root=tmp_path)
    assert code == 0
    assert out.split() == [
        *("REPLANK_TEST_JAEGER", "REPLANK_TEST_KAFKA", "REPLANK_TEST_OTLP", "REPLANK_TEST_POSTGRES"),
        *("REPLANK_TEST_S3_ACCESS_KEY", "REPLANK_TEST_S3_SECRET_KEY", "REPLANK_TEST_S3_URL", "REPLANK_TEST_VALKEY"),
    ]
    assert runs(tmp_path) == []


@pytest.mark.servers
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
async def test_an_ended_test_run_leaves_no_process_whatever_ended_it(tmp_path: Path, signum: signal.Signals) -> None:
    endless = "import signal; print('running', flush=True); signal.pause()"
    runner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "replank_local", "test", "--root", str(tmp_path), "--server", "s3"),
        *("--server", "valkey-authorization", "--", sys.executable, "-c", endless),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert runner.stdout is not None
    assert await runner.stdout.readline() == b"running\n"
    (run,) = runs(tmp_path)
    members = listed(run)
    assert len(members) == 3
    runner.send_signal(signum)
    await runner.wait()
    await eventually(lambda: not any(processes.alive(member) for member in members), "all of it ends", within=20)
    if signum == signal.SIGTERM:
        assert runner.returncode == 128 + signal.SIGTERM


@pytest.mark.servers
async def test_a_failing_command_passes_its_status_on_and_the_servers_logs_are_kept(tmp_path: Path) -> None:
    code, _, err = await local(
        *("test", "--server", "s3", "--", sys.executable, "-c", "raise SystemExit(7)"), root=tmp_path
    )
    assert code == 7
    (run,) = runs(tmp_path)
    assert str(run / "logs") in err
    assert (run / "logs" / "s3.log").exists()
    assert not (run / "data").exists()
