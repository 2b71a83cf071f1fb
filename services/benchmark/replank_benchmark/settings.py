"""Settings, from variables that start with ``REPLANK_BENCHMARK_``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from replank.contracts.fields import Slug
from replank.settings import EventServiceSettings, HttpUrl, PostgresUrl


class BenchmarkSettings(EventServiceSettings):
    """What the benchmark service is told beyond what every service is."""

    model_config = SettingsConfigDict(env_prefix="REPLANK_BENCHMARK_")

    authz_url: HttpUrl
    service_token_file: Path
    targets: dict[Slug, PostgresUrl] = Field(default_factory=dict)
    """The databases to measure, by name, as JSON; each URL should be of a role that can only read."""
    target_timeout: float = Field(default=10.0, gt=0, le=30)
    """How long the capture of one baseline may take, in seconds."""
    target_attempts: int = Field(default=5, ge=1, le=100)
    """How often a target that does not answer is tried before its baseline counts as failed."""
