"""Where things are: the checkout, this user's cache, a stack's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[3]
DEPLOY: Final = CHECKOUT / "deploy"
STACK_ROOT: Final = CHECKOUT / ".local"
TEST_PREFIX: Final = "test-"
"""What the folders of test runs, below that of the stack, are called first."""


def cache_folder() -> Path:
    """Where downloads and builds are kept, each under its version, for every checkout of this user."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "replank"
