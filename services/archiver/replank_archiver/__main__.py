"""``python -m replank_archiver``: see `replank.serving`."""

from __future__ import annotations

import sys

from replank import serving
from replank_archiver.application import compose
from replank_archiver.settings import ArchiverSettings


def main() -> None:
    """The command of the service."""
    sys.exit(serving.main("replank_archiver", ArchiverSettings, compose))


if __name__ == "__main__":
    main()
