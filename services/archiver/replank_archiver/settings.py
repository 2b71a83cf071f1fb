"""Settings, from variables that start with ``REPLANK_ARCHIVER_``."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from replank.settings import EventServiceSettings, HttpUrl


class ArchiverSettings(EventServiceSettings):
    """The archiver cannot do without auth-cache and an object store, which others can."""

    model_config = SettingsConfigDict(env_prefix="REPLANK_ARCHIVER_")

    authz_url: HttpUrl
    service_token_file: Path
    s3_url: HttpUrl
    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    s3_bucket: str
    schema_url: HttpUrl | None = None
    """Where the schema service is. Without it requests to archive its rows become dead letters, to be redriven."""
