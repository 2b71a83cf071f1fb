"""The composition root: settings -> resources -> routes, subscribers and the work of migrations."""

from __future__ import annotations

from replank.contracts.archiver import PlanArchived
from replank.contracts.auth_cache import AccessGranted, AccessRevoked
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.flags import FlagChanged
from replank.contracts.schema import (
    MigrationConsistentAgain,
    MigrationInconsistent,
    MigrationPhaseChanged,
    MigrationPlanned,
    MigrationReady,
)
from replank.service import Service
from replank_schema import api
from replank_schema.migration.comparison_api import comparison_routes
from replank_schema.migration.conductor import Surroundings
from replank_schema.migration.databases import Databases
from replank_schema.migration.supervisor import Supervisor
from replank_schema.settings import SchemaSettings
from replank_schema.subscribers import subscribe


def compose(settings: SchemaSettings) -> Service:
    """Put the service together. Opens nothing."""
    service = Service(
        settings,
        name="schema",
        package="replank_schema",
        # Flags are changed in this service's database, so its relay is the one that tells of them.
        sends=[
            MigrationPlanned,
            MigrationReady,
            MigrationPhaseChanged,
            MigrationInconsistent,
            MigrationConsistentAgain,
            FlagChanged,
        ],
        receives=[AccessGranted, AccessRevoked, BaselineRecorded, PlanArchived],
    )
    databases = Databases(settings.databases)
    supervisor = Supervisor(Surroundings(service.pools, databases, settings.kafka, settings.lease_seconds))
    service.consume(subscribe)
    service.route(api.router(service.pools, service.flags, databases, supervisor.wake))
    service.route(
        comparison_routes(
            service.pools, may_see=api.may_handle, may_change=api.may_handle, compares=api.compares(service.pools)
        )
    )
    if settings.run_migrations:
        service.work("migrations", supervisor.run)
    return service
