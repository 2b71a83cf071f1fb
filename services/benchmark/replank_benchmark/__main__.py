"""``python -m replank_benchmark``: see `replank.serving`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from replank import serving
from replank_benchmark.settings import BenchmarkSettings

if TYPE_CHECKING:
    from replank.service import Service


def main() -> None:
    """The command of the service."""
    sys.exit(serving.main("replank_benchmark", BenchmarkSettings, _compose))


def _compose(settings: BenchmarkSettings) -> Service:
    # Not at the top: migrating needs none of what serving does.
    from replank_benchmark.application import compose  # noqa: PLC0415

    return compose(settings)


if __name__ == "__main__":
    main()
