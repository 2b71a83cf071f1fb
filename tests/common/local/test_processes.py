"""A process is found again by pid and start time, and ended with everything that descends from it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil

from replank.testing import eventually
from replank_local import ports, processes
from replank_local.processes import Identity

PARENT = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
print(child.pid, flush=True)
signal.pause()
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
signal.pause()
"""

MANY_THREADS = """
import signal, socket, threading, time
listening = socket.create_server(("127.0.0.1", 0))
memory = bytearray(100_000_000)
for _ in range(60):
    threading.Thread(target=lambda: [time.sleep(0.001) for _ in range(600_000)], daemon=True).start()
print(listening.getsockname()[1], flush=True)
signal.pause()
"""


def start(tmp_path: Path, program: str) -> Identity:
    return processes.spawn([sys.executable, "-c", program], log=tmp_path / "log", cwd=tmp_path)


async def printed(tmp_path: Path) -> str:
    """The first line that the process wrote."""
    return await eventually(lambda: (tmp_path / "log").read_text().partition("\n")[0], "the process says something")


def test_a_reused_pid_is_never_taken_for_ours() -> None:
    mine = processes.identity_of(os.getpid())
    assert mine is not None
    assert processes.alive(mine)
    assert not processes.alive(mine.model_copy(update={"started": "1@00000000"}))


async def test_a_signal_never_reaches_a_stranger_of_the_same_pid(tmp_path: Path) -> None:
    running = start(tmp_path, STUBBORN)
    await printed(tmp_path)
    stranger = running.model_copy(update={"started": "1@00000000"})
    processes.send(stranger, signal.SIGKILL)
    assert await processes.end(stranger, signal.SIGKILL, grace=1)
    assert processes.alive(running)
    await processes.end(running, signal.SIGKILL, grace=5)
    assert not processes.alive(running)


async def test_a_kill_takes_the_children_too_even_those_in_another_session(tmp_path: Path) -> None:
    parent = start(tmp_path, PARENT)
    child = int(await printed(tmp_path))
    assert psutil.pid_exists(child)
    await processes.end(parent, signal.SIGKILL, grace=5)
    assert not processes.alive(parent)
    assert processes.identity_of(child) is None


async def test_stopping_a_parent_leaves_no_child(tmp_path: Path) -> None:
    parent = start(tmp_path, PARENT)
    child = int(await printed(tmp_path))
    await processes.end(parent, signal.SIGTERM, grace=0.5)
    assert processes.identity_of(child) is None


async def test_a_process_that_ignores_its_stop_signal_is_killed_after_the_grace(tmp_path: Path) -> None:
    stubborn = start(tmp_path, STUBBORN)
    await printed(tmp_path)
    assert not await processes.end(stubborn, signal.SIGTERM, grace=0.3)
    assert not processes.alive(stubborn)


async def test_a_killed_process_is_gone_only_when_its_last_thread_has_let_go_of_its_port(tmp_path: Path) -> None:
    for _ in range(5):
        threads = start(tmp_path, MANY_THREADS)
        port = int(await printed(tmp_path))
        await processes.end(threads, signal.SIGKILL, grace=5)
        assert ports.is_free(port)
        (tmp_path / "log").unlink()


async def test_a_process_that_ended_by_itself_is_not_alive(tmp_path: Path) -> None:
    short = start(tmp_path, "pass")
    await eventually(lambda: not processes.alive(short), "it ends")
    assert await processes.end(short, signal.SIGTERM, grace=1)


def test_the_tail_of_a_log_is_its_last_lines_and_nothing_when_there_is_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.tail(log, 3) == []
    log.write_text("".join(f"line {number}\n" for number in range(5000)))
    assert processes.tail(log, 2) == ["line 4998", "line 4999"]
