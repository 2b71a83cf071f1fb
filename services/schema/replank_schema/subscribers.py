"""Kafka in: what other services say about a migration's readiness, and about event contracts."""

from __future__ import annotations

import logging
from typing import Final
from uuid import UUID

from replank.contracts.archiver import PlanArchived, SchemasArchived
from replank.contracts.auth_cache import STORE, AccessGranted, AccessRevoked
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.declarations import EventContractDeclared, EventContractUsed
from replank.events import Event
from replank.inbox import Dead, Delivery, Done, Inbox, Outcome, Retry
from replank_schema.migration import service
from replank_schema.migration.model import Item, State
from replank_schema.migration.service import Settled
from replank_schema.vault import archiving, event_contracts
from replank_schema.vault.model import BlobBusy, RevisionChanged
from replank_schema.vault.vault import Vault

_log = logging.getLogger(__name__)

_MIGRATION: Final = "migration:"


def subscribe_to_contracts(inbox: Inbox, vault: Vault) -> None:
    """Register the handlers of what services say about event contracts, which are kept in this mode of the vault."""
    declarations = inbox.topic(EventContractDeclared.event_topic)

    @declarations.on(EventContractDeclared)
    async def publish_contract(delivery: Delivery[EventContractDeclared]) -> Outcome:
        try:
            # Not in this transaction, which is the service's own, and in which no mode can be reached; but it is
            # published once, however often that is asked for.
            await event_contracts.publish(vault, delivery.event)
        except event_contracts.NotTheContract as error:
            return Dead(str(error))
        except (RevisionChanged, BlobBusy):
            return Retry()
        return Done()

    @declarations.on(EventContractUsed)
    async def note_use(delivery: Delivery[EventContractUsed]) -> Outcome:
        await event_contracts.note_use(delivery.conn, delivery.event)
        return Done()


def subscribe(inbox: Inbox, *, has_vault: bool) -> None:
    """Register the handlers; ``has_vault``: also of what becomes of the vault's old rows."""
    access = inbox.topic(AccessGranted.event_topic)
    baselines = inbox.topic(BaselineRecorded.event_topic)
    archive = inbox.topic(PlanArchived.event_topic)

    @access.on(AccessGranted, AccessRevoked)
    async def note_access(delivery: Delivery[AccessGranted | AccessRevoked]) -> Outcome:
        change = delivery.event
        migration_id = _migration_of(change)
        if migration_id is not None:
            settled = await service.settle_access(
                delivery.conn,
                migration_id,
                user=change.user,
                owns=isinstance(change, AccessGranted),
                event_id=delivery.event_id,
            )
            _warn_if_unknown(settled, delivery, migration_id)
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

    if has_vault:
        archive.on(SchemasArchived)(_forget_rows)


async def _forget_rows(delivery: Delivery[SchemasArchived]) -> Outcome:
    """The archiver has rows that it was offered."""
    try:
        settled = await archiving.settle(delivery.conn, delivery.event)
    except archiving.NotWhatWasOffered as error:
        return Dead(str(error))
    if not settled:
        _log.warning(
            "rows were archived that are not offered any more",
            extra={"vault_mode": delivery.event.mode, "request_id": str(delivery.event.request_id)},
        )
    return Done()


async def _settle(delivery: Delivery[Event], migration_id: UUID, item: Item, state: State, detail: str) -> None:
    settled = await service.settle(delivery.conn, migration_id, item, state, detail=detail, event_id=delivery.event_id)
    _warn_if_unknown(settled, delivery, migration_id)


def _warn_if_unknown(settled: Settled, delivery: Delivery[Event], migration_id: UUID) -> None:
    if settled is Settled.UNKNOWN_MIGRATION:
        # Of an earlier life of this database, or made up by whoever may write tuples: there is nothing to settle.
        _log.warning(
            "an event speaks of a migration that is not registered here",
            extra={"migration_id": str(migration_id), "event_type": delivery.event.event_type},
        )


def _migration_of(change: AccessGranted | AccessRevoked) -> UUID | None:
    """The migration whose ownership this is about, if it is about one, in the store that our own checks ask."""
    if change.store != STORE or change.relation != "owner" or not change.object.startswith(_MIGRATION):
        return None
    try:
        return UUID(change.object.removeprefix(_MIGRATION))
    except ValueError:
        return None
