"""The vault's two modes on real servers: a role and an account for each, in a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from replank.contracts.schema import VaultMode
from replank.testing.plugin import AccountFactory, RoleFactory
from replank.testing.services import Issuer, Rights, basics, http_alone, playing_rights
from replank_schema.application import compose
from replank_schema.settings import SchemaSettings
from replank_schema.vault import grants
from replank_schema.vault.model import MODES
from replank_schema.vault.settings import VaultModeSettings
from tests.schema.vault import served

VaultSettings = dict[VaultMode, VaultModeSettings]


@pytest_asyncio.fixture
async def ungranted_vault(
    database: asyncpg.Pool, postgres_role: RoleFactory, s3_account: AccountFactory
) -> VaultSettings:
    """Every mode's settings on the test's migrated database, before the service first starts: the roles may connect."""
    settings = {}
    for mode in MODES:
        account = await s3_account()
        settings[mode] = VaultModeSettings(
            dsn=SecretStr(await postgres_role()),
            s3_access_key=SecretStr(account.access_key),
            s3_secret_key=SecretStr(account.secret_key),
            s3_bucket=account.bucket,
        )
    return settings


@pytest_asyncio.fixture
async def vault_settings(database: asyncpg.Pool, ungranted_vault: VaultSettings) -> VaultSettings:
    """Every mode's settings on the test's migrated database, with the rights that the service grants at its start.

    The URL of the store is the first of ``s3_server``.
    """
    async with database.acquire() as conn:
        await grants.grant(conn, {mode: settings.role for mode, settings in ungranted_vault.items()})
    return ungranted_vault


@pytest.fixture
def issuer_of_tokens(tmp_path: Path) -> Issuer:
    """Signs the tokens of everybody who calls the service."""
    return Issuer(tmp_path)


@pytest_asyncio.fixture
async def rights() -> AsyncIterator[Rights]:
    """Plays auth-cache: `served.ADA` may do everything in both modes."""
    async with playing_rights(*served.EVERYTHING) as playing:
        yield playing


class Configure(Protocol):
    """``configure(inline_bytes=…)``: the settings of a service with this vault and these limits."""

    def __call__(self, **limits: Any) -> SchemaSettings: ...


@pytest.fixture
def configure(
    *,
    vault_settings: VaultSettings,
    postgres_dsn: str,
    kafka: str,
    s3_server: tuple[str, str, str],
    issuer_of_tokens: Issuer,
    rights: Rights,
) -> Configure:
    def configured(**limits: Any) -> SchemaSettings:
        given = basics(issuer_of_tokens, dsn=postgres_dsn, kafka=kafka, name="schema", authz_url=rights.url)
        settings = {**given, "s3_url": s3_server[0], "vault": vault_settings, "vault_limits": limits}
        return SchemaSettings.model_validate(settings)

    return configured


@pytest_asyncio.fixture
async def client(configure: Configure, issuer_of_tokens: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service without its relay, consumers and work, for `served.ADA`."""
    async with http_alone(compose(configure()), issuer_of_tokens.token(served.ADA)) as client:
        yield client
