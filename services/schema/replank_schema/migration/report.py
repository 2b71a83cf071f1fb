"""What the work of a migration says of itself: facts that stay for a run, and a report that is about now."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict


class _Said(BaseModel):
    # Written by one version of this service and read by another: what is new is left alone.
    model_config = ConfigDict(frozen=True, extra="ignore")


class BackfillDone(_Said):
    """A backfill that came to its end."""

    rows: int
    filled: int
    rejected: int
    seconds: float


class ComparedReads(_Said):
    """Reads that asked both stores, as the application's processes count them in the target."""

    compared: int = 0
    mismatched: int = 0
    errors: int = 0

    def since(self, before: ComparedReads) -> ComparedReads:
        """What was counted after that."""
        return ComparedReads(
            compared=self.compared - before.compared,
            mismatched=self.mismatched - before.mismatched,
            errors=self.errors - before.errors,
        )


class Retirement(_Said):
    """What a retirement was asked to do: which side takes no writes, and how it is left (`model.Leave`)."""

    closed: Literal["source", "target"]
    leave: Literal["closed", "open", "dropped"]


class Facts(_Said):
    """What has been reached in this run, and stays so until the next start."""

    installed: bool = False
    backfill: BackfillDone | None = None
    compare_since: AwareDatetime | None = None
    """Only a comparison that began after this says how the two stores are now."""
    indexes: bool = False
    constraints: bool = False
    reads_before: ComparedReads = ComparedReads()
    """What had been counted when the shadow reads began."""
    reverse_removed: bool = False
    """After completion nothing flows back to the key-value store any more."""
    reads_wait: bool = False
    """On the way back from completion reads stay on the tables until the key-value store has the writes again."""
    retirement: Retirement | None = None


class Progress(_Said):
    """How far a backfill is. ``rate`` is in rows a second, ``eta`` in seconds."""

    rows: int = 0
    total: int | None = None
    filled: int = 0
    kept: int = 0
    rejected: int = 0
    different: int = 0
    rate: float = 0.0
    eta: float | None = None
    done: bool = False
    waits_for: str = ""


class Lag(_Said):
    """How far the applier is behind the store that is written."""

    events: int
    seconds: float


class Rejects(_Said):
    """Records that could not be converted: how many nobody settled, and how many were accepted as lost."""

    open: int
    accepted: int


class Violated(_Said):
    """A constraint that rows of the tables do not satisfy. ``keys`` names a few of their records."""

    constraint: str
    table: str
    columns: tuple[str, ...]
    refers_to: str | None = None
    """The table that a foreign key refers to."""
    alike: bool = False
    """Whether it is a unique index."""
    rows: int
    counted_all: bool
    """Whether there are no more of them: counting stops somewhere."""
    keys: tuple[str, ...]

    @property
    def told(self) -> str:
        """In a sentence, without anything that a record holds."""
        count = f"{self.rows}" if self.counted_all else f"{self.rows} or more"
        columns, rows = ", ".join(self.columns), "row" if self.rows == 1 else "rows"
        if self.refers_to:
            fault = f"whose {columns} is in no row of {self.refers_to}"
        else:
            fault = f"that share their {columns} with others" if self.alike else f"without {columns}"
        return f"{count} {rows} of {self.table} {fault} ({self.constraint}), such as {', '.join(self.keys)}"


class Authority(_Said):
    """Which store takes writes, as each database itself says."""

    source: str
    target: str


class PartReport(_Said):
    """One part of the work. ``detail`` says what it waits for, or what went wrong."""

    name: str
    state: Literal["running", "waiting", "done", "failed"]
    detail: str = ""
    since: AwareDatetime


class Report(_Said):
    """The work at one moment, written by whoever leads it."""

    parts: tuple[PartReport, ...] = ()
    problem: str = ""
    progress: Progress | None = None
    lag: Lag | None = None
    rejects: Rejects | None = None
    seen_in: AwareDatetime | None = None
    """When the phase began in which the databases were last asked for the rejects: an older count says nothing."""
    violated: tuple[Violated, ...] | None = None
    """Constraints that rows do not satisfy; nothing where nobody has looked yet."""
    unindexed: tuple[Violated, ...] = ()
    """Unique indexes that cannot be built, because rows are alike."""
    authority: Authority | None = None
    reads: ComparedReads = ComparedReads()
