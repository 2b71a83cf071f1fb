"""Settings, from variables that start with ``REPLANK_AUTH_CACHE_``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import SettingsConfigDict

from replank.contracts.auth_cache import STORE
from replank.contracts.fields import Actor, Relation, Slug, Thing
from replank.settings import EventServiceSettings


class BootstrapTuple(BaseModel):
    """A tuple that is there from the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: Actor
    relation: Relation
    object: Thing


class AuthCacheSettings(EventServiceSettings):
    """What auth-cache is told beyond what every service is."""

    model_config = SettingsConfigDict(env_prefix="REPLANK_AUTH_CACHE_")

    stores: tuple[Slug, ...] = (STORE,)
    """The stores to keep, as JSON."""
    bootstrap_tuples: tuple[BootstrapTuple, ...] = ()
    """Tuples that are added to the store ``replank`` at start if they are missing, as JSON."""
    decision_ttl: float = Field(default=60.0, ge=1, le=3600)
    """How long a decision stays in Valkey, in seconds. Changes take effect at once whatever this is."""
    revision_max_age: float = Field(default=0.2, ge=0, le=60)
    """How long a change that another process applied may go unnoticed here, in seconds. 0 asks Postgres each time."""
