"""``python -m replank_auth_cache``: see `replank.serving`."""

from __future__ import annotations

import sys

from replank import serving
from replank_auth_cache.application import compose
from replank_auth_cache.settings import AuthCacheSettings


def main() -> None:
    """The command of the service."""
    sys.exit(serving.main("replank_auth_cache", AuthCacheSettings, compose))


if __name__ == "__main__":
    main()
