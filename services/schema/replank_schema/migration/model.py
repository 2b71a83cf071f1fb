"""What a migration is: its phases, its checklist, what may be asked of it and set while it runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from replank.contracts.fields import Slug


class Phase(StrEnum):
    """Where a migration is. The first eight follow each other; the others lead back, or end it."""

    PLANNED = "planned"
    CAPTURING = "capturing"
    BACKFILLING = "backfilling"
    VERIFYING = "verifying"
    SHADOW_READS = "shadow_reads"
    NEW_WITH_FALLBACK = "new_with_fallback"
    NEW_ONLY = "new_only"
    COMPLETED = "completed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"
    RETIRING = "retiring"
    RETIRED = "retired"


FORWARD: Final = (
    Phase.PLANNED,
    Phase.CAPTURING,
    Phase.BACKFILLING,
    Phase.VERIFYING,
    Phase.SHADOW_READS,
    Phase.NEW_WITH_FALLBACK,
    Phase.NEW_ONLY,
    Phase.COMPLETED,
)
#: In these nothing of the migration is at work in the databases, and its name is free for another one.
AT_REST: Final = frozenset({Phase.PLANNED, Phase.ROLLED_BACK, Phase.CANCELLED, Phase.RETIRED})
#: There is no way back from these.
OVER: Final = frozenset({Phase.RETIRING, Phase.RETIRED})


class Mode(StrEnum):
    """Which store answers the reads of an endpoint; the later ones trust the tables more."""

    KV = "kv"
    COMPARE = "compare"
    NEW_WITH_FALLBACK = "new_with_fallback"
    NEW = "new"


#: The furthest mode that each phase allows, which is also what its beginning sets. Elsewhere: the key-value store.
FURTHEST: Final[Mapping[Phase, Mode]] = {
    Phase.SHADOW_READS: Mode.COMPARE,
    Phase.NEW_WITH_FALLBACK: Mode.NEW_WITH_FALLBACK,
    Phase.NEW_ONLY: Mode.NEW,
    Phase.COMPLETED: Mode.NEW,
}


def furthest(phase: Phase) -> Mode:
    """The mode that an endpoint may be in at most."""
    return FURTHEST.get(phase, Mode.KV)


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


class Tables(StrEnum):
    """What becomes of the target's tables when the migration is taken back."""

    KEEP = "keep"
    DROP = "drop"


class Leave(StrEnum):
    """How a retired migration leaves the store that takes no writes: the key-value table, or tables that were kept."""

    CLOSED = "closed"
    """It goes on refusing writes, by a guard that stays (`replank.migrate.retired`)."""
    OPEN = "open"
    """Everybody may write to it again, and nobody notices."""
    DROPPED = "dropped"
    """Only for tables that a rollback has kept: the key-value table is not the migration's to drop."""


Endpoint = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")]
Percent = Annotated[float, Field(ge=0, le=100)]


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(_Given):
    """What is decided with the plan, and stays."""

    same_transaction: bool = False
    """Source and target are one database, and capture writes the tables itself: no Kafka, no lag."""
    capture: Literal["triggers", "writer"] = "triggers"
    """What tells of changes of the key-value table: triggers on it, or a `replank.migrate.client.DualWriter` that every
    writer uses, where triggers may not be installed. Nothing refuses a write that goes past that."""
    partitions: int = Field(default=3, ge=1, le=64)
    """Of the migration's change topics: so many appliers may work at once."""
    endpoints: tuple[Endpoint, ...] = Field(default=(), max_length=200)
    """The reads of the application that move, each under the flag ``migrate.<name>.reads.<endpoint>``."""
    dry_run_sample: int = Field(default=1000, ge=0, le=100_000)
    """So many records are converted there and back before a start; 0 leaves it out."""
    dry_run_rejects: float = Field(default=0.02, ge=0, le=1)
    """The share of the sample that may be rejected."""

    @model_validator(mode="after")
    def _endpoints_differ(self) -> Self:
        if len(set(self.endpoints)) < len(self.endpoints):
            raise ValueError("an endpoint is named twice")
        return self


