"""What the archiver keeps, and what can be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from replank.errors import ReplankError


@dataclass(frozen=True, slots=True)
class Manifest:
    """One archived plan: where its bytes are, their SHA-256 and size in bytes."""

    migration_id: UUID
    bucket: str
    object_key: str
    sha256: str
    size: int
    archived_at: datetime


class NotThePlan(ReplankError):
    """An event's plan does not have the digest that the event states. Archiving it would prove nothing."""


def plan_key(migration_id: UUID, sha256: str) -> str:
    """Content-addressed: putting a plan twice puts the same bytes in the same place."""
    return f"migrations/{migration_id}/plan-{sha256}.json"
