"""Settings, from variables that start with ``REPLANK_STOREFRONT_``."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from replank.settings import EventServiceSettings, PostgresUrl


class StorefrontSettings(EventServiceSettings):
    """``dsn`` is the database with the key-value table, ``tables_dsn`` the one where the tables are, or will be."""

    model_config = SettingsConfigDict(env_prefix="REPLANK_STOREFRONT_")

    tables_dsn: PostgresUrl
    migration: str = Field(default="storefront", pattern=r"[a-z][a-z0-9_]{0,39}")
    """The name of the migration, as its mapping has it: the flags that move reads are named after it."""
    run_relay: bool = False
    """Who runs the migration publishes what it captures."""
