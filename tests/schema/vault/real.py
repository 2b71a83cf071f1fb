"""Real schemas to test with: those that the package check-jsonschema ships."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Final


def real_schemas() -> Iterator[tuple[str, bytes]]:
    """Name and text of each schema, in the order of their names."""
    vendor = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    for file in sorted(vendor.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            yield file.name, file.read_bytes()


REAL_SCHEMAS: Final = dict(real_schemas())
