"""Use cases: ask for comparisons and repairs, keep what they find, and tell when a migration becomes inconsistent.

They run inside the caller's transaction, so that the rows and the event that tells of them commit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from replank import outbox
from replank.connection import Connection
from replank.contracts.schema import MigrationConsistentAgain, MigrationInconsistent
from replank.errors import ReplankError
from replank.migrate.comparison import Findings, Progress
from replank.telemetry import metrics
from replank_schema.migration import comparison_store as store
from replank_schema.migration.comparison_model import Consistency, Run

#: Over which time samples count, unless everything was compared since.
WINDOW: Final = timedelta(minutes=10)
#: How many keys one repair takes: it holds writers while it reads them.
MAX_REPAIRED: Final = 500


class ComparisonEnded(ReplankError):
    """A comparison was cancelled while it ran, so nothing more can be kept of it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The migration that is compared, and per cent of consistency below which somebody must know."""

    id: UUID
    name: str
    threshold: float


async def ask(conn: Connection, migration_id: UUID, *, asked_by: str) -> Run | None:
    """Ask for a comparison of everything; nothing where one is asked for already or runs."""
    run_id = await store.ask(conn, migration_id, asked_by=asked_by)
    return None if run_id is None else await store.run(conn, migration_id, run_id)


async def keep_progress(conn: Connection, subject: Subject, run: Run, progress: Progress, findings: Findings) -> None:
    """Keep how far a comparison has come and what it found; with its end, judge the migration's consistency.

    Raises `ComparisonEnded` if it was cancelled meanwhile.
    """
    started_at = await store.progressed(conn, run.id, progress)
    if started_at is None:
        raise ComparisonEnded(f"comparison {run.id} was cancelled", fix="ask for another one")
    await _keep(conn, subject, run.id, findings)
    if progress.stage != "done":
        return
    # A run that told only a part of what it found cannot say that the rest is gone.
    if not progress.untold:
        await store.resolved_before(conn, subject.id, started_at)
    await _judge(conn, subject, "comparison")


async def keep_sample(conn: Connection, subject: Subject, findings: Findings) -> None:
    """Keep what a sample found, and judge the migration's consistency over the window."""
    await _keep(conn, subject, None, findings)
    await store.sampled(conn, subject.id, compared=findings.compared, different=findings.different, window=WINDOW)
    metrics.MIGRATE_SAMPLED.labels(migration=subject.name).inc(findings.compared)
    await _judge(conn, subject, "samples")


async def _keep(conn: Connection, subject: Subject, run_id: UUID | None, findings: Findings) -> None:
    await store.seen(conn, subject.id, run_id, findings.mismatches)
    await store.resolved(conn, subject.id, findings.equal)
    await store.still_open(conn, subject.id, findings.unsettled)


async def _judge(conn: Connection, subject: Subject, seen_by: Literal["comparison", "samples"]) -> None:
    found = await store.consistency(conn, subject.id, window=WINDOW)
    show(subject, found)
    measured = [percent for percent in (found.full, found.samples) if percent is not None]
    lowest = min(measured, default=100.0)
    now = datetime.now(UTC)
    key, thing = str(subject.id), f"migration:{subject.id}"
    if lowest < subject.threshold:
        if await store.fell(conn, subject.id, lowest) is not None:
            fallen = MigrationInconsistent(
                migration_id=subject.id,
                name=subject.name,
                percent=lowest,
                threshold=subject.threshold,
                seen_by=seen_by,
                open_mismatches=found.open_mismatches,
                since=now,
            )
            await outbox.append(conn, fallen, key=key, subject=thing)
    elif (since := await store.came_back(conn, subject.id)) is not None:
        again = MigrationConsistentAgain(
            migration_id=subject.id, name=subject.name, percent=lowest, inconsistent_since=since, since=now
        )
        await outbox.append(conn, again, key=key, subject=thing)


def show(subject: Subject, found: Consistency) -> None:
    """Set the metrics of a migration's consistency."""
    for over, percent in (("comparison", found.full), ("samples", found.samples)):
        if percent is not None:
            metrics.MIGRATE_CONSISTENCY.labels(migration=subject.name, over=over).set(percent)
    metrics.MIGRATE_MISMATCHES.labels(migration=subject.name).set(found.open_mismatches)


async def ask_repair(
    conn: Connection, migration_id: UUID, keys: Sequence[str] | None, *, dry_run: bool, asked_by: str
) -> UUID:
    """Ask for a repair of keys, or of the keys of the open mismatches (at most `MAX_REPAIRED`); gives its id."""
    wanted = list(dict.fromkeys(keys)) if keys is not None else await store.open_keys(conn, migration_id, MAX_REPAIRED)
    return await store.ask_repair(conn, migration_id, wanted, dry_run=dry_run, asked_by=asked_by)
