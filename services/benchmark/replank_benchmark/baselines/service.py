"""Use case: record the baseline of a migration's source, whatever came of measuring it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from replank import outbox
from replank.connection import Connection
from replank.contracts.alerts import AlertRaised
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.schema import Source
from replank_benchmark.baselines import store
from replank_benchmark.baselines.model import Baseline, CannotCapture, Capture, TargetUnavailable

_REASON_LENGTH: Final = 2000


async def record(
    conn: Connection, migration_id: UUID, source: Source, outcome: Capture | CannotCapture | TargetUnavailable
) -> Baseline:
    """Keep what was measured, or why it could not be, and say so, inside the caller's transaction.

    A baseline that failed also raises an alert: without one the migration waits until a person acts.
    """
    captured = outcome if isinstance(outcome, Capture) else None
    baseline = Baseline(
        id=uuid7(),
        migration_id=migration_id,
        source=source,
        capture=captured,
        reason=None if isinstance(outcome, Capture) else str(outcome)[:_REASON_LENGTH],
        recorded_at=datetime.now(UTC),
    )
    await store.insert(conn, baseline)
    recorded = BaselineRecorded(
        baseline_id=baseline.id,
        migration_id=migration_id,
        target=source.target,
        status=baseline.status,
        reason=baseline.reason,
        rows_estimated=captured.rows_estimated if captured else None,
        bytes_total=captured.bytes_total if captured else None,
        plan_cost=captured.plan_cost if captured else None,
        recorded_at=baseline.recorded_at,
    )
    subject = f"migration:{migration_id}"
    messages = [outbox.Message(recorded, key=str(migration_id), subject=subject)]
    if baseline.reason is not None:
        alert = AlertRaised(
            service="benchmark",
            severity="warning",
            subject=subject,
            summary="no baseline could be captured, so the migration cannot become ready",
            detail=baseline.reason,
            raised_at=baseline.recorded_at,
        )
        messages.append(outbox.Message(alert, key=subject, subject=subject))
    await outbox.append_many(conn, messages)
    return baseline
