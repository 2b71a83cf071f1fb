"""What nobody refers to is taken away after the grace, and nothing else ever is."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from replank.testing import eventually
from replank.testing.services import Issuer, http_alone
from replank_schema.application import compose
from replank_schema.vault import collector, contents, publishing, store
from replank_schema.vault.contents import Received
from replank_schema.vault.model import Blob, BlobBusy, BlobUnknown, Draft, blob_key
from replank_schema.vault.vault import Vault
from tests.schema.vault.conftest import Configure
from tests.schema.vault.served import ADA, upload
from tests.schema.vault.test_uploads import objects_of, vault_of

OLD = "update vault_standard.blob set touched_at = touched_at - interval '2 days'"


async def stored(vault: Vault, text: bytes) -> Blob:
    """A content that nobody refers to."""

    async def source() -> Any:
        yield text

    received = await contents.receive(vault, source(), UUID(int=1))
    assert received.data is not None
    blob = await contents.keep(vault, received.blob, received.data)
    async with vault.pool.acquire() as conn, conn.transaction():
        await contents.refer(conn, blob)
    return blob


async def test_an_unreferenced_content_goes_after_the_grace_and_not_before(
    configure: Configure, database: asyncpg.Pool
) -> None:
    async with vault_of(configure) as vault:
        blob = await stored(vault, b'{"nobody": 1}')
        assert (await collector.collect(vault)).contents == 0
        assert await objects_of(vault) == [blob_key(blob.sha256)]
        await database.execute(OLD)
        assert (await collector.collect(vault)).contents == 1
        assert await objects_of(vault) == []
        async with vault.pool.acquire() as conn:
            with pytest.raises(BlobUnknown):
                await contents.known(conn, blob.sha256)


async def test_what_any_version_refers_to_stays_for_ever(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with (
        http_alone(compose(configure()), issuer_of_tokens.token(ADA)) as client,
        vault_of(configure) as vault,
    ):
        shown = (await upload(client, "a", {"version": 1})).json()
        await client.delete(f"/schemavault/{shown['id']}")
        await database.execute(OLD)
        assert (await collector.collect(vault)).contents == 0
        assert (await client.get(f"/schemavault/{shown['id']}/content")).json() == {"version": 1}


async def test_an_object_without_a_row_is_left_alone_since_it_may_be_all_that_is_left(
    configure: Configure, issuer_of_tokens: Issuer, database: asyncpg.Pool
) -> None:
    async with (
        http_alone(compose(configure()), issuer_of_tokens.token(ADA)) as client,
        vault_of(configure, grace_seconds=1) as vault,
    ):
        shown = (await upload(client, "a", {"version": 1})).json()
        # What a restore to an earlier moment does.
        await database.execute("truncate vault_standard.blob cascade")

        async def is_old() -> bool:
            modified = (await vault.objects.stat(blob_key(shown["sha256"]))).last_modified
            return modified is not None and datetime.now(UTC) - modified > vault.limits.grace

        await eventually(is_old, "the object is older than the grace", within=10)
        assert (await collector.collect(vault)).contents == 0
        assert await objects_of(vault) == [blob_key(shown["sha256"])]


async def test_a_content_that_is_sent_while_it_is_collected_is_refused_or_stays(
    configure: Configure, database: asyncpg.Pool
) -> None:
    async with vault_of(configure) as vault:
        for number in range(20):
            blob = await stored(vault, b'{"number": %d}' % number)
            await database.execute(OLD)

            async def send(text: bytes = b'{"number": %d}' % number, name: str = f"n{number}") -> bool:
                try:
                    there = await stored(vault, text)
                    await publishing.create(vault, Draft(name=name, owner=ADA), Received(there, None), by=ADA)
                except BlobBusy:
                    return False
                return True

            sent, _ = await asyncio.gather(send(), collector.collect(vault))
            if not sent:
                assert await eventually(send, "it is taken when it is sent again", within=5)
            # Whoever was told that it is published can read it.
            async with vault.pool.acquire() as conn:
                known = await store.blob(conn, blob.sha256)
            assert known is not None
            assert await contents.read(vault, known) == b'{"number": %d}' % number


@pytest.mark.parametrize("by", ["the next collector", "who sends it again"])
async def test_what_a_collector_that_died_left_is_finished_by(
    configure: Configure, database: asyncpg.Pool, by: str
) -> None:
    async with vault_of(configure) as vault:
        text = b'{"nobody": 1}'
        blob = await stored(vault, text)
        # Died after the object was deleted, and before the row was.
        await database.execute("update vault_standard.blob set state = 'condemned'")
        await vault.objects.delete(blob_key(blob.sha256))
        if by == "the next collector":
            assert (await collector.collect(vault)).contents == 1
            assert await database.fetchval("select count(*) from vault_standard.blob") == 0
        else:
            assert await contents.read(vault, await stored(vault, text)) == text
