"""``python -m replank_schema``: see `replank.serving`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from replank import serving
from replank_schema.settings import SchemaSettings

if TYPE_CHECKING:
    from replank.service import Service


def main() -> None:
    """The command of the service."""
    sys.exit(serving.main("replank_schema", SchemaSettings, _compose))


def _compose(settings: SchemaSettings) -> Service:
    # Not at the top: migrating needs none of what serving does.
    from replank_schema.application import compose  # noqa: PLC0415

    return compose(settings)


if __name__ == "__main__":
    main()
