"""Kafka in: who plans a migration owns it."""

from __future__ import annotations

from replank.contracts.auth_cache import STORE
from replank.contracts.schema import MigrationPlanned
from replank.inbox import Delivery, Done, Inbox, Outcome
from replank_auth_cache.tuples import service
from replank_auth_cache.tuples.decisions import Decisions
from replank_auth_cache.tuples.model import OnConflict, RelationTuple


def subscribe(inbox: Inbox, decisions: Decisions) -> None:
    """Register the handlers."""
    migrations = inbox.topic(MigrationPlanned.event_topic)

    @migrations.on(MigrationPlanned)
    async def grant_ownership(delivery: Delivery[MigrationPlanned]) -> Outcome:
        planned = delivery.event
        owns = RelationTuple(planned.owner, "owner", f"migration:{planned.migration_id}")
        await service.change(
            delivery.conn, decisions, STORE, writes=[owns], on_duplicate=OnConflict.IGNORE, by="service:auth-cache"
        )
        return Done()
