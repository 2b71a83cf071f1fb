"""What archiver says: something is kept in object storage, and was read back to prove it."""

from __future__ import annotations

from typing import Annotated, Final
from uuid import UUID

from pydantic import Field, StringConstraints

from replank.contracts.fields import Instant, Sha256
from replank.contracts.schema import VaultMode
from replank.events import Event

TOPIC: Final = "replank.archiver"


class PlanArchived(Event, type="replank.archiver.plan.archived.v1", topic=TOPIC):
    """A migration's plan is in object storage. ``sha256`` is that of the bytes read back; ``size`` is in bytes."""

    migration_id: UUID
    bucket: Annotated[str, StringConstraints(min_length=3, max_length=63)]
    object_key: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    archived_at: Instant


class SchemasArchived(Event, type="replank.archiver.schemas.archived.v1", topic=TOPIC):
    """Rows that the schema service gave away are in object storage, as zstd. The key is ``request_id``.

    ``rows`` and ``sha256`` are those of the lines that were read back and decompressed; ``size`` is that of the object,
    in bytes.
    """

    mode: VaultMode
    request_id: UUID
    rows: Annotated[int, Field(ge=0)]
    sha256: Sha256
    bucket: Annotated[str, StringConstraints(min_length=3, max_length=63)]
    object_key: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    size: Annotated[int, Field(ge=0)]
    archived_at: Instant
