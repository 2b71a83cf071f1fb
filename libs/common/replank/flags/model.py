"""A flag: what it may be, and whom a partial rollout reaches. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from pydantic import JsonValue, TypeAdapter, ValidationError

from replank.contracts.fields import Actor
from replank.contracts.flags import FLAG_NAME_PATTERN, FlagChanged
from replank.flags.errors import FlagValueTooLarge, InvalidFlag

MAX_VALUE_BYTES: Final = 64 * 1024
MAX_REASON: Final = 2000

FlagValue: TypeAlias = bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue]

_NAME: Final = re.compile(FLAG_NAME_PATTERN)
_ACTOR: Final[TypeAdapter[str]] = TypeAdapter(Actor)
# Neither Postgres' jsonb nor UTF-8 can carry these.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Flag:
    """The state of a flag.

    ``value`` is what those get whom the flag reaches: if ``enabled``, ``rollout`` per cent of the targeting keys. All
    others get the default of the code that asks. ``version`` only grows. A deleted flag is kept, with the value None,
    so that an older change that arrives late cannot bring it back.
    """

    name: str
    value: JsonValue
    enabled: bool
    rollout: float
    version: int
    deleted: bool
    updated_by: str
    reason: str
    updated_at: datetime

    @classmethod
    def of(cls, event: FlagChanged) -> Flag:
        """The flag that an event tells of. Raises `InvalidFlag` for what a contract cannot express."""
        if not event.deleted:
            encode_value(event.name, event.value)
        return cls(
            name=event.name,
            value=None if event.deleted else event.value,
            enabled=event.enabled,
            rollout=check_rollout(event.name, event.rollout),
            version=event.version,
            deleted=event.deleted,
            updated_by=event.updated_by,
            reason=event.reason,
            updated_at=event.updated_at,
        )

    def changed(self) -> FlagChanged:
        """The event that tells of this state."""
        return FlagChanged(
            name=self.name,
            version=self.version,
            deleted=self.deleted,
            enabled=self.enabled,
            value=self.value,
            rollout=self.rollout,
            updated_by=self.updated_by,
            reason=self.reason,
            updated_at=self.updated_at,
        )

    def reaches(self, targeting_key: str) -> bool:
        """Whether a partial rollout includes this key."""
        return bucket(self.name, targeting_key) < self.rollout


def bucket(name: str, targeting_key: str) -> float:
    """Where a targeting key falls for a flag, from 0 (inclusive) to 100 (exclusive).

    The first 8 bytes of SHA-256 over ``name``, a zero byte and ``targeting_key`` (UTF-8), as a big-endian integer,
    divided by 2**64, times 100, cut to three decimals. So every process decides alike, a growing rollout only adds
    keys, and different flags reach different keys.
    """
    digest = hashlib.sha256(f"{name}\0{targeting_key}".encode(errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") * 100_000 >> 64) / 1000


def check_name(name: str) -> str:
    """Return the name, or raise `InvalidFlag`."""
    if not _NAME.fullmatch(name):
        raise InvalidFlag(
            f"the flag name {name[:80]!r} is malformed",
            fix="use 1 to 128 letters, digits, dots, dashes and underscores, the first a letter or digit",
        )
    return name


def check_rollout(name: str, rollout: object) -> float:
    """Return the percentage, or raise `InvalidFlag`."""
    if isinstance(rollout, bool) or not isinstance(rollout, (int, float)) or not 0 <= rollout <= 100:
        raise InvalidFlag(f"the rollout of the flag {name} is {rollout!r}", fix="give a percentage from 0 to 100")
    if round(rollout, 3) != rollout:
        raise InvalidFlag(f"the rollout {rollout} of the flag {name} is too fine", fix="use at most three decimals")
    return float(rollout)


def check_author(name: str, by: str, reason: str) -> None:
    """Raise `InvalidFlag` unless the change says who made it, and its reason can be kept."""
    try:
        _ACTOR.validate_python(by, strict=True)
    except ValidationError:
        raise InvalidFlag(
            f"the author {str(by)[:80]!r} of the change to the flag {name} is malformed",
            fix="name who changes it as type:id, such as user:ada",
        ) from None
    if len(reason) > MAX_REASON or _UNSTORABLE.search(reason):
        raise InvalidFlag(
            f"the reason of the change to the flag {name} is too long or not text", fix=f"use {MAX_REASON} characters"
        )


def encode_value(name: str, value: object) -> str:
    """The value as JSON text. Raises `InvalidFlag`, `FlagValueTooLarge`."""
    if value is None:
        raise InvalidFlag(f"the flag {name} has no value", fix="give a boolean, string, number, array or object")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidFlag(
            f"the value of the flag {name} is not JSON: {error}", fix="use booleans, numbers, strings, lists and dicts"
        ) from None
    if len(text) > MAX_VALUE_BYTES or len(text.encode(errors="surrogatepass")) > MAX_VALUE_BYTES:
        raise FlagValueTooLarge(
            f"the value of the flag {name} is larger than {MAX_VALUE_BYTES} bytes of JSON",
            fix="keep large settings elsewhere and name them in the flag",
        )
    if _UNSTORABLE.search(text) or _has_escaped_nul(value):
        raise InvalidFlag(f"the value of the flag {name} has a NUL character or a lone surrogate")
    return text


def _has_escaped_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, Mapping):
        return any(_has_escaped_nul(part) for item in value.items() for part in item)
    if isinstance(value, (list, tuple)):
        return any(_has_escaped_nul(part) for part in value)
    return False
