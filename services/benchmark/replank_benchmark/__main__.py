"""``python -m replank_benchmark``: see `replank.serving`."""

from __future__ import annotations

import sys

from replank import serving
from replank_benchmark.application import compose
from replank_benchmark.settings import BenchmarkSettings


def main() -> None:
    """The command of the service."""
    sys.exit(serving.main("replank_benchmark", BenchmarkSettings, compose))


if __name__ == "__main__":
    main()
