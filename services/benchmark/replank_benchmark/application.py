"""The composition root: settings -> resources -> routes and subscribers."""

from __future__ import annotations

from replank.contracts.alerts import AlertRaised
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.schema import MigrationPlanned
from replank.service import Service
from replank_benchmark import api
from replank_benchmark.baselines.targets import Targets
from replank_benchmark.settings import BenchmarkSettings
from replank_benchmark.subscribers import subscribe


def compose(settings: BenchmarkSettings) -> Service:
    """Put the service together. Opens nothing."""
    service = Service(
        settings,
        name="benchmark",
        package="replank_benchmark",
        sends=[BaselineRecorded, AlertRaised],
        receives=[MigrationPlanned],
    )
    targets = Targets(settings.targets, timeout=settings.target_timeout)
    service.consume(lambda inbox: subscribe(inbox, targets, attempts=settings.target_attempts))
    service.route(api.router(service.pools))
    return service
