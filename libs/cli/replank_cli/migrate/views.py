"""What the schema service answers, as far as the command reads it. Fields that a newer service adds are left alone."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from replank_cli.asking import Condition

#: The whole life of a migration, in its order.
LIFE: Final = (
    "planned",
    "capturing",
    "backfilling",
    "verifying",
    "shadow_reads",
    "new_with_fallback",
    "new_only",
    "completed",
)
#: In these no part of a migration is at work in the databases.
AT_REST: Final = frozenset({"planned", "rolled_back", "cancelled", "retired"})
#: Nothing follows on these by itself.
ENDS: Final = frozenset({"completed", "rolled_back", "cancelled", "retired"})
#: There is no way on from these.
OVER: Final = frozenset({"cancelled", "retired"})

Item = TypeVar("Item")


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Next(_View):
    """The phase that would follow, and what it needs."""

    to: str
    allowed: bool
    conditions: list[Condition] = []

    @property
    def unmet(self) -> list[Condition]:
        """What it still needs."""
        return [condition for condition in self.conditions if not condition.met]


class Work(_View):
    """One part of what a migration's worker does."""

    name: str
    state: str
    detail: str = ""


class Progress(_View):
    """How far the backfill is. ``rate`` is in records a second, ``eta`` in seconds."""

    rows: int
    total: int | None = None
    filled: int = 0
    kept: int = 0
    rejected: int = 0
    different: int = 0
    rate: float = 0.0
    eta: float | None = None
    done: bool = False
    waits_for: str = ""


class Lag(_View):
    """How far the following store is behind the one that is written."""

    events: int
    seconds: float


class Consistency(_View):
    """How much of what was compared agrees."""

    percent: float
    compared: int
    different: int
    at: datetime | None = None


class Rejects(_View):
    """Records that could not be converted."""

    open: int
    accepted: int


class Reads(_View):
    """Which store answers an endpoint, for how many per cent of the keys."""

    endpoint: str
    mode: str
    rollout: float


class ComparedReads(_View):
    """What the application reported of reads that asked both stores."""

    compared: int = 0
    mismatched: int = 0
    errors: int = 0


class Authority(_View):
    """Which store takes writes, as each database itself says."""

    source: str
    target: str


class Summary(_View):
    """A migration in a listing."""

    id: str
    name: str
    owner: str
    source: str
    target: str
    phase: str
    moving_to: str | None = None
    paused: bool = False
    planned_at: datetime
    phase_since: datetime | None = None


class Migration(Summary):
    """A migration with all that is known of it now."""

    table: str = ""
    run: int = 0
    problem: str = ""
    settings: dict[str, JsonValue] = {}
    reads: list[Reads] = []
    next: Next | None = None
    work: list[Work] = []
    progress: Progress | None = None
    lag: Lag | None = None
    consistency: Consistency | None = None
    rejects: Rejects | None = None
    compared_reads: ComparedReads = ComparedReads()
    authority: Authority | None = None


class Reject(_View):
    """A record that could not be converted, and why."""

    key: str
    path: str | None = None
    reason: str
    attempts: int
    first_at: datetime
    last_at: datetime
    accepted: bool = False


class AuditLine(_View):
    """Who did what to a migration, and why."""

    seq: int
    at: datetime
    who: str
    action: str
    reason: str
    from_: str | None = Field(default=None, alias="from")
    to: str | None = None
    evidence: dict[str, JsonValue] = {}


class Comparison(_View):
    """A comparison of everything. Counts are of what it has seen so far; ``percent`` is final once it is done."""

    id: str
    state: str
    asked_by: str
    asked_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    stage: str | None = None
    records: dict[str, int] = {}
    records_estimated: int = 0
    rows: dict[str, int] = {}
    mismatches: dict[str, int] = {}
    unsettled: int = 0
    compared: int = 0
    different: int = 0
    percent: float | None = None


class Mismatch(_View):
    """A record and its rows that disagree. ``trace_id`` leads to whoever wrote what differs."""

    key: str
    entity: str
    kind: str
    fields: list[str] = []
    trace_id: str | None = None
    first_seen: datetime
    last_seen: datetime
    resolved_at: datetime | None = None


class Repaired(_View):
    """What a repair did for a key, or in a dry run would do: ``upsert`` or ``delete``."""

    key: str
    op: str


class Repair(_View):
    """Keys to apply once more. No ``actions`` until it was done."""

    id: str
    dry_run: bool
    keys: list[str]
    actions: list[Repaired] | None = None


class Page(_View, Generic[Item]):
    """A part of a listing. ``next`` is the cursor of the next part; there is none after the last."""

    items: list[Item]
    next: str | None = None
