"""What a comparison finds: kinds of mismatches, counts, and how far it has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field


class Kind(StrEnum):
    """How a record and its rows disagree."""

    MISSING = "missing"
    """The record has no root row."""
    EXTRA = "extra"
    """There are rows for a key that has no record."""
    DIFFERENT = "different"
    STALE = "stale"
    """The side that follows holds an earlier version of the record, or has not got a change for too long."""
    REJECTED = "rejected"
    """The record cannot be converted. It is known as such and counts neither as compared nor as different."""


#: The kinds that lower consistency.
INCONSISTENT: Final = (Kind.MISSING, Kind.EXTRA, Kind.DIFFERENT, Kind.STALE)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One key whose record and rows disagree, after it was looked at again (`replank.migrate.comparison.settle`).

    ``fields`` are ``table.column`` and, in child rows, ``table[position].column``: names, never values. ``trace_id``
    is the trace of whoever wrote what the following side holds, where it is known.
    """

    key: str
    entity: str
    kind: Kind
    fields: tuple[str, ...]
    trace_id: str | None


class ComparisonSettings(BaseModel):
    """How a comparison goes about its work. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_rows: int = Field(default=2000, ge=1, le=50_000)
    chunk_bytes: int = Field(default=8 * 2**20, ge=1)
    """A chunk ends at so many bytes of values: records may be large."""
    settle_keys: int = Field(default=500, ge=1, le=10_000)
    """How many differences are gathered before they are looked at again."""
    rounds: int = Field(default=20, ge=2)
    """How often a difference is looked at before it is given up as unsettled."""
    patience: float = Field(default=10.0, ge=0)
    """How long a difference may take to settle."""
    pause: float = Field(default=0.05, gt=0)
    """Between the first two looks; it doubles, up to a second."""
    in_flight: float = Field(default=60.0, ge=0)
    """A captured change that is not applied counts as on its way for so long, and as lost afterwards.

    A transaction that stays open for longer than this after it wrote may be taken for a lost change, until it is
    applied.
    """
    details: int = Field(default=10_000, ge=0)
    """How many mismatches a run tells one by one; the rest is counted."""


class Progress(BaseModel):
    """How far a run has come, and what it found so far: all that a later run needs to go on.

    ``relation`` is the entity, or ``entity.child``, whose rows are walked over; ``after`` the place in it, or the key.
    ``records`` and ``rows`` count by entity the convertible records of the key-value store and the root rows of the
    tables that the two walks met. ``unsettled`` are differences that kept changing, or whose change was still on its
    way, until patience ran out: neither equal nor different. ``untold`` mismatches are only counted
    (`ComparisonSettings.details`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["records", "rows", "done"] = "records"
    relation: str | None = None
    after: str | None = None
    pending: tuple[str, ...] = ()
    records: Mapping[str, int] = Field(default_factory=dict)
    rows: Mapping[str, int] = Field(default_factory=dict)
    mismatches: Mapping[Kind, int] = Field(default_factory=dict)
    unsettled: int = 0
    untold: int = 0
    records_estimated: int = 0
    seconds: float = 0.0

    @property
    def compared(self) -> int:
        """Records that were compared, and rows that no record stands for."""
        return sum(self.records.values()) + self.mismatches.get(Kind.EXTRA, 0)

    @property
    def different(self) -> int:
        return sum(self.mismatches.get(kind, 0) for kind in INCONSISTENT)

    @property
    def percent(self) -> float:
        """Consistency per cent of what was compared."""
        return consistency(self.compared, self.different)


@dataclass(frozen=True, slots=True)
class Findings:
    """What became of keys that were looked at one by one: mismatches, keys seen equal, and keys that did not settle."""

    mismatches: Sequence[Mismatch] = ()
    equal: Sequence[str] = ()
    unsettled: Sequence[str] = ()

    @property
    def different(self) -> int:
        return sum(mismatch.kind in INCONSISTENT for mismatch in self.mismatches)

    @property
    def compared(self) -> int:
        """Keys that are equal or inconsistent: neither rejected nor unsettled."""
        return len(self.equal) + self.different


def consistency(compared: int, different: int) -> float:
    """100 * (compared - different) / compared; 100 where nothing was compared. Only no difference at all gives 100."""
    return 100.0 * (compared - different) / compared if compared else 100.0
