"""The command as its users run it: a process with an environment, output and an exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

WITHIN: Final = 90.0


@dataclass
class Answer:
    code: int
    out: str
    error: str


@asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command while it runs; killed at the end, if it still does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLANK_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "replank_cli", *arguments),
        env={**kept, "COLUMNS": "200", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def replank(*arguments: str, **environment: str) -> Answer:
    """Run the command to its end."""
    async with running(*arguments, **environment) as process:
        out, error = await asyncio.wait_for(process.communicate(), WITHIN)
    return Answer(process.returncode or 0, out.decode(), error.decode())
