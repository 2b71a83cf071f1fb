"""Settings, from variables that start with ``REPLANK_SCHEMA_``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from replank.contracts.fields import Slug
from replank.settings import EventServiceSettings, HttpUrl, PostgresUrl


class SchemaSettings(EventServiceSettings):
    """The schema service cannot do without auth-cache, which others can."""

    model_config = SettingsConfigDict(env_prefix="REPLANK_SCHEMA_")

    authz_url: HttpUrl
    service_token_file: Path
    databases: dict[Slug, PostgresUrl] = Field(default_factory=dict)
    """The databases that migrations may move between, by name: ``{"shop": "postgresql://…"}``."""
    run_migrations: bool = True
    """Whether this process does the work of migrations. Otherwise another one must."""
    lease_seconds: float = Field(default=5.0, ge=0.5, le=60)
    """How long a migration stays with a process that died."""
