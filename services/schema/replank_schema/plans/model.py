"""A migration as schema knows it before it starts: the plan and the checklist of what must be there first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import JsonValue

from replank.contracts.schema import Source


class Phase(StrEnum):
    PLANNED = "planned"
    READY = "ready"


class Item(StrEnum):
    """What must be there before a migration may start, each vouched for by another service's event."""

    ACCESS = "access"
    BASELINE = "baseline"
    ARCHIVE = "archive"


class State(StrEnum):
    PENDING = "pending"
    MET = "met"
    FAILED = "failed"
    #: It was met, and what it rested on was taken back.
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Readiness:
    """One line of the checklist. ``event_id`` is the event that settled it; ``detail`` is what it said, for people."""

    item: Item
    state: State
    detail: str | None
    event_id: UUID | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Draft:
    """A migration that somebody wants to plan."""

    name: str
    owner: str
    source: Source
    plan: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Migration:
    """A registered migration without its plan, which may be long (`store.plan`)."""

    id: UUID
    name: str
    owner: str
    source: Source
    plan_sha256: str
    phase: Phase
    planned_by: str
    planned_at: datetime
    ready_at: datetime | None
