"""The subjects, by name. Each is one module: its schema, its append, and its relay as a process (``python -m``)."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Final, Protocol

import asyncpg

from bench.outbox.workload import Row
from bench.procs import Command


@dataclass(frozen=True, slots=True)
class Target:
    """Where one run happens: a database and a topic of its own."""

    dsn: str
    kafka: str
    topic: str


Append = Callable[[asyncpg.Connection, Sequence[Row]], Awaitable[None]]
"""Appends events on a connection whose transaction the caller has begun."""


class Subject(Protocol):
    """One relay in one configuration."""

    name: str
    ordered: bool
    """Whether it promises that the events of a key arrive in commit order."""
    event_tables: tuple[str, str]
    """Schema, and pattern for LIKE, of the tables that hold events."""
    traces: bool
    """Whether its relay makes spans, and prints as its last line ``{"spans_exported": …}``."""

    async def prepare(self, target: Target) -> None:
        """Make its schema in the new database, before any event is appended."""

    def append(self, target: Target) -> Append:
        """How a service appends with it."""

    def relay(self, target: Target) -> Command:
        """Its relay, as a process of its own."""


SUBJECTS: Final = {
    "replank": "bench.outbox.subjects.replank",
    "replank-exactly-once": "bench.outbox.subjects.replank",
    "faststream-outbox": "bench.outbox.subjects.faststream",
    "debezium": "bench.outbox.subjects.debezium",
}


def missing(name: str) -> str | None:
    """What the subject needs that is not here, with how to get it; None when it can run."""
    if name == "faststream-outbox" and find_spec("faststream_outbox") is None:
        return "the package faststream-outbox is not installed (it is in the dependency group `bench`)"
    if name == "debezium":
        programs = [program for program in ("java", "mvn") if shutil.which(program) is None]
        if programs:
            return f"no {' and no '.join(programs)} on the PATH (install a JRE 17 or newer, and Maven)"
    return None


def subject(name: str) -> Subject:
    """The subject of that name, which must not be `missing` anything."""
    made: Subject = import_module(SUBJECTS[name]).subject(name)
    return made
