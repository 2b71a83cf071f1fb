"""What the vault answers, as far as the command reads it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import Field

from replank_cli.asking import View

#: Nothing follows on these.
ENDED: Final = frozenset({"done", "failed", "cancelled"})


class Schema(View):
    """A schema or document without its content. ``revision`` counts every change, ``version`` those of the content."""

    id: str
    name: str
    status: str
    revision: int
    version: int
    kind: str
    field_count: int
    size: int
    sha256: str
    owner: str
    description: str
    tags: list[str]
    metadata: dict[str, Any]
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str
    deleted_at: datetime | None = None
    deleted_by: str | None = None


class Version(View):
    """One version. ``backward`` and ``forward`` say whether it is compatible with the one before; None: not judged."""

    version: int
    sha256: str
    size: int
    kind: str
    field_count: int
    note: str
    backward: bool | None = None
    forward: bool | None = None
    created_at: datetime
    created_by: str


class Job(View):
    """A job, ``done`` of ``total``. ``problem`` says why it failed, or is tried again."""

    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    done: int = 0
    total: int | None = None
    result: dict[str, Any] | None = None
    problem: str | None = None
    attempts: int = 0
    created_at: datetime
    created_by: str
    updated_at: datetime

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Consumer(View):
    """Who was seen using a schema."""

    consumer: str
    events: int
    first_at: datetime
    last_at: datetime


class Reason(View):
    """Why a compatibility is not given, or not proven."""

    path: str
    direction: str
    text: str


class Compatibility(View):
    backward: bool
    forward: bool
    full: bool
    reasons: list[Reason]


class Difference(View):
    """What differs between two versions; ``differences`` counts all, also those that the lists leave out."""

    older: int = Field(alias="from")
    newer: int = Field(alias="to")
    added: list[str]
    removed: list[str]
    changed: list[str]
    differences: int
    compatibility: Compatibility | None = None


class Place(View):
    path: str
    problem: str


class Validity(View):
    """Whether a content is a valid JSON Schema."""

    valid: bool
    draft: str
    problems: list[Place]


class Finding(View):
    """Something that the tables and the object store do not agree on."""

    id: str
    kind: str
    thing: str
    detail: str
    affected: int
    state: str
    found_at: datetime
    remedy: str


class Attempt(View):
    """One thing that was tried with the credentials of ``mode``."""

    mode: str
    reaches_for: str
    side: str
    what: str
    refused: bool
    answer: str
    as_it_should_be: bool


class Isolation(View):
    """Whether the modes are apart, and all that was tried to find out."""

    isolated: bool
    crossing: int
    refused: int
    own: int
    done: int
    attempts: list[Attempt]


class Reject(View):
    """A version that was not moved to the new pattern, or differs there, and why."""

    name: str
    version: int
    step: str
    reason: str


class Archive(View):
    """The last time that old rows were offered to the archiver."""

    state: str
    rows: int
    deleted: int | None = None
    bucket: str | None = None
    object_key: str | None = None


class Pattern(View):
    """In which pattern a mode is. ``optimized`` is what the flag says; ``reads`` counts compared ones by outcome."""

    phase: str
    optimized: bool
    old_rows: int
    rows_verified: int | None = None
    verified_at: datetime | None = None
    changed_at: datetime | None = None
    changed_by: str | None = None
    mismatches: int
    reads: dict[str, dict[str, int]]
    rejected: int
    rejects: list[Reject]
    job: Job | None = None
    archive: Archive | None = None
