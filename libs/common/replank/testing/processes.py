"""Python modules as processes of their own, to be killed in the middle of what they do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from typing import Self


class Process:
    """``python -m module args…`` with its output (both streams, merged) kept as lines.

    Use it with ``async with``: whatever happens, the process is gone afterwards::

        async with Process("shop.worker", env={"SHOP_DSN": dsn}) as worker:
            await worker.line_with("ready")
            worker.kill()
            assert await worker.exit_code() == -signal.SIGKILL
    """

    def __init__(self, module: str, *args: str, env: Mapping[str, str] | None = None, cwd: str | None = None) -> None:
        self._command = (sys.executable, "-u", "-m", module, *args)
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._lines: list[str] = []
        self._changed = asyncio.Condition()
        self._ended = False
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._env,
            cwd=self._cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=16 * 1024 * 1024,
        )
        self._reader = asyncio.create_task(self._read(self._process))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        await self.exit_code()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running().pid

    @property
    def output(self) -> str:
        """Everything that it wrote so far."""
        return "\n".join(self._lines)

    async def line_with(self, text: str, *, within: float = 20.0) -> str:
        """Wait for the first line that contains ``text``. The `AssertionError` when none comes shows the output."""
        seen = 0
        try:
            async with asyncio.timeout(within), self._changed:
                while True:
                    for line in self._lines[seen:]:
                        if text in line:
                            return line
                    seen = len(self._lines)
                    if self._ended:
                        break
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no line with {text!r} within {within:g} s; output:\n{self.output}") from None
        raise AssertionError(f"the process ended without a line with {text!r}; output:\n{self.output}")

    def kill(self) -> None:
        """``kill -9``: nothing in it gets to run any more. Harmless when it has ended."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end, as a deployment does."""
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does, as a paused virtual machine would; `thaw` lets it go on."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self._signal(signal.SIGCONT)

    async def exit_code(self, *, within: float = 20.0) -> int:
        """Wait for its end: the exit code, or minus the signal that ended it."""
        process = self._running()
        try:
            async with asyncio.timeout(within):
                code = await process.wait()
                if self._reader is not None:
                    await self._reader
        except TimeoutError:
            raise AssertionError(f"it did not end within {within:g} s; output:\n{self.output}") from None
        return code

    def _signal(self, number: signal.Signals) -> None:
        process = self._running()
        if process.returncode is None:
            # Not Process.send_signal: it reaps a process that has just ended, and asyncio then never learns how it did.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the process is not started: use it with `async with`")
        return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            async with self._changed:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                self._changed.notify_all()
        async with self._changed:
            self._ended = True
            self._changed.notify_all()
