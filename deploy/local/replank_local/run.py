"""Run a command with servers of its own: what `make test` and `make bench-…` do."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from replank_local.native import remove_runs
from replank_local.places import CHECKOUT, TEST_PREFIX
from replank_local.processes import identity_of
from replank_local.progress import Progress
from replank_local.stack import Stack

KEPT_RUNS: Final = 3
"""How many failed runs keep their logs."""


async def with_servers(argv: list[str], root: Path, progress: Progress, *, servers: Sequence[str]) -> int:
    """Start servers on free ports below ``root``, run the command with REPLANK_TEST_* set, and take all down again.

    Answers the command's exit status, or 128 + the signal that ended this. The logs stay when it is not 0.
    """
    remove_runs(root, Progress(), keep=KEPT_RUNS)
    run = root / f"{TEST_PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    code = await _run(argv, run, progress, servers)
    if code == 0:
        shutil.rmtree(run)
    else:
        progress.say("servers", f"their logs are kept in {run / 'logs'}")
    return code


async def _run(argv: list[str], run: Path, progress: Progress, servers: Sequence[str]) -> int:
    command: asyncio.subprocess.Process | None = None
    caught: list[signal.Signals] = []
    this = asyncio.current_task()

    def on_signal(signum: signal.Signals) -> None:
        caught.append(signum)
        if command is None:
            if this is not None:
                this.cancel()
        elif signum == signal.SIGTERM:
            # A terminal's Ctrl-C reaches the command by itself; a SIGTERM was meant for this process alone.
            command.send_signal(signal.SIGINT)

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, on_signal, signum)
    try:
        async with Stack(run, servers=servers, progress=progress) as stack:
            # Without what `make env` says: a test that takes it up would change the data of the stack that is up.
            clean = {name: value for name, value in os.environ.items() if not name.startswith("REPLANK_")}
            command = await asyncio.create_subprocess_exec(
                *argv, cwd=CHECKOUT, env={**clean, **stack.endpoints.for_tests()}
            )
            identity = identity_of(command.pid)
            if identity is not None:
                stack.adopt("command", identity)  # so that it, too, ends if this program is killed
            code = await command.wait()
            stack.forget("command")
    except asyncio.CancelledError:
        if not caught:
            raise
        return 128 + caught[0]
    return 128 + caught[0] if caught else code
