"""Kafka in: what other services say about a migration's readiness."""

from __future__ import annotations

import logging
from typing import Final
from uuid import UUID

from replank.contracts.archiver import PlanArchived
from replank.contracts.auth_cache import AccessGranted
from replank.contracts.benchmark import BaselineRecorded
from replank.events import Event
from replank.inbox import Delivery, Done, Inbox, Outcome
from replank_schema.plans import service
from replank_schema.plans.model import Item, State

_log = logging.getLogger(__name__)

_MIGRATION: Final = "migration:"


def subscribe(inbox: Inbox) -> None:
    """Register the handlers."""
    access = inbox.topic(AccessGranted.event_topic)
    baselines = inbox.topic(BaselineRecorded.event_topic)
    archive = inbox.topic(PlanArchived.event_topic)

    @access.on(AccessGranted)
    async def note_access(delivery: Delivery[AccessGranted]) -> Outcome:
        granted = delivery.event
        migration_id = _migration_of(granted)
        if migration_id is not None:
            detail = f"{granted.user} is {granted.relation}"
            await _settle(delivery, migration_id, Item.ACCESS, State.MET, detail)
        return Done()

    @baselines.on(BaselineRecorded)
    async def note_baseline(delivery: Delivery[BaselineRecorded]) -> Outcome:
        baseline = delivery.event
        if baseline.status == "captured":
            state = State.MET
            detail = f"about {baseline.rows_estimated} rows, {baseline.bytes_total} bytes on {baseline.target}"
        else:
            state, detail = State.FAILED, baseline.reason or "no reason given"
        await _settle(delivery, baseline.migration_id, Item.BASELINE, state, detail)
        return Done()

    @archive.on(PlanArchived)
    async def note_archive(delivery: Delivery[PlanArchived]) -> Outcome:
        archived = delivery.event
        detail = f"{archived.bucket}/{archived.object_key}"
        await _settle(delivery, archived.migration_id, Item.ARCHIVE, State.MET, detail)
        return Done()


async def _settle(delivery: Delivery[Event], migration_id: UUID, item: Item, state: State, detail: str) -> None:
    settled = await service.settle(delivery.conn, migration_id, item, state, detail=detail, event_id=delivery.event_id)
    if settled is service.Settled.UNKNOWN_MIGRATION:
        # Of an earlier life of this database, or made up by whoever may write tuples: there is nothing to settle.
        _log.warning(
            "an event speaks of a migration that is not registered here",
            extra={"migration_id": str(migration_id), "event_type": delivery.event.event_type},
        )


def _migration_of(granted: AccessGranted) -> UUID | None:
    """The migration that somebody became the owner of, if that is what was granted."""
    if granted.relation != "owner" or not granted.object.startswith(_MIGRATION):
        return None
    try:
        return UUID(granted.object.removeprefix(_MIGRATION))
    except ValueError:
        return None
