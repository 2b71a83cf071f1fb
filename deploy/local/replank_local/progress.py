"""One line for each thing that happens, with the seconds since the start: right for a terminal, a pipe and a CI log."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TextIO

HEARTBEAT: Final = 10.0


class Progress:
    """Writes progress lines to ``out``; with ``out=None`` it is silent."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._began = time.monotonic()

    @classmethod
    def to_stderr(cls) -> Progress:
        return cls(sys.stderr)

    def say(self, subject: str, text: str) -> None:
        if self._out is not None:
            print(f"{time.monotonic() - self._began:6.1f}s  {subject:<22} {text}", file=self._out, flush=True)

    @asynccontextmanager
    async def during(self, subject: str, text: str) -> AsyncIterator[None]:
        """Say that something goes on, and every ten seconds that it still does: silence looks like a hang."""
        self.say(subject, text)
        began = time.monotonic()

        async def remind() -> None:
            while True:
                await asyncio.sleep(HEARTBEAT)
                self.say(subject, f"{text} (for {time.monotonic() - began:.0f} s)")

        reminder = asyncio.create_task(remind())
        try:
            yield
        finally:
            reminder.cancel()
