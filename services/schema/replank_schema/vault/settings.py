"""How the vault is configured: a role and an account for each mode, and how much is taken."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from replank.postgres import PoolSettings
from replank.settings import PostgresUrl

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB


class VaultModeSettings(BaseModel):
    """How one mode reaches its tables and its bucket, by a role and an account that reach nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dsn: PostgresUrl
    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    s3_bucket: str

    @property
    def role(self) -> str:
        """The database role of this mode; empty when the dsn names none."""
        return role_of(self.dsn)


def role_of(dsn: SecretStr) -> str:
    """The role that a DSN connects as; empty when it names none."""
    return unquote(urlsplit(dsn.get_secret_value()).username or "")


class VaultLimits(BaseModel):
    """How much the vault takes, and how long it keeps what nobody refers to. Sizes are bytes, times seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    most_bytes: int = Field(default=2 * GIB, ge=KIB, le=64 * GIB)
    """The largest content."""
    inline_bytes: int = Field(default=4 * MIB, ge=KIB, le=64 * MIB)
    """Up to here a content is published before its upload is answered; a larger one becomes a job."""
    judge_bytes: int = Field(default=MIB, ge=KIB, le=16 * MIB)
    """Up to here two versions are compared as a whole, which takes many times their size in memory."""
    grace_seconds: float = Field(default=24 * 3600.0, ge=1)
    """How long a content that nobody refers to, and an upload that was not finished, is kept."""
    consumer_days: float = Field(default=30, gt=0)
    """For how long after it was last seen a consumer counts as a live one."""
    collect_every: float = Field(default=3600.0, ge=1)
    job_lease: float = Field(default=15.0, ge=1)
    """How long a job stays with a process that died."""
    moves_per_second: float | None = Field(default=200.0, gt=0)
    """How many rows a second are moved from the old pattern to the new one, or verified."""
    pool: PoolSettings = PoolSettings(max_size=10, acquire_timeout=5.0, statement_timeout=30.0)

    @property
    def grace(self) -> timedelta:
        return timedelta(seconds=self.grace_seconds)
