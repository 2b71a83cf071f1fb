"""What the vault's HTTP interface takes and answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, Json, JsonValue, StringConstraints

from replank.contracts.fields import Actor, Sha256
from replank.http import PageQuery, RequestModel
from replank.http.models import require_storable
from replank_schema.vault.consistency_store import Finding, FindingState
from replank_schema.vault.findings import FindingKind
from replank_schema.vault.job_store import Job, JobState
from replank_schema.vault.model import (
    Blob,
    Changes,
    Consumer,
    Draft,
    Filters,
    Kind,
    Name,
    Schema,
    Sort,
    Status,
    Tag,
    Version,
)
from replank_schema.vault.pattern import Phase

_MOST_METADATA: Final = 16 * 1024
MOST_AT_ONCE: Final = 500


def _small(metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
    require_storable(metadata)
    if len(json.dumps(metadata)) > _MOST_METADATA:
        raise ValueError(f"has more than {_MOST_METADATA} bytes as JSON")
    return metadata


Metadata = Annotated[dict[str, JsonValue], AfterValidator(_small)]
#: The same as JSON text, as it stands in a query.
MetadataText = Annotated[Json[dict[str, JsonValue]], AfterValidator(_small)]
Description = Annotated[str, StringConstraints(max_length=10_000)]
Note = Annotated[str, StringConstraints(max_length=2000)]
Tags = Annotated[tuple[Tag, ...], Field(max_length=50)]


class _Said(RequestModel):
    """What is said of a new schema. Without ``owner`` it is the caller's."""

    name: Name
    owner: Actor | None = None
    description: Description = ""
    note: Note = ""

    def _draft(self, tags: Sequence[str], metadata: dict[str, JsonValue], by: str) -> Draft:
        return Draft(
            name=self.name,
            owner=self.owner or by,
            description=self.description,
            tags=list(dict.fromkeys(tags)),
            metadata=metadata,
            note=self.note,
        )


class UploadQuery(_Said):
    """The query of an upload, whose body is the content. ``tag`` may be given many times, ``metadata`` is JSON."""

    tag: Tags = ()
    metadata: MetadataText = Field(default_factory=dict)

    def draft(self, by: str) -> Draft:
        return self._draft(self.tag, self.metadata, by)


class NewSchema(_Said):
    """A schema whose content is in the vault already."""

    sha256: Sha256
    tags: Tags = ()
    metadata: Metadata = Field(default_factory=dict)

    def draft(self, by: str) -> Draft:
        return self._draft(self.tags, self.metadata, by)


class VersionQuery(RequestModel):
    """The query of a new version. ``force``: also if those who use the schema may not be able to read it.

    ``sha256``: the content is in the vault already, and there is no body.
    """

    note: Note = ""
    force: bool = False
    sha256: Sha256 | None = None


class SchemaChanges(RequestModel):
    """What changes of a schema beside its content; what is left out stays."""

    owner: Actor | None = None
    description: Description | None = None
    tags: Tags | None = None
    metadata: Metadata | None = None

    def changes(self) -> Changes:
        tags = None if self.tags is None else list(dict.fromkeys(self.tags))
        return Changes(owner=self.owner, description=self.description, tags=tags, metadata=self.metadata)


class Digests(RequestModel):
    sha256: Annotated[list[Sha256], Field(min_length=1, max_length=10_000)]


class MissingView(BaseModel):
    """Those contents that have to be sent."""

    missing: list[str]


class SchemaQuery(PageQuery):
    """A listing's filters: ``name`` is what names begin with, ``q`` words to be found in names, descriptions, tags and
    fields, ``metadata`` a JSON object that those of the schemas contain, ``tag`` one that they all have."""

    sort: Sort = Sort.NAME
    name: Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00]*$")] | None = None
    owner: Actor | None = None
    tag: Tags = ()
    kind: Kind | None = None
    status: Status = "active"
    q: Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]*$")] | None = None
    metadata: MetadataText | None = None

    def filters(self) -> Filters:
        return Filters(
            status=self.status,
            prefix=self.name,
            owner=self.owner,
            tags=self.tag,
            kind=self.kind,
            words=self.q,
            metadata=self.metadata,
        )


class SchemaView(BaseModel):
    """A schema without its content. ``revision`` is its entity tag, for ``If-Match``."""

    id: UUID
    name: str
    status: Status
    revision: int
    version: int
    kind: Kind
    field_count: int
    size: int
    sha256: str
    owner: str
    description: str
    tags: list[str]
    metadata: dict[str, JsonValue]
    created_at: AwareDatetime
    created_by: str
    updated_at: AwareDatetime
    updated_by: str
    deleted_at: AwareDatetime | None
    deleted_by: str | None

    @classmethod
    def of(cls, schema: Schema) -> Self:
        return cls.model_validate(schema, from_attributes=True)


class VersionView(BaseModel):
    """A version. ``backward``: what the one before takes this one takes too; ``forward``: the other way round."""

    version: int
    sha256: str
    size: int
    kind: Kind
    field_count: int
    fields_exact: bool
    note: str
    backward: bool | None
    forward: bool | None
    created_at: AwareDatetime
    created_by: str

    @classmethod
    def of(cls, version: Version) -> Self:
        return cls.model_validate(version, from_attributes=True)


