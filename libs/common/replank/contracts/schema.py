"""What the schema service says: a migration was planned, a migration may start.

All events of one migration have its id as their key, so they arrive in order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, JsonValue, StringConstraints, model_validator

from replank.contracts.fields import Actor, Instant, Label, Sha256, Slug
from replank.events import Event

TOPIC: Final = "replank.schema"

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
