"""Kafka in: who plans a migration owns it, and so does who a schema of the vault belongs to."""

from __future__ import annotations

from typing import Final

from replank.contracts.auth_cache import STORE
from replank.contracts.schema import MigrationPlanned, SchemaOwnerChanged, SchemaVersionPublished
from replank.inbox import Delivery, Done, Inbox, Outcome
from replank_auth_cache.tuples import service
from replank_auth_cache.tuples.decisions import Decisions
from replank_auth_cache.tuples.model import OnConflict, RelationTuple

_ITSELF: Final = "service:auth-cache"


def subscribe(inbox: Inbox, decisions: Decisions) -> None:
    """Register the handlers."""
    events = inbox.topic(MigrationPlanned.event_topic)

    @events.on(MigrationPlanned)
    async def grant_ownership(delivery: Delivery[MigrationPlanned]) -> Outcome:
        planned = delivery.event
        owns = RelationTuple(planned.owner, "owner", f"migration:{planned.migration_id}")
        await service.change(delivery.conn, decisions, STORE, writes=[owns], on_duplicate=OnConflict.IGNORE, by=_ITSELF)
        return Done()

    @events.on(SchemaVersionPublished)
    async def grant_schema(delivery: Delivery[SchemaVersionPublished]) -> Outcome:
        # Most versions are not the first, and find their owner: they must not cost the whole store its cache.
        await service.ensure(delivery.conn, decisions, STORE, [_owns(delivery.event.owner, delivery.event)], by=_ITSELF)
        return Done()

    @events.on(SchemaOwnerChanged)
    async def pass_schema_on(delivery: Delivery[SchemaOwnerChanged]) -> Outcome:
        changed = delivery.event
        now, before = _owns(changed.owner, changed), _owns(changed.previous_owner, changed)
        await service.change(
            delivery.conn,
            decisions,
            STORE,
            writes=[now],
            deletes=[before] if before != now else [],
            on_duplicate=OnConflict.IGNORE,
            on_missing=OnConflict.IGNORE,
            by=_ITSELF,
        )
        return Done()


def _owns(owner: str, event: SchemaVersionPublished | SchemaOwnerChanged) -> RelationTuple:
    return RelationTuple(owner, "owner", f"schema:{event.mode}.{event.schema_id}")
