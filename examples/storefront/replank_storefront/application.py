"""The composition root: settings -> resources -> routes."""

from __future__ import annotations

import openfeature.api

from replank.migrate.client import ReadRouter, WriteRouter
from replank.postgres import Pool
from replank.service import Service
from replank_storefront import api
from replank_storefront.settings import StorefrontSettings
from replank_storefront.shop import Shop


def compose(settings: StorefrontSettings) -> Service:
    """Put the shop together. Opens nothing."""
    service = Service(settings, name="storefront", package="replank_storefront", sends=[], receives=[])
    tables = Pool(
        "tables",
        settings.tables_dsn.get_secret_value(),
        settings.pools.general_primary,
        service="storefront",
        target="primary",
        read_only=False,
    )

    async def close_tables() -> None:
        await tables.close(within=10.0)

    # Not required: before a migration nobody reads them, and during one the routers fall back as far as they may.
    service.readiness.add("tables", tables.check, required=False)
    service.on_close(close_tables)

    kv = service.pools.general_primary
    reads = ReadRouter(settings.migration, source=kv, target=tables, flags=openfeature.api.get_client())

    async def report_comparisons() -> None:
        reads.start()

    service.before_consuming("reads", report_comparisons)
    # Comparisons under way use the pools: they end first.
    service.on_close(reads.close)
    shop = Shop(kv=kv, tables=tables, reads=reads, writes=WriteRouter(settings.migration), flags=service.flags)
    service.route(api.router(shop))
    return service
