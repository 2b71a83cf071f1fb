"""Kafka in: a planned migration's plan is archived."""

from __future__ import annotations

from replank.contracts.schema import MigrationPlanned
from replank.inbox import Dead, Delivery, Done, Inbox, Outcome
from replank.objects import ObjectStore
from replank_archiver.manifests import service
from replank_archiver.manifests.model import NotThePlan


def subscribe(inbox: Inbox, objects: ObjectStore) -> None:
    """Register the handlers."""
    migrations = inbox.topic(MigrationPlanned.event_topic)

    @migrations.on(MigrationPlanned)
    async def keep_plan(delivery: Delivery[MigrationPlanned]) -> Outcome:
        try:
            await service.keep_plan(delivery.conn, objects, delivery.event)
        except NotThePlan as error:
            return Dead(str(error))
        return Done()
