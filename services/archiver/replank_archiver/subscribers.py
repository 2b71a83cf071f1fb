"""Kafka in: a planned migration's plan is archived, and so are rows that the schema service gives away."""

from __future__ import annotations

from replank.contracts.schema import MigrationPlanned, SchemaArchiveOldRequested
from replank.inbox import Dead, Delivery, Done, Inbox, Outcome
from replank.objects import ObjectStore
from replank_archiver.manifests import service
from replank_archiver.manifests.model import NotThePlan
from replank_archiver.schemas.exports import Exports
from replank_archiver.schemas.model import ExportGone, NotTheExport
from replank_archiver.schemas.service import keep_rows


def subscribe(inbox: Inbox, objects: ObjectStore, exports: Exports | None) -> None:
    """Register the handlers."""
    migrations = inbox.topic(MigrationPlanned.event_topic)

    @migrations.on(MigrationPlanned)
    async def keep_plan(delivery: Delivery[MigrationPlanned]) -> Outcome:
        try:
            await service.keep_plan(delivery.conn, objects, delivery.event)
        except NotThePlan as error:
            return Dead(str(error))
        return Done()

    @migrations.on(SchemaArchiveOldRequested)
    async def keep_schemas(delivery: Delivery[SchemaArchiveOldRequested]) -> Outcome:
        if exports is None:
            # Not tried for ever: that would hold up what comes behind it. It can be redriven.
            return Dead("rows wait to be archived: set SCHEMA_URL to where the schema service is, and redrive this")
        try:
            await keep_rows(delivery.conn, objects, exports, delivery.event)
        except (NotTheExport, ExportGone) as error:
            return Dead(str(error))
        return Done()
