"""How long a program runs: until it is told to end, or the test that started it is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def until_told() -> AsyncIterator[asyncio.Event]:
    """An event that is set by SIGTERM, and when this process is orphaned: it could go on for ever otherwise."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # Readable when the parent is gone.
    parent = os.pidfd_open(os.getppid())
    asyncio.get_running_loop().add_reader(parent, stop.set)
    try:
        yield stop
    finally:
        asyncio.get_running_loop().remove_reader(parent)
        os.close(parent)
