"""What is kept of the schema service's old rows, and what can be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from replank.contracts.schema import VaultMode
from replank.errors import ReplankError


@dataclass(frozen=True, slots=True)
class SchemasManifest:
    """Archived rows: where they are. ``rows`` and ``sha256`` are of the lines, ``size`` (bytes) is of the object."""

    request_id: UUID
    mode: VaultMode
    rows: int
    sha256: str
    bucket: str
    object_key: str
    size: int
    archived_at: datetime


class NotTheExport(ReplankError):
    """What was fetched, or read back, does not have the lines that the event states. Nothing is said to be archived."""


class ExportGone(ReplankError):
    """The schema service does not offer these rows any more."""


def export_key(mode: VaultMode, request_id: UUID, sha256: str) -> str:
    """Content-addressed: what is there under it has this digest, or is put again."""
    return f"schemas/{mode}/{request_id}/rows-{sha256}.ndjson.zst"
