"""The composition root: settings -> resources -> routes and subscribers."""

from __future__ import annotations

from replank.contracts.archiver import PlanArchived
from replank.contracts.auth_cache import AccessGranted, AccessRevoked
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.flags import FlagChanged
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
        # Flags are changed in this service's database, so its relay is the one that tells of them.
        sends=[MigrationPlanned, MigrationReady, FlagChanged],
        receives=[AccessGranted, AccessRevoked, BaselineRecorded, PlanArchived],
    )
    service.consume(subscribe)
    service.route(api.router(service.pools, service.flags))
    return service
