"""A relay in a process of its own."""

from __future__ import annotations

import asyncio
import os

from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings
from tests.chaos.programs.lifetime import until_told


async def main() -> None:
    """Publish until told to end."""
    # Small pages, so that there are many moments at which it can die; less patience, so that the tests are short.
    settings = {
        "delivery": os.environ["CHAOS_DELIVERY"],
        "page_rows": 10,
        "lease": 2.0,
        "delivery_timeout": 5.0,
    }
    async with until_told() as stop:
        relay = Relay(os.environ["CHAOS_DSN"], os.environ["CHAOS_KAFKA"], RelaySettings.model_validate(settings))
        await relay.run(stop)


if __name__ == "__main__":
    asyncio.run(main())
