"""Processes by identity: a pid together with the moment it was started, so that a reused pid is never taken for ours.

Processes are started in a session of their own with their output in a log file, and may outlive the program that
started them. They are found again by pid and start time alone, never by name.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil
from pydantic import BaseModel, ConfigDict

_POLL: Final = 0.03
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Identity(BaseModel):
    """A process that cannot be confused with a later one of the same pid."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: str


# Our own children, so that they are reaped: a zombie keeps its pid and looks alive to a naive check.
_children: Final[dict[int, subprocess.Popen[bytes]]] = {}


def identity_of(pid: int) -> Identity | None:
    """Who has this pid now; None when nobody does, or when it is a zombie."""
    try:
        process = psutil.Process(pid)
        # The first thread of a killed process may be a zombie while others still hold its files and ports.
        if process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD} and process.num_threads() <= 1:
            return None
        return Identity(pid=pid, started=_start_time(process))
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None


def _start_time(process: psutil.Process) -> str:
    """The kernel's own start time. On Linux in ticks since boot: that of psutil moves when the wall clock is set."""
    if sys.platform != "linux":
        return f"{process.create_time():.2f}"
    # The start time is field 22. The command name, field 2 in parentheses, may hold spaces and parentheses itself.
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return f"{fields[19]}@{_BOOT_ID.read_text().strip()[:8]}"


def alive(identity: Identity) -> bool:
    """Whether this very process still runs."""
    child = _children.get(identity.pid)
    if child is not None and child.poll() is not None:
        del _children[identity.pid]
    return identity_of(identity.pid) == identity


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    account: str | None = None,
) -> Identity:
    """Start a process in a session of its own, its output appended to ``log``, as ``account`` (a user name) if given.

    ``environment`` is added to this process's own. Raises OSError when the program cannot be run.
    """
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=account,
            group=account,
            extra_groups=[] if account else None,
        )
    _children[child.pid] = child
    identity = identity_of(child.pid)
    # A process that is already gone was still ours: the caller finds it dead, and its log says why.
    return identity or Identity(pid=child.pid, started="gone")


def family(identity: Identity) -> list[Identity]:
    """The process and all that descend from it, as of now. Empty when it is gone."""
    if not alive(identity):
        return []
    try:
        descendants = psutil.Process(identity.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    members = [identity_of(process.pid) for process in descendants]
    return [identity, *(member for member in members if member is not None)]


def send(identity: Identity, signum: signal.Signals) -> None:
    """Signal this very process; a process that is gone is no error."""
    if alive(identity):
        try:
            os.kill(identity.pid, signum)
        except ProcessLookupError:
            return


async def wait_gone(identities: Sequence[Identity], seconds: float) -> bool:
    """Wait until none of them runs; False when some still do after that many seconds."""
    deadline = time.monotonic() + seconds
    while any(alive(identity) for identity in identities):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL)
    return True


async def end(identity: Identity, signum: signal.Signals, *, grace: float) -> bool:
    """End a process and its descendants: signal it, give it ``grace`` seconds, then kill what is left.

    With SIGKILL the descendants are killed together with it. True when it ended by itself within the grace.
    """
    members = family(identity)
    if not members:
        return True
    if signum == signal.SIGKILL:
        for member in members:
            send(member, signum)
        await wait_gone(members, grace)
        return True
    send(identity, signum)
    in_order = await wait_gone(members, grace)
    # Descendants that were born meanwhile are not in the first list.
    members += [member for member in family(identity) if member not in members]
    for member in members:
        send(member, signal.SIGKILL)
    await wait_gone(members, grace)
    return in_order


def tail(log: Path, lines: int) -> list[str]:
    """The last lines of a log file; empty when there is none yet."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400 * lines))
        return file.read().decode(errors="replace").splitlines()[-lines:]
