"""Settings, from variables that start with ``REPLANK_ARCHIVER_``."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from replank.objects import ObjectStoreSettings
from replank.service import EventServiceSettings
from replank.settings import HttpUrl


class ArchiverSettings(EventServiceSettings):
    """The archiver cannot do without auth-cache and an object store, which others can."""

    model_config = SettingsConfigDict(env_prefix="REPLANK_ARCHIVER_")

    authz_url: HttpUrl
    service_token_file: Path
    s3_url: HttpUrl
    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    s3_bucket: str

    def object_store(self) -> ObjectStoreSettings:
        """The settings of the object store's client."""
        return ObjectStoreSettings(
            url=self.s3_url,
            bucket=self.s3_bucket,
            access_key=self.s3_access_key,
            secret_key=self.s3_secret_key,
        )
