"""Relation tuples and what can go wrong with them, in OpenFGA's terms."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from replank.errors import ReplankError


@dataclass(frozen=True, slots=True, order=True)
class RelationTuple:
    """``user`` has ``relation`` to ``object``."""

    user: str
    relation: str
    object: str

    def __str__(self) -> str:
        return f"user: '{self.user}', relation: '{self.relation}', object: '{self.object}'"


@dataclass(frozen=True, slots=True)
class Answer:
    """What Postgres says about one tuple, and the store's revision that it says it of, read in one snapshot."""

    incarnation: UUID
    revision: int
    allowed: bool


class OnConflict(StrEnum):
    """What to do about a tuple that is there already (when writing) or is not there (when deleting)."""

    ERROR = "error"
    IGNORE = "ignore"


class UnknownStore(ReplankError):
    """There is no store of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"store {name!r} does not exist", fix="name one of the stores in the setting STORES")


class WriteConflict(ReplankError):
    """A tuple to write exists already, or one to delete does not. Nothing was changed."""
