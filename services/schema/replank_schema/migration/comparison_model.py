"""Comparisons, mismatches and repairs as they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from replank.migrate.comparison import Direction, Kind, Progress, Repaired


class RunState(StrEnum):
    """Of a comparison of everything."""

    ASKED = "asked"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Run:
    """A comparison of everything. Its ``progress`` is what it found, as soon as it runs."""

    id: UUID
    state: RunState
    direction: Direction | None
    asked_by: str
    asked_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class KeptMismatch:
    """A key whose record and rows disagreed from ``first_seen`` on, until ``resolved_at``."""

    id: UUID
    key: str
    entity: str
    kind: Kind
    fields: Sequence[str]
    trace_id: str | None
    first_seen: datetime
    last_seen: datetime
    resolved_at: datetime | None


@dataclass(frozen=True, slots=True)
class Repair:
    """Keys to apply once more. ``actions`` say what was done, or in a dry run what would be."""

    id: UUID
    dry_run: bool
    keys: Sequence[str]
    asked_by: str
    asked_at: datetime
    ended_at: datetime | None
    actions: Sequence[Repaired] | None


@dataclass(frozen=True, slots=True)
class Consistency:
    """Per cent of what was compared that agrees: over the last full run, and over the samples of the window."""

    full: float | None
    full_ended_at: datetime | None
    samples: float | None
    samples_compared: int
    open_mismatches: int
    inconsistent_since: datetime | None
