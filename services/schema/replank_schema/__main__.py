"""``python -m replank_schema``: see `replank.serving`."""

from __future__ import annotations

import sys

from replank import serving
from replank_schema.application import compose
from replank_schema.settings import SchemaSettings


def main() -> None:
    """The command of the service."""
    sys.exit(serving.main("replank_schema", SchemaSettings, compose))


if __name__ == "__main__":
    main()
