"""The composition root: settings -> resources -> routes, subscribers and the work of migrations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from openfeature.client import OpenFeatureClient

from replank.contracts.archiver import PlanArchived, SchemasArchived
from replank.contracts.auth_cache import AccessGranted, AccessRevoked
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.declarations import EventContractDeclared, EventContractUsed
from replank.contracts.flags import FlagChanged
from replank.contracts.schema import (
    MigrationConsistentAgain,
    MigrationInconsistent,
    MigrationPhaseChanged,
    MigrationPlanned,
    MigrationReady,
    SchemaArchiveOldRequested,
    SchemaDeleted,
    SchemaInconsistencyDetected,
    SchemaOwnerChanged,
    SchemaRestored,
    SchemaVersionPublished,
    VaultMode,
)
from replank.inbox import Inbox
from replank.service import Service
from replank_schema import api
from replank_schema.migration.comparison_api import comparison_routes
from replank_schema.migration.conductor import Surroundings
from replank_schema.migration.databases import Databases
from replank_schema.migration.supervisor import Supervisor
from replank_schema.settings import SchemaSettings
from replank_schema.subscribers import subscribe, subscribe_to_contracts
from replank_schema.vault import (
    archiving,
    collector,
    consistency,
    consistency_routes,
    isolation_routes,
    moving,
    pattern_routes,
    repair,
    routes,
    uploads,
)
from replank_schema.vault.grants import grant
from replank_schema.vault.jobs import Jobs
from replank_schema.vault.pattern import Switch
from replank_schema.vault.reads import Reads, read_router
from replank_schema.vault.vault import Vault, open_vault

_FOR_VAULT: Final = (EventContractDeclared, EventContractUsed, SchemasArchived)


def compose(settings: SchemaSettings) -> Service:
    """Put the service together. Opens nothing."""
    has_vault = bool(settings.vault and settings.s3_url)
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
            SchemaVersionPublished,
            SchemaOwnerChanged,
            SchemaDeleted,
            SchemaRestored,
            SchemaInconsistencyDetected,
            SchemaArchiveOldRequested,
        ],
        receives=[AccessGranted, AccessRevoked, BaselineRecorded, PlanArchived, *(_FOR_VAULT if has_vault else ())],
    )
    vaults = _vaults(settings, service.flags)
    databases = Databases(settings.databases)
    supervisor = Supervisor(Surroundings(service.pools, databases, settings.kafka, settings.lease_seconds))

    def subscribe_all(inbox: Inbox) -> None:
        subscribe(inbox, has_vault=bool(vaults))
        if vaults:
            subscribe_to_contracts(inbox, vaults["standard"])

    service.consume(subscribe_all)
    service.route(api.router(service.pools, service.flags, databases, supervisor.wake))
    service.route(
        comparison_routes(
            service.pools, may_see=api.may_handle, may_change=api.may_handle, compares=api.compares(service.pools)
        )
    )
    if settings.run_migrations:
        service.work("migrations", supervisor.run)
    if vaults and settings.s3_url:
        service.before_consuming("vault", lambda: _let_in(service, vaults))
        service.route(isolation_routes.router(service.pools, settings.vault, s3_url=settings.s3_url))
    for vault in vaults.values():
        _add_mode(service, vault)
    return service


def _vaults(settings: SchemaSettings, flags: Callable[[], Awaitable[OpenFeatureClient]]) -> dict[VaultMode, Vault]:
    if settings.s3_url is None:
        return {}
    return {
        mode: open_vault(
            mode,
            configured,
            s3_url=settings.s3_url,
            limits=settings.vault_limits,
            switch=Switch(mode, default=settings.use_optimized_schemas, flags=flags),
        )
        for mode, configured in settings.vault.items()
    }


async def _let_in(service: Service, vaults: Mapping[VaultMode, Vault]) -> None:
    async with service.pools.general_primary.acquire() as conn:
        await grant(conn, {mode: vault.role for mode, vault in vaults.items()})


def _add_mode(service: Service, vault: Vault) -> None:
    """One mode of the vault. It knows of no other, and what it is given reaches no other."""
    # Uploads do not wait for checks, which may take long.
    checks = {consistency.KIND: consistency.handle, repair.KIND: repair.handler(repair.InlineRows(vault))}
    moves = {moving.KIND: moving.handle, archiving.KIND: archiving.handler(routes.PREFIXES[vault.mode])}
    jobs = Jobs(vault, [{uploads.KIND: uploads.handle}, checks, moves])
    reads = read_router(vault)

    async def report_reads(stop: asyncio.Event) -> None:
        reads.start()
        await stop.wait()

    async def check() -> None:
        await vault.pool.check()
        await vault.objects.check()

    # Migrations go on without it.
    service.readiness.add(f"vault {vault.mode}", check, required=False)
    service.on_close(vault.close)
    service.on_close(reads.close)
    service.route(pattern_routes.router(vault, routes.PREFIXES, jobs.wake))
    service.route(routes.router(vault, Reads(vault, reads), jobs.wake), streamed=routes.streamed_paths(vault))
    service.route(consistency_routes.router(vault, routes.PREFIXES, jobs.wake))
    service.work(f"jobs of vault {vault.mode}", jobs.run)
    service.work(f"reads of vault {vault.mode}", report_reads)
    service.work(f"findings of vault {vault.mode}", lambda stop: consistency.watch(vault, stop))
    service.work(f"collector of vault {vault.mode}", lambda stop: collector.run(vault, stop))
