"""Processes that a benchmark starts, watches and ends: always its own, by process id."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import psutil

_TAIL = 60
"""Lines of a process's output that are kept, to be shown when it fails."""


class ProcessFailed(RuntimeError):
    """A process of the benchmark ended too early, failed, or was not ready in time. Its last output is in the text."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a process. It is ready once a line of its output contains ``ready``."""

    name: str
    args: Sequence[str]
    ready: str = "ready"
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds used since the process started (user and system), and its resident memory now, in bytes."""

    cpu_s: float
    rss: int


def module(name: str, *args: str, ready: str = "ready") -> Command:
    """A Python module of this repository, run by the interpreter that runs the benchmark."""
    return Command(name=name, args=(sys.executable, "-m", name, *args), ready=ready)


class Child:
    """A running process of the benchmark. Made by `running`."""

    def __init__(self, command: Command, process: asyncio.subprocess.Process) -> None:
        self._command = command
        self._process = process
        self._stats = psutil.Process(process.pid)
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._ready = asyncio.Event()
        self.ready_at = math.inf
        """When the ready line came, on the monotonic clock."""
        self.ready_line = ""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self._tail.append(line)
            if self._command.ready in line and not self._ready.is_set():
                self.ready_at = time.monotonic()
                self.ready_line = line
                self._ready.set()

    async def ready(self, timeout_s: float) -> None:
        """Wait for the ready line. Raises `ProcessFailed`."""
        waits = {asyncio.ensure_future(self._ready.wait()), asyncio.ensure_future(self._process.wait())}
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._ready.is_set():
            raise await self._failure(f"was not ready within {timeout_s:g} s")

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def last_line(self) -> str:
        """The last line that it printed so far."""
        return self._tail[-1] if self._tail else ""

    async def finish(self, timeout_s: float) -> str:
        """Wait until the process has ended well, and return the last line that it printed. Raises `ProcessFailed`."""
        try:
            code = await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            raise await self._failure(f"did not end within {timeout_s:g} s") from None
        if code != 0:
            raise await self._failure("failed")
        await self._reader
        return self.last_line

    async def check(self) -> None:
        """Raise `ProcessFailed` when the process is no longer running."""
        if self._process.returncode is not None:
            raise await self._failure("ended early")

    def usage(self) -> Usage:
        """What the process has used so far."""
        with self._stats.oneshot():
            times = self._stats.cpu_times()
            return Usage(cpu_s=times.user + times.system, rss=self._stats.memory_info().rss)

    async def stop(self, grace_s: float = 10.0) -> None:
        """Ask the process to end, and insist after ``grace_s`` seconds."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self._reader

    async def _failure(self, what: str) -> ProcessFailed:
        code = self._process.returncode
        state = "still running" if code is None else f"exit code {code}"
        tail = "\n".join(f"  | {line}" for line in self._tail)
        return ProcessFailed(f"{self._command.name} {what} ({state}); its last output:\n{tail}")


@asynccontextmanager
async def running(command: Command) -> AsyncIterator[Child]:
    """Run a process for as long as the block lasts; it is ended when the block is left, however that happens."""
    process = await asyncio.create_subprocess_exec(
        *command.args,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **command.env},
        limit=1 << 20,
    )
    child = Child(command, process)
    try:
        yield child
    finally:
        await child.stop()
