"""Baselines and the targets that they are captured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from replank.contracts.schema import Source
from replank.errors import ReplankError


@dataclass(frozen=True, slots=True)
class RelationFigures:
    """One relation that the source reads.

    ``rows_estimated`` is the planner's (``pg_class.reltuples``), ``bytes_total`` counts indexes and TOAST. The counters
    run since the target's statistics were last reset; they are None for what Postgres does not count (foreign tables).
    """

    schema: str
    name: str
    rows_estimated: int
    bytes_total: int
    sequential_scans: int | None
    index_scans: int | None


@dataclass(frozen=True, slots=True)
class Capture:
    """What was measured: the planner's choice for reading the whole source, and the relations behind it."""

    explain: Mapping[str, Any]
    relations: Sequence[RelationFigures]

    @property
    def plan_cost(self) -> float:
        return float(self.explain["Plan"]["Total Cost"])

    @property
    def rows_estimated(self) -> int:
        return sum(relation.rows_estimated for relation in self.relations)

    @property
    def bytes_total(self) -> int:
        return sum(relation.bytes_total for relation in self.relations)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline as kept. ``capture`` is None exactly when ``status`` is ``failed``; then ``reason`` says why."""

    id: UUID
    migration_id: UUID
    source: Source
    capture: Capture | None
    reason: str | None
    recorded_at: datetime

    @property
    def status(self) -> Literal["captured", "failed"]:
        return "failed" if self.capture is None else "captured"


class CannotCapture(ReplankError):
    """The source cannot be measured, and trying again would not help: no such target, table or right."""


class TargetUnavailable(ReplankError):
    """The target did not answer, or not in time. Trying again may help."""
