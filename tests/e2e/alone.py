"""Runs one service in a process in which no other service, command or stack can be imported: ``alone PACKAGE``."""

from __future__ import annotations

import importlib
import runpy
import sys
from importlib.machinery import ModuleSpec
from typing import Final

STRANGERS: Final = frozenset(
    {"replank_schema", "replank_auth_cache", "replank_benchmark", "replank_archiver", "replank_cli", "replank_local"}
)


class Absent:
    """Finds the modules of some packages to be missing, as they are where only one service is installed."""

    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Raise for what is absent; leave the rest to others."""
        if name.partition(".")[0] in self._packages:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
        return None


def main() -> None:
    """Make the strangers absent, see to it that they are, and run the service."""
    package = sys.argv.pop(1)
    absent = STRANGERS - {package}
    sys.meta_path.insert(0, Absent(absent))
    for stranger in absent:
        try:
            importlib.import_module(stranger)
        except ModuleNotFoundError:
            continue
        sys.exit(f"{stranger} can be imported")
    runpy.run_module(package, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
