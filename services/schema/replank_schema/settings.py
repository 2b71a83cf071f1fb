"""Settings, from variables that start with ``REPLANK_SCHEMA_``."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import SettingsConfigDict

from replank.settings import EventServiceSettings, HttpUrl


class SchemaSettings(EventServiceSettings):
    """The schema service cannot do without auth-cache, which others can."""

    model_config = SettingsConfigDict(env_prefix="REPLANK_SCHEMA_")

    authz_url: HttpUrl
    service_token_file: Path