class Settings(_Given):
    """What may be changed at any time; running work reads it again between chunks."""

    rows_per_second: int | None = Field(default=None, ge=1)
    chunk_rows: int = Field(default=2000, ge=1, le=50_000)
    max_lag_seconds: float | None = Field(default=None, gt=0)
    """The backfill waits while a replica of source or target is further behind than this."""
    max_active: int | None = Field(default=None, ge=1)
    """The backfill waits while more sessions than this are running a statement."""
    throttle_query: Annotated[str, StringConstraints(min_length=1, max_length=2000)] | None = None
    """The backfill waits until this query, asked of the target, returns true."""
    auto_until: Phase | None = None
    """The migration advances by itself, up to this phase, as soon as the conditions are met."""
    min_consistency: Percent = 99.9
    """Per cent of compared records that must agree before reads are compared."""
    min_compared_reads: int = Field(default=1000, ge=0)
    max_read_mismatches: int = Field(default=0, ge=0)
    max_apply_lag: float = Field(default=1.0, gt=0)
    """Seconds that the tables may be behind when writes move."""
    hold_seconds: float = Field(default=5.0, gt=0, le=60)
    """How long writers may be held while the authority moves; after that it stays where it was."""

    @model_validator(mode="after")
    def _advances_forward(self) -> Self:
        if self.auto_until is not None and self.auto_until not in FORWARD[1:]:
            raise ValueError(f"auto_until is one of {', '.join(FORWARD[1:])}")
        return self


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
    """A migration that somebody wants to plan. ``mapping`` is valid; ``table`` is where it reads."""

    name: str
    owner: str
    source: Slug
    table: str
    target: Slug
    mapping: Mapping[str, JsonValue]
    options: Options
    settings: Settings

    @property
    def plan(self) -> dict[str, JsonValue]:
        """What other services get to see and to keep: everything that is decided with the plan."""
        return {
            "mapping": dict(self.mapping),
            "source": self.source,
            "target": self.target,
            "options": self.options.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a migration stands: all that decides what may be asked of it.

    ``moving_to`` is where it was asked to go and the work has to get it first. ``run`` counts its starts.
    """

    phase: Phase = Phase.PLANNED
    moving_to: Phase | None = None
    paused: bool = False
    run: int = 0


@dataclass(frozen=True, slots=True)
class Migration:
    """A registered migration without its plan, which may be long (`store.plan`)."""

    id: UUID
    name: str
    owner: str
    source: str
    table: str
    target: str
    plan_sha256: str
    standing: Standing
    tables: Tables
    phase_since: datetime
    settings: Settings
    planned_by: str
    planned_at: datetime
    ready_at: datetime | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is decided with the plan of a migration."""

    mapping: Mapping[str, JsonValue]
    options: Options


@dataclass(frozen=True, slots=True)
class Route:
    """Which store answers an endpoint, for how many per cent of the keys."""

    endpoint: str
    mode: Mode
    rollout: float


@dataclass(frozen=True, slots=True)
class Compared:
    """The last comparison of everything. ``unsettled`` kept changing, and were neither equal nor different."""

    compared: int
    different: int
    unsettled: int
    percent: float
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that must be so before a migration may go on; ``fix`` says how it comes to be so."""

    name: str
    met: bool
    detail: str
    fix: str = ""


Action = Literal[
    "plan", "start", "advance", "arrive", "give_up", "pause", "resume", "rollback", "cancel", "retire", "settings",
    "reads", "retry_rejects", "accept_rejects",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Who did what to a migration, why, and on what evidence."""

    seq: int
    at: datetime
    who: str
    action: str
    reason: str
    from_phase: Phase
    to_phase: Phase
    evidence: Mapping[str, JsonValue]


def unmet(conditions: Sequence[Condition]) -> list[Condition]:
    """Those that are not met."""
    return [condition for condition in conditions if not condition.met]
