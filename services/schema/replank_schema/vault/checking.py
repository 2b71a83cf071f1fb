"""Looking into contents, in threads: what differs between two, and whether one is a valid JSON Schema."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from replank.http import Problem
from replank_schema.vault import contents
from replank_schema.vault.compatibility import judge
from replank_schema.vault.difference import difference
from replank_schema.vault.model import Blob
from replank_schema.vault.vault import Vault
from replank_schema.vault.views import (
    CompatibilityView,
    DifferenceQuery,
    DifferenceView,
    ProblemPlace,
    ReasonView,
    ValidityView,
)

_MOST_PROBLEMS: Final = 50


async def difference_of(vault: Vault, older: Blob, newer: Blob, asked: DifferenceQuery) -> DifferenceView:
    """What differs between two contents. Raises the 422 `Problem` where one is too large to be held as a whole."""
    _require_small(vault, older, newer)
    texts = await asyncio.gather(contents.read(vault, older), contents.read(vault, newer))

    def compare() -> DifferenceView:
        was, now = (json.loads(text) for text in texts)
        found = difference(was, now)
        compatibility = None
        if (older.kind, newer.kind) == ("schema", "schema"):
            verdict = judge(was, now)
            compatibility = CompatibilityView(
                backward=verdict.backward,
                forward=verdict.forward,
                full=verdict.full,
                reasons=[
                    ReasonView(path=reason.path, direction=reason.direction, text=reason.text)
                    for reason in verdict.reasons
                ],
            )
        return DifferenceView(
            older=asked.older,
            newer=asked.newer,
            added=list(found.added),
            removed=list(found.removed),
            changed=list(found.changed),
            differences=found.count,
            compatibility=compatibility,
        )

    return await asyncio.to_thread(compare)


async def check_validity(vault: Vault, blob: Blob) -> ValidityView:
    """Check a content against the metaschema that it names. Raises the 422 `Problem` where it is too large."""
    _require_small(vault, blob)
    text = await contents.read(vault, blob)

    def check() -> ValidityView:
        schema: Any = json.loads(text)
        validator = validator_for(schema, default=Draft202012Validator)
        meta = validator(validator.META_SCHEMA)
        problems = [
            ProblemPlace(path="".join(f"/{part}" for part in error.absolute_path), problem=_rule(error))
            for error in itertools.islice(meta.iter_errors(schema), _MOST_PROBLEMS)
        ]
        return ValidityView(valid=not problems, draft=str(validator.META_SCHEMA.get("$schema", "")), problems=problems)

    return await asyncio.to_thread(check)


def _rule(error: Any) -> str:
    # The library's own text quotes what it found, at any length.
    return f"breaks the rule {error.validator} of the metaschema"


def _require_small(vault: Vault, *blobs: Blob) -> None:
    if any(blob.size > vault.limits.judge_bytes for blob in blobs):
        raise Problem(
            422,
            "content-too-large-to-compare",
            f"only contents of up to {vault.limits.judge_bytes} bytes are looked into",
            fix="fetch the content and look into it there",
        )
