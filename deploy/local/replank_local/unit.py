"""A unit is one process of a stack: a server or a service. What it needs to be started, known ready, and stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from replank_local.artifacts import Artifact
from replank_local.credentials import Secrets
from replank_local.endpoints import Endpoints
from replank_local.ports import HOST


@dataclass(frozen=True, slots=True)
class Place:
    """Where a unit lives: the stack's folder, its ports, its secrets."""

    root: Path
    ports: Mapping[str, int]
    secrets: Secrets
    durable: bool
    """Whether what is written shall survive the stack (`make up`), or ends with it (tests)."""

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(self.ports, self.secrets)

    def data(self, name: str) -> Path:
        """Where a unit keeps its data."""
        return self.root / "data" / name

    def data_folder(self, name: str) -> Path:
        """The folder where a unit keeps its data, there and readable by its owner alone."""
        folder = self.data(name)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to start a process."""

    argv: list[str]
    cwd: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    account: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One process of a stack."""

    name: str
    ports: Mapping[str, int]
    """Each port it listens on, with the number it has when that is free. The first is the one people connect to."""
    prepare: Callable[[Place], Awaitable[Command]]
    """Make its folders and configuration, idempotently, also after it was killed; answer how to start it."""
    ready: Callable[[Place], Awaitable[bool]]
    """Whether it does its work now. May raise OSError while it does not."""
    artifact: Callable[[], Artifact] | None = None
    """What it needs from the cache."""
    stop_signal: signal.Signals = signal.SIGTERM
    quick_signal: signal.Signals = signal.SIGKILL
    """Ends it at once, where its data no longer matters, leaving nothing of it behind in the system."""
    start_within: float = 60.0
    stop_within: float = 20.0


async def http_ok(port: int, path: str) -> bool:
    """Whether an HTTP server on loopback answers a GET with 200."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
        status = await reader.readline()
        return status.split(b" ")[1:2] == [b"200"]
    finally:
        writer.close()
