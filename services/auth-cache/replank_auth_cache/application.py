"""The composition root: settings -> resources -> routes and subscribers."""

from __future__ import annotations

from replank.cache import Cache
from replank.contracts.auth_cache import STORE, AccessGranted, AccessRevoked
from replank.contracts.schema import MigrationPlanned, SchemaOwnerChanged, SchemaVersionPublished
from replank.service import Service
from replank_auth_cache import api
from replank_auth_cache.settings import AuthCacheSettings
from replank_auth_cache.subscribers import subscribe
from replank_auth_cache.tuples.decisions import Decisions
from replank_auth_cache.tuples.model import RelationTuple
from replank_auth_cache.tuples.service import bootstrap


def compose(settings: AuthCacheSettings) -> Service:
    """Put the service together. Opens nothing."""
    service = Service(
        settings,
        name="auth-cache",
        package="replank_auth_cache",
        sends=[AccessGranted, AccessRevoked],
        receives=[MigrationPlanned, SchemaVersionPublished, SchemaOwnerChanged],
    )
    cache = None
    if settings.valkey_url is not None:
        cache = Cache(settings.valkey_url.get_secret_value(), name="authorization")
        service.readiness.add("valkey", cache.ping, required=False)  # slower without it, and right
        service.on_close(cache.close)
    decisions = Decisions(
        service.pools.authorization_primary,
        cache,
        max_age=settings.revision_max_age,
        entry_ttl=settings.decision_ttl,
    )
    first = [RelationTuple(item.user, item.relation, item.object) for item in settings.bootstrap_tuples]

    async def write_first_tuples() -> None:
        async with service.pools.general_primary.acquire() as conn, conn.transaction():
            await bootstrap(conn, decisions, {*settings.stores, STORE}, STORE, first)

    service.before_consuming("bootstrap", write_first_tuples)
    service.consume(lambda inbox: subscribe(inbox, decisions))
    service.route(api.router(service.pools, decisions))
    return service
