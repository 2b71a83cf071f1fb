"""Mappings as they are kept with a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue

from replank.migrate import mapping as mappings


def as_json(mapping: mappings.Mapping) -> dict[str, JsonValue]:
    """A mapping as it is kept, without what goes without saying; `from_json` reads it again."""
    kept: dict[str, JsonValue] = mapping.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return kept


def from_json(kept: Mapping[str, JsonValue]) -> mappings.Mapping:
    """A mapping that was kept. Raises `InvalidMapping` for one that this version no longer takes."""
    return mappings.load(json.dumps(kept))
