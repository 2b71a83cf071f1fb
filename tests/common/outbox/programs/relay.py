"""A relay as a process of its own: DSN, Kafka, delivery."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings


async def main(dsn: str, kafka: str, delivery: Any, cursor_topic: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = RelaySettings(delivery=delivery, page_rows=50, lease=1.0, backoff=0.3, cursor_topic=cursor_topic)
    await Relay(dsn, kafka, settings).run(stop)


asyncio.run(main(*sys.argv[1:]))
