"""What request bodies have in common."""

from __future__ import annotations

import math
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, model_validator

_BIGINT: Final = 2**63


class RequestModel(BaseModel):
    """Base of request bodies: unknown fields are refused, and so is what Postgres could not store.

    JSON as Python reads it allows NUL characters, lone surrogates, NaN, infinities and integers of any length, anywhere
    in a free-form field; columns allow none of them. Here they are a fault of the request, not an internal error later.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        require_storable(data)
        return data


def require_storable(data: Any) -> None:
    """Raise `ValueError` for a value with something in it, at any depth, that Postgres or JSON cannot carry."""
    queue = [data]
    while queue:
        match queue.pop():
            case str() as text if "\x00" in text or not _encodable(text):
                raise ValueError("contains a character that cannot be stored (NUL or half a surrogate pair)")
            case float() as number if not math.isfinite(number):
                raise ValueError("contains a number that JSON does not have (NaN or an infinity)")
            case int() as number if not -_BIGINT <= number < _BIGINT:
                raise ValueError("contains an integer of more than 64 bits")
            case dict() as members:
                queue.extend(members)
                queue.extend(members.values())
            case list() as items:
                queue.extend(items)
            case _:
                pass


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
