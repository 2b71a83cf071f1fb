"""Settings, from variables that start with ``REPLANK_SCHEMA_``."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from replank.contracts.fields import Slug
from replank.contracts.schema import VaultMode
from replank.settings import EventServiceSettings, HttpUrl, PostgresUrl
from replank_schema.vault.model import MODES
from replank_schema.vault.settings import VaultLimits, VaultModeSettings, role_of


def _identities(dsn: SecretStr, access_key: SecretStr | None, bucket: str | None) -> dict[str, str]:
    return {
        "database role": role_of(dsn),
        "S3 access key": access_key.get_secret_value() if access_key else "",
        "bucket": bucket or "",
    }


class SchemaSettings(EventServiceSettings):
    """The schema service cannot do without auth-cache, which others can."""

    model_config = SettingsConfigDict(env_prefix="REPLANK_SCHEMA_")
    elsewhere = {  # noqa: RUF012 - a ClassVar of the base
        "vault": {
            mode: {
                "dsn": f"postgresql://{mode}@nowhere/none",
                "s3_access_key": mode,
                "s3_secret_key": "none",
                "s3_bucket": f"{mode}-none",
            }
            for mode in MODES
        }
    }

    authz_url: HttpUrl
    service_token_file: Path
    databases: dict[Slug, PostgresUrl] = Field(default_factory=dict)
    """The databases that migrations may move between, by name: ``{"shop": "postgresql://…"}``."""
    run_migrations: bool = True
    """Whether this process does the work of migrations. Otherwise another one must."""
    lease_seconds: float = Field(default=5.0, ge=0.5, le=60)
    """How long a migration stays with a process that died."""
    vault: dict[VaultMode, VaultModeSettings] = Field(default_factory=dict)
    """Credentials of the vault, of every mode; without any there is no vault. The store's URL is ``s3_url``."""

    vault_limits: VaultLimits = VaultLimits()
    use_optimized_schemas: bool = True
    """What the flag ``USE_OPTIMIZED_SCHEMAS`` is where it was not set: whether a mode of the vault may keep contents in
    the object store. Before anything was written it chooses the pattern that a mode begins with."""

    @field_validator("vault")
    @classmethod
    def _modes_are_apart(
        cls, vault: dict[VaultMode, VaultModeSettings], info: ValidationInfo
    ) -> dict[VaultMode, VaultModeSettings]:
        if not vault:
            return vault
        if missing := [mode for mode in MODES if mode not in vault]:
            raise ValueError(f"does not configure {', '.join(missing)}: configure every mode, or none")
        if not info.data.get("s3_url"):
            raise ValueError(f"needs the object store's address: set {cls.variable('s3_url')}")
        if unnamed := [mode for mode, given in vault.items() if not given.role]:
            # libpq would take the account of this process, which could be the same for both.
            raise ValueError(f"names no role in the dsn of {', '.join(unnamed)}")
        known = {
            f"mode {mode}": _identities(given.dsn, given.s3_access_key, given.s3_bucket)
            for mode, given in vault.items()
        }
        if "dsn" in info.data:  # otherwise that is an error of its own
            key, bucket = info.data.get("s3_access_key"), info.data.get("s3_bucket")
            known["the service itself"] = _identities(info.data["dsn"], key, bucket)
        for (one, its), (other, others) in combinations(known.items(), 2):
            if shared := [what for what, who in its.items() if who and who == others[what]]:
                raise ValueError(
                    f"gives {one} and {other} the same {' and the same '.join(shared)}: each needs its own"
                )
        return vault
