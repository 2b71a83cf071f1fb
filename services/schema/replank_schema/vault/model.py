"""What the vault keeps, and what can be wrong with it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import JsonValue, StringConstraints

from replank.contracts.schema import VaultMode
from replank.errors import ReplankError

MODES: Final[tuple[VaultMode, ...]] = ("standard", "pro")

#: Segments of letters, digits and ``._@+-``, joined by slashes, each beginning with a letter or digit: so there is no
#: empty, hidden, ``.`` or ``..`` segment, whatever is made of the name.
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._@+-]*(/[A-Za-z0-9][A-Za-z0-9._@+-]*)*$"
Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=NAME_PATTERN)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")]

Kind = Literal["schema", "document"]
Status = Literal["active", "deleted"]

INCOMING: Final = "incoming/"
"""Where large uploads are until they are published. No blob's key begins so."""

EXPORTS: Final = "exports/"
"""Where rows of the old pattern are until the archiver has them. No blob's key begins so."""

_WORD_BORDER: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")


class Sort(StrEnum):
    """What a listing is sorted by; what begins with ``-`` has the greatest first."""

    NAME = "name"
    NAME_DOWN = "-name"
    UPDATED = "updated_at"
    UPDATED_DOWN = "-updated_at"
    CREATED = "created_at"
    CREATED_DOWN = "-created_at"
    SIZE = "size"
    SIZE_DOWN = "-size"
    FIELDS = "field_count"
    FIELDS_DOWN = "-field_count"

    @property
    def column(self) -> str:
        return self.value.removeprefix("-")

    @property
    def descending(self) -> bool:
        return self.value.startswith("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which schemas a listing has. What is None does not filter; ``words`` is a full-text query as people type it."""

    status: Status = "active"
    prefix: str | None = None
    owner: str | None = None
    tags: Sequence[str] = ()
    kind: Kind | None = None
    words: str | None = None
    metadata: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One content. ``size`` is its own in bytes, ``stored_size`` that of the object, which is compressed."""

    sha256: str
    size: int
    stored_size: int
    frame_size: int
    kind: Kind
    field_count: int
    fields_exact: bool
    fields: Sequence[str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What is known of a schema or document: its current version's facts, and what people said of it.

    ``revision`` counts every change, ``version`` those of the content.
    """

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
    tags: Sequence[str]
    metadata: Mapping[str, JsonValue]
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str
    deleted_at: datetime | None
    deleted_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a schema. ``backward`` and ``forward`` are against the version before; None: not judged."""

    schema_id: UUID
    version: int
    sha256: str
    size: int
    kind: Kind
    field_count: int
    fields_exact: bool
    note: str
    backward: bool | None
    forward: bool | None
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What somebody says of a schema that is to be published."""

    name: str
    owner: str
    description: str = ""
    tags: Sequence[str] = ()
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What changes of a schema beside its content. None: stays."""

    owner: str | None = None
    description: str | None = None
    tags: Sequence[str] | None = None
    metadata: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class Consumer:
    """Somebody who was seen using a schema: how often, and when."""

    consumer: str
    events: int
    first_at: datetime
    last_at: datetime


class VaultError(ReplankError):
    """Base of what the vault refuses."""


class SchemaNotFound(VaultError):
    """There is no such schema, version or blob."""


class NameTaken(VaultError):
    """An active schema has this name."""


class RevisionChanged(VaultError):
    """The schema was changed since the caller saw it."""


class NotActive(VaultError):
    """The schema is deleted, or is not."""


class BlobUnknown(VaultError):
    """The content with this digest is not in the vault: it has to be sent."""


class BlobBusy(VaultError):
    """The content with this digest is being collected right now. Sending it again in a moment helps."""


class DigestMismatch(VaultError):
    """The content does not have the digest that was declared. Nothing was stored."""


class StillUsed(VaultError):
    """Somebody uses it, and would lose or misread it."""

    def __init__(self, message: str, *, fix: str, consumers: Sequence[Consumer], reasons: Sequence[str] = ()) -> None:
        super().__init__(message, fix=fix)
        self.consumers = consumers
        self.reasons = reasons


def blob_key(sha256: str) -> str:
    """Where a content is in the bucket. Listed in the order of the digests."""
    return f"{sha256[:2]}/{sha256}"


def sha256_of_key(key: str) -> str | None:
    """The digest of the content that is kept under a key; None for a key of something else."""
    folder, _, sha256 = key.partition("/")
    if len(sha256) != 64 or sha256[:2] != folder or not all(digit in "0123456789abcdef" for digit in sha256):
        return None
    return sha256


def thing(mode: VaultMode, schema_id: UUID) -> str:
    """What a schema is for authorization and as an event's subject."""
    return f"schema:{mode}.{schema_id}"


def words_of(names: Sequence[str]) -> str:
    """Names as text to be searched: each whole, and cut into the words that it is made of."""
    words: dict[str, None] = {}
    for name in names:
        words[name] = None
        words.update(dict.fromkeys(word for word in _WORD_BORDER.split(name) if word))
    return " ".join(words)
