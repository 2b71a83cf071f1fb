"""Where the demo finds what it tells of: the environment that ``replank env`` prints, and the example's own files."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from replank.errors import ConfigurationError

SERVICES: Final = ("schema", "auth-cache", "benchmark", "archiver")
_SHOP: Final = "replank_storefront"


@dataclass(frozen=True, slots=True)
class Places:
    """The running stack, as far as the demo needs it. ``jaeger`` is None where there is none."""

    urls: Mapping[str, str]
    """Where each service answers, by its name."""
    shop: str
    kv_dsn: str
    """The shop's database with the key-value table."""
    tables_dsn: str
    token: str
    jaeger: str | None
    mapping: Path
    """How the shop's records become tables."""

    @classmethod
    def from_environment(cls) -> Self:
        """Raises `ConfigurationError` for what is missing."""
        return cls(
            urls={service: _needed(f"REPLANK_{service.upper().replace('-', '_')}_URL") for service in SERVICES},
            shop=_needed("REPLANK_STOREFRONT_URL"),
            kv_dsn=_needed("REPLANK_STOREFRONT_DSN"),
            tables_dsn=_needed("REPLANK_STOREFRONT_TABLES_DSN"),
            token=_needed("REPLANK_TOKEN"),
            jaeger=os.environ.get("REPLANK_JAEGER_URL") or None,
            mapping=_mapping(),
        )


def _needed(variable: str) -> str:
    if found := os.environ.get(variable):
        return found
    raise ConfigurationError(f"{variable} is not set", fix='run `make demo`, or eval "$(make env)" with the stack up')


def _mapping() -> Path:
    found = importlib.util.find_spec(_SHOP)
    if found is None or found.origin is None:
        raise ConfigurationError("the storefront is not installed here", fix="run the demo in a checkout of Replank")
    return Path(found.origin).parents[1] / "mapping.yaml"
