"""Kafka in: a planned migration gets its baseline."""

from __future__ import annotations

from replank.contracts.schema import MigrationPlanned
from replank.inbox import Delivery, Done, Inbox, Outcome, Retry
from replank_benchmark.baselines import service
from replank_benchmark.baselines.model import CannotCapture, Capture, TargetUnavailable
from replank_benchmark.baselines.targets import Targets


def subscribe(inbox: Inbox, targets: Targets, *, attempts: int) -> None:
    """Register the handlers. A target that does not answer is tried ``attempts`` times."""
    migrations = inbox.topic(MigrationPlanned.event_topic)

    @migrations.on(MigrationPlanned)
    async def record_baseline(delivery: Delivery[MigrationPlanned]) -> Outcome:
        planned = delivery.event
        outcome: Capture | CannotCapture | TargetUnavailable
        try:
            outcome = await targets.capture(planned.source)
        except CannotCapture as error:
            outcome = error
        except TargetUnavailable as error:
            # Not for ever: one dead target must not keep the baselines of all others waiting behind it.
            if delivery.attempt < attempts:
                return Retry()
            outcome = error
        await service.record(delivery.conn, planned.migration_id, planned.source, outcome)
        return Done()