class BlobView(BaseModel):
    """A content that is in the vault."""

    sha256: str
    size: int
    kind: Kind
    field_count: int

    @classmethod
    def of(cls, blob: Blob) -> Self:
        return cls.model_validate(blob, from_attributes=True)


class JobView(BaseModel):
    """A job: ``done`` of ``total``, in bytes for an upload. ``problem`` says why it failed, or is tried again."""

    id: UUID
    kind: str
    state: JobState
    done: int
    total: int | None
    result: dict[str, JsonValue] | None
    problem: str | None
    attempts: int
    created_at: AwareDatetime
    created_by: str
    updated_at: AwareDatetime

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls.model_validate(job, from_attributes=True)


class ConsumerView(BaseModel):
    """Who was seen using a schema: how many events, and when."""

    consumer: str
    events: int
    first_at: AwareDatetime
    last_at: AwareDatetime

    @classmethod
    def of(cls, consumer: Consumer) -> Self:
        return cls.model_validate(consumer, from_attributes=True)


class ConsumersView(BaseModel):
    consumers: list[ConsumerView]


class DifferenceQuery(RequestModel):
    """Which versions to compare."""

    older: Annotated[int, Field(ge=1, alias="from")]
    newer: Annotated[int, Field(ge=1, alias="to")]


class ReasonView(BaseModel):
    """Why a compatibility is not given, or not proven: where in the schema, and in which direction."""

    path: str
    direction: Literal["backward", "forward"]
    text: str


class CompatibilityView(BaseModel):
    """``full`` is both. What could not be decided counts as not compatible, and is among the reasons."""

    backward: bool
    forward: bool
    full: bool
    reasons: list[ReasonView]


class DifferenceView(BaseModel):
    """What differs between two versions, as JSON Pointers. ``differences`` counts all; the lists are cut.

    ``compatibility`` is null where one of the two is no schema.
    """

    older: int = Field(serialization_alias="from")
    newer: int = Field(serialization_alias="to")
    added: list[str]
    removed: list[str]
    changed: list[str]
    differences: int
    compatibility: CompatibilityView | None


class ProblemPlace(BaseModel):
    path: str
    problem: str


class ValidityView(BaseModel):
    """Whether a content is a valid JSON Schema of the draft that it says it is, or else of the latest."""

    valid: bool
    draft: str
    problems: list[ProblemPlace]


class Bulk(RequestModel):
    """One thing to be done to many schemas, each by itself."""

    action: Literal["delete", "restore", "tag", "untag"]
    ids: Annotated[list[UUID], Field(min_length=1, max_length=MOST_AT_ONCE)]
    tags: Tags = ()
    force: bool = False


class BulkResult(BaseModel):
    id: UUID
    ok: bool
    problem: str | None = None


class BulkView(BaseModel):
    results: list[BulkResult]
    failed: int


class CheckRequest(RequestModel):
    """``deep``: read every content and understand it again, not only compare what is listed."""

    deep: bool = True


class RepairRequest(RequestModel):
    """Which findings to repair; all that are open where none are named."""

    findings: Annotated[tuple[UUID, ...], Field(min_length=1, max_length=1000)] | None = None


class FindingQuery(PageQuery):
    state: FindingState | None = None
    kind: FindingKind | None = None


class FindingView(BaseModel):
    """Something that the tables and the object store do not agree on.

    ``thing`` is a content's SHA-256, a schema's id or an object's key, as the kind has it. ``schemas`` names up to 100
    of the schemas that lose something by it, ``affected`` counts them. ``found_by`` and ``closed_by`` are jobs.
    ``remedy`` is what helps, or, of what is repaired, what was done.
    """

    id: UUID
    kind: FindingKind
    thing: str
    detail: str
    schemas: list[UUID]
    affected: int
    state: FindingState
    found_at: AwareDatetime
    found_by: UUID
    closed_at: AwareDatetime | None
    closed_by: UUID | None
    remedy: str

    @classmethod
    def of(cls, finding: Finding) -> Self:
        return cls.model_validate(finding, from_attributes=True)


class RejectView(BaseModel):
    """A version that was not moved to the new pattern, or differs there, and why."""

    schema_id: UUID
    version: int
    name: str
    step: Literal["backfill", "verify"]
    reason: str


class ArchiveView(BaseModel):
    """The last time that old rows were offered to the archiver; ``deleted``: how many of them are gone."""

    id: UUID
    state: Literal["requested", "archived", "withdrawn"]
    rows: int
    sha256: str
    deleted: int | None
    bucket: str | None
    object_key: str | None
    requested_at: AwareDatetime
    requested_by: str
    settled_at: AwareDatetime | None


class PatternView(BaseModel):
    """In which pattern a mode is, and how far on its way. ``reads`` counts reads that were compared, by endpoint and
    outcome; ``rejects`` are the first of ``rejected``."""

    phase: Phase
    optimized: bool
    """What the flag says for this mode."""
    run: int
    old_rows: int
    rows_verified: int | None
    verified_at: AwareDatetime | None
    changed_at: AwareDatetime | None
    changed_by: str | None
    mismatches: int
    reads: dict[str, dict[str, int]]
    rejected: int
    rejects: list[RejectView]
    job: JobView | None
    archive: ArchiveView | None
