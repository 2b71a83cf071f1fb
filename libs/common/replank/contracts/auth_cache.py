"""What auth-cache says: an actor gained or lost a relation to a thing.

The key is the object, so what happens to one object's access arrives in order. ``revision`` counts the changes of the
store: whoever caches decisions knows from it which of them are older than this change.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from replank.contracts.fields import Actor, Instant, Relation, Slug, Thing
from replank.events import Event

TOPIC: Final = "replank.auth-cache"
#: The store that Replank's own services ask.
STORE: Final = "replank"

Revision = Annotated[int, Field(ge=1)]


class AccessGranted(Event, type="replank.auth-cache.access.granted.v1", topic=TOPIC):
    """The tuple (user, relation, object) was written. Writing one that exists already says nothing."""

    store: Slug
    user: Actor
    relation: Relation
    object: Thing
    revision: Revision
    granted_by: Actor
    granted_at: Instant


class AccessRevoked(Event, type="replank.auth-cache.access.revoked.v1", topic=TOPIC):
    """The tuple (user, relation, object) was deleted."""

    store: Slug
    user: Actor
    relation: Relation
    object: Thing
    revision: Revision
    revoked_by: Actor
    revoked_at: Instant
