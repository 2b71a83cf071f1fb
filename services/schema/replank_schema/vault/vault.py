"""One mode of the vault: its database pool, its bucket, and how much it takes. Nothing here knows of another mode."""

from __future__ import annotations

from dataclasses import dataclass

from replank.contracts.schema import VaultMode
from replank.objects import ObjectStore, ObjectStoreSettings
from replank.postgres import Pool
from replank_schema.vault.pattern import Switch
from replank_schema.vault.settings import KIB, MIB, VaultLimits, VaultModeSettings


@dataclass(frozen=True, slots=True)
class Vault:
    """What the use cases of one mode work on."""

    mode: VaultMode
    role: str
    pool: Pool
    objects: ObjectStore
    limits: VaultLimits
    switch: Switch

    async def close(self) -> None:
        """Close the pool and the idle connections of the object store."""
        self.objects.close()
        await self.pool.close(within=10.0)


def open_vault(
    mode: VaultMode,
    settings: VaultModeSettings,
    *,
    s3_url: str,
    limits: VaultLimits,
    switch: Switch | None = None,
) -> Vault:
    """A mode with its own role and its own account. Opens nothing yet. ``switch``: its pattern's, by default on."""
    return Vault(
        mode=mode,
        role=settings.role,
        pool=Pool(
            f"vault_{mode}",
            settings.dsn.get_secret_value(),
            limits.pool,
            service="schema",
            target="primary",
            read_only=False,
            search_path=f"vault_{mode}",
        ),
        objects=ObjectStore(
            ObjectStoreSettings(
                url=s3_url,
                bucket=settings.s3_bucket,
                access_key=settings.s3_access_key,
                secret_key=settings.s3_secret_key,
                # Small, so that a large content takes little memory: a put holds four parts, a get one chunk, which
                # grows by what decompressing makes of it.
                part_size=5 * MIB,
                chunk_size=128 * KIB,
                concurrency=16,
            )
        ),
        limits=limits,
        switch=switch or Switch(mode),
    )
