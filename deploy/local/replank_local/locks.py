"""Lock files between commands. The kernel lets go of a lock when its last holder dies, however it dies."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

_POLL: Final = 0.1


@asynccontextmanager
async def locked(path: Path, *, on_wait: Callable[[], None] | None = None) -> AsyncIterator[int]:
    """Hold the lock file, waiting for whoever holds it; ``on_wait`` is called once if there is somebody.

    Yields the file descriptor: a child process that inherits it holds the lock too, for as long as it lives.
    """
    with path.open("a") as file:
        told = False
        while not _try(file.fileno()):
            if on_wait is not None and not told:
                on_wait()
                told = True
            await asyncio.sleep(_POLL)
        yield file.fileno()


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
