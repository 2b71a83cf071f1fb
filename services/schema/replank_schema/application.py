"""The composition root: settings -> resources -> routes and subscribers."""

from __future__ import annotations

from replank.contracts.archiver import PlanArchived
from replank.contracts.auth_cache import AccessGranted
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.schema import MigrationPlanned, MigrationReady
from replank.service import Service
from replank_schema import api
from replank_schema.settings import SchemaSettings
from replank_schema.subscribers import subscribe


def compose(settings: SchemaSettings) -> Service:
    """Put the service together. Opens nothing."""
    service = Service(
        settings,
        name="schema",
        package="replank_schema",
        sends=[MigrationPlanned, MigrationReady],
        receives=[AccessGranted, BaselineRecorded, PlanArchived],
    )
    service.consume(subscribe)
    service.route(api.router(service.pools))
    return service
