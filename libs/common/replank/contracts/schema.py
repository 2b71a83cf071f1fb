"""What the schema service says: of migrations, of the records that they move, and of the schemas in its vault.

All events about one migration have its id as their key, so they arrive in order. The changes of the records that are
being moved have topics of their own, one a migration and direction, with the record's key as theirs.

All events about one schema of the vault have the schema's id as their key, and ``schema:<mode>.<id>`` as their subject.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from replank.contracts import alerts
from replank.contracts.fields import Actor, Explanation, Instant, Label, Sha256, Slug
from replank.events import Event

TOPIC: Final = "replank.schema"

#: The vault's two halves, which share nothing: neither tables nor roles, neither bucket nor account.
VaultMode = Literal["standard", "pro"]

#: How deep the objects and lists of a plan may be nested.
PLAN_DEPTH: Final = 64
# An escaped NUL, and not an escaped backslash that happens to be followed by the letters u0000.
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

#: ``relation`` or ``schema.relation``, taken literally (case matters, ``public`` is the default schema).
RelationName = Annotated[str, StringConstraints(pattern=r'^[^.\s"\x00-\x1f]{1,63}(\.[^.\s"\x00-\x1f]{1,63})?$')]
Query = Annotated[str, StringConstraints(min_length=1, max_length=20_000, pattern=r"^[^\x00]+$")]


class Source(BaseModel):
    """Where a migration reads: a table or view, or the result of a query, in a named target database."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Slug
    table: RelationName | None = None
    query: Query | None = None

    @model_validator(mode="after")
    def _one_of_table_and_query(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("give exactly one of table and query")
        return self


def canonical_plan(plan: Mapping[str, JsonValue]) -> bytes:
    """The one byte form of a plan: UTF-8 JSON, keys sorted by code point, no blanks.

    Raises `ValueError` for what cannot be carried everywhere: infinities, NaN and lone surrogates (JSON cannot say
    them), the character U+0000 (Postgres cannot keep it), more than `PLAN_DEPTH` levels (JSON parsers give up).
    """
    _refuse_deeper(plan, PLAN_DEPTH)
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    if _NUL.search(text):
        raise ValueError("the character U+0000 cannot be kept")
    return text.encode()


def _refuse_deeper(value: JsonValue | Mapping[str, JsonValue], levels: int) -> None:
    if isinstance(value, Mapping | list):
        if levels == 0:
            raise ValueError(f"more than {PLAN_DEPTH} levels deep")
        for member in value.values() if isinstance(value, Mapping) else value:
            _refuse_deeper(member, levels - 1)


def plan_sha256(plan: Mapping[str, JsonValue]) -> str:
    """Identifies a plan by its content: the SHA-256 of its canonical form."""
    return hashlib.sha256(canonical_plan(plan)).hexdigest()


class MigrationPlanned(Event, type="replank.schema.migration.planned.v1", topic=TOPIC):
    """A migration was registered. Nothing has been touched yet.

    ``plan_sha256`` is that of `canonical_plan`, so that whoever keeps the plan can prove it kept this one.
    """

    migration_id: UUID
    name: Label
    owner: Actor
    source: Source
    plan: dict[str, JsonValue]
    plan_sha256: Sha256
    planned_by: Actor
    planned_at: Instant


class MigrationReady(Event, type="replank.schema.migration.ready.v1", topic=TOPIC):
    """Access is granted, a baseline is recorded, the plan is archived: the migration may start. Said once."""

    migration_id: UUID
    name: Label
    owner: Actor
    plan_sha256: Sha256
    ready_at: Instant


class MigrationPhaseChanged(Event, type="replank.schema.migration.phase.changed.v1", topic=TOPIC):
    """A migration is in another phase. ``run`` counts how often it was started; ``changed_by`` asked for it.

    The phases are those of the schema service's documentation; a reader must bear one that it does not know.
    """

    migration_id: UUID
    name: Label
    run: Annotated[int, Field(ge=0)]
    from_phase: Slug
    to_phase: Slug
    changed_by: Actor
    reason: Explanation
    changed_at: Instant


class RecordChanged(Event, type="replank.schema.record.changed.v1", topic="replank.migrate"):
    """A record of a store that is being moved was written or deleted. The event's key is the record's.

    Each migration has topics of its own below this one: ``replank.migrate.<name>`` for what is written to the
    key-value store, ``replank.migrate.<name>.reverse`` for what is written to the tables. Of two events of one key and
    topic the one with the higher ``version`` holds. ``fetch`` says that the value does not travel, because it is large
    or one of many: it is read where it was written, and may be gone from there by then.
    """

    key: Annotated[str, StringConstraints(min_length=1)]
    op: Literal["upsert", "delete"]
    version: Annotated[int, Field(ge=1)]
    value: JsonValue = None
    fetch: bool = False


class MigrationInconsistent(Event, type="replank.schema.migration.inconsistent.v1", topic=alerts.TOPIC):
    """The two stores of a migration agree less than they must. Said once a fall; `MigrationConsistentAgain` ends it.

    ``percent`` is of the records that were compared, by a ``comparison`` of everything or by ``samples`` of the last
    minutes, whichever is lower; ``seen_by`` is which of them told just now.
    """

    migration_id: UUID
    name: Label
    percent: Annotated[float, Field(ge=0, le=100)]
    threshold: Annotated[float, Field(ge=0, le=100)]
    seen_by: Literal["comparison", "samples"]
    open_mismatches: Annotated[int, Field(ge=0)]
    since: Instant


class MigrationConsistentAgain(Event, type="replank.schema.migration.consistent.v1", topic=alerts.TOPIC):
    """The two stores of a migration agree as they must, since when they did not was told."""

    migration_id: UUID
    name: Label
    percent: Annotated[float, Field(ge=0, le=100)]
    inconsistent_since: Instant
    since: Instant


SchemaName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
#: How many of the affected schemas an inconsistency names.
MOST_AFFECTED: Final = 100


class Compatibility(BaseModel):
    """What was proven of a version and the one before it; False where it could not be decided.

    ``backward``: whatever is valid under the version before is valid under this one. ``forward``: the other way round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backward: bool
    forward: bool


class SchemaVersionPublished(Event, type="replank.schema.version.published.v1", topic=TOPIC):
    """A version of a schema or document is in the vault and is its current one. The key is ``schema_id``.

    ``sha256`` and ``size`` (in bytes) are those of the content as it was sent. ``field_count`` is a lower bound for
    documents with very many fields. ``previous`` is the version that was current until now: none for the first.
    ``compatibility`` is none where there is nothing to compare, or the two are no schemas.
    """

    mode: VaultMode
    schema_id: UUID
    name: SchemaName
    version: Annotated[int, Field(ge=1)]
    previous: Annotated[int, Field(ge=1)] | None = None
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    kind: Literal["schema", "document"]
    field_count: Annotated[int, Field(ge=0)]
    owner: Actor
    compatibility: Compatibility | None = None
    published_by: Actor
    published_at: Instant


class SchemaOwnerChanged(Event, type="replank.schema.owner.changed.v1", topic=TOPIC):
    """A schema has another owner: who may publish versions of it, change, delete and restore it."""

    mode: VaultMode
    schema_id: UUID
    name: SchemaName
    owner: Actor
    previous_owner: Actor
    changed_by: Actor
    changed_at: Instant


class SchemaDeleted(Event, type="replank.schema.deleted.v1", topic=TOPIC):
    """A schema is deleted, and can be restored: its versions are kept, and its owner stays its owner."""

    mode: VaultMode
    schema_id: UUID
    name: SchemaName
    version: Annotated[int, Field(ge=1)]
    deleted_by: Actor
    deleted_at: Instant


class SchemaRestored(Event, type="replank.schema.restored.v1", topic=TOPIC):
    """A deleted schema is back, with ``version`` as its current version. Its name may be another than it was."""

    mode: VaultMode
    schema_id: UUID
    name: SchemaName
    version: Annotated[int, Field(ge=1)]
    restored_by: Actor
    restored_at: Instant


class SchemaInconsistencyDetected(Event, type="replank.schema.inconsistency.detected.v1", topic=TOPIC):
    """What the vault's tables say and what its object store holds do not agree. Said once a finding.

    Not about one schema: a content may be that of many schemas, or of none. So the key is ``finding_id``, and the
    subject ``vault:<mode>``. ``schemas`` names up to 100 of the schemas that lose something by it, and ``affected``
    counts them all. ``sha256`` is that of the content, where the finding is about one.
    """

    mode: VaultMode
    finding_id: UUID
    kind: Slug
    sha256: Sha256 | None = None
    schemas: Annotated[tuple[UUID, ...], Field(max_length=MOST_AFFECTED)] = ()
    affected: Annotated[int, Field(ge=0)] = 0
    detail: Explanation
    found_at: Instant


class SchemaArchiveOldRequested(Event, type="replank.schema.archive_old.requested.v1", topic=TOPIC):
    """Rows of the pattern that the vault comes from wait to be archived. The key is ``request_id``.

    They are lines of JSON, compressed by zstd, at the schema service's ``path``; ``rows`` counts them, and ``sha256``
    is that of the lines, decompressed. They are deleted once `replank.contracts.archiver.SchemasArchived` says the
    same.
    """

    mode: VaultMode
    request_id: UUID
    rows: Annotated[int, Field(ge=0)]
    sha256: Sha256
    path: Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9_-]+)+$", max_length=300)]
    requested_by: Actor
    requested_at: Instant
