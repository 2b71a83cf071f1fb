"""Whoever administers both modes of the vault has it proven over HTTP that they are apart."""

from __future__ import annotations

from collections import Counter

import asyncpg
import httpx

from replank.testing.services import Rights
from tests.schema.vault.conftest import VaultSettings
from tests.schema.vault.served import ADA, problem

VERIFY = "/v1/vault/verify-isolation"


async def test_every_cross_access_is_tried_and_its_refusal_told(client: httpx.AsyncClient) -> None:
    answer = await client.post(VERIFY)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["isolated"]
    assert found["refused"] == found["crossing"] > 0
    assert found["done"] == found["own"] > 0
    assert len(found["attempts"]) == found["crossing"] + found["own"]
    told = Counter((one["mode"], one["reaches_for"], one["side"], one["refused"]) for one in found["attempts"])
    for mode, other in (("standard", "pro"), ("pro", "standard")):
        for side in ("database", "object store"):
            assert told[mode, other, side, True] > 3
            assert told[mode, other, side, False] == 0
            assert told[mode, mode, side, False] > 3


async def test_a_way_that_is_open_is_told_and_closed_ones_still_count(
    client: httpx.AsyncClient, database: asyncpg.Pool, vault_settings: VaultSettings
) -> None:
    role = vault_settings["standard"].role
    async with database.acquire() as owner:
        await owner.execute(f'grant usage on schema vault_pro to "{role}"')
        await owner.execute(f'grant select on vault_pro.version to "{role}"')
    found = (await client.post(VERIFY)).json()
    assert not found["isolated"]
    assert found["refused"] == found["crossing"] - 2
    open_ways = {(one["mode"], one["what"]) for one in found["attempts"] if not one["as_it_should_be"]}
    assert open_ways == {("standard", "select: version"), ("standard", "select by search_path: version")}


async def test_who_administers_one_mode_alone_may_not_try_the_other(client: httpx.AsyncClient, rights: Rights) -> None:
    rights.allowed.discard((ADA, "admin", "vault:pro"))
    document = problem(await client.post(VERIFY), 403, "forbidden")
    assert document["object"] == "vault:pro"


async def test_no_password_or_key_is_told(client: httpx.AsyncClient, vault_settings: VaultSettings) -> None:
    text = (await client.post(VERIFY)).text
    for settings in vault_settings.values():
        assert settings.s3_secret_key.get_secret_value() not in text
        assert settings.s3_access_key.get_secret_value() not in text
        assert settings.dsn.get_secret_value() not in text
