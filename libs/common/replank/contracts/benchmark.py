"""What benchmark says: the state of a migration's source before anything changes."""

from __future__ import annotations

from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import Field

from replank.contracts.fields import Explanation, Instant, Slug
from replank.events import Event

TOPIC: Final = "replank.benchmark"

Count = Annotated[int, Field(ge=0)]


class BaselineRecorded(Event, type="replank.benchmark.baseline.recorded.v1", topic=TOPIC):
    """A baseline was captured, or could not be: then ``status`` is ``failed`` and ``reason`` says why.

    The figures sum up every relation that the source reads: ``rows_estimated`` by the planner's statistics,
    ``bytes_total`` with indexes and TOAST. ``plan_cost`` is the planner's estimate of reading the whole source once,
    in its own unit. They are absent when the baseline failed.
    """

    baseline_id: UUID
    migration_id: UUID
    target: Slug
    status: Literal["captured", "failed"]
    reason: Explanation | None = None
    rows_estimated: Count | None = None
    bytes_total: Count | None = None
    plan_cost: float | None = None
    recorded_at: Instant
