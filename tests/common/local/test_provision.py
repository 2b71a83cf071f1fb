"""What an operator makes is there after a first start, after a second one, and after a restart of the servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from replank.objects.signed import SignedRequests
from replank_local import Stack
from replank_local.provision import provision
from replank_local.services import PROGRAMS, SERVICES, VAULTS, Vault

pytestmark = pytest.mark.servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """The servers that are provisioned, twice."""
    async with Stack(tmp_path_factory.mktemp("provision") / "stack", servers=["postgres", "s3"]) as started:
        await provision(started.endpoints, started.secrets)
        await provision(started.endpoints, started.secrets)
        yield started


def account(stack: Stack, vault: Vault) -> SignedRequests:
    return SignedRequests(stack.endpoints.s3, vault.access_key, stack.secrets.password(vault.secret))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("vault", VAULTS, ids=lambda vault: vault.mode)
async def test_the_role_of_a_mode_may_connect_to_the_schema_services_database_and_nothing_else(
    vault: Vault, stack: Stack
) -> None:
    own = SERVICES["schema"].database
    conn = await asyncpg.connect(stack.endpoints.postgres(role=vault.role, database=own))
    try:
        for statement in ("create table public.mine ()", "create temporary table mine ()", "create schema mine"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute(statement)
        granted = "select rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls from pg_roles"
        assert not await conn.fetchval(f"{granted} where rolname = current_user")
        assert not await conn.fetchval("select count(*) from pg_auth_members where member = current_user::regrole")
    finally:
        await conn.close()
    others = {name for program in PROGRAMS.values() for name in program.databases.values()} - {own}
    for database in (*sorted(others), "postgres", "template1"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(stack.endpoints.postgres(role=vault.role, database=database))


@pytest.mark.asyncio(loop_scope="module")
async def test_accounts_and_what_they_own_survive_a_crash_of_the_store_and_its_next_start(stack: Stack) -> None:
    for vault in VAULTS:
        with account(stack, vault) as store:
            assert not store.send("PUT", f"/{vault.bucket}/kept", body=vault.mode.encode()).code
    await stack.kill("s3")
    await stack.start("s3")
    await provision(stack.endpoints, stack.secrets)
    for vault, other in zip(VAULTS, reversed(VAULTS), strict=True):
        with account(stack, vault) as store:
            assert store.send("GET", f"/{vault.bucket}/kept").body == vault.mode.encode()
            assert store.send("GET", f"/{other.bucket}/kept").code == "AccessDenied"


@pytest.mark.asyncio(loop_scope="module")
async def test_objects_of_a_store_that_knew_no_accounts_are_kept_when_it_gets_some(stack: Stack) -> None:
    """The folder of a stack that was made before there were accounts: they are all that it lacks."""
    archiver = SERVICES["archiver"].bucket
    with SignedRequests(stack.endpoints.s3, "replank", stack.endpoints.s3_secret_key) as store:
        assert not store.send("PUT", f"/{archiver}/old", body=b"old").code
        await stack.stop("s3")
        accounts = stack.root / "data" / "s3" / "accounts"
        assert [path.name for path in accounts.iterdir() if path.suffix == ".json"] == ["users.json"]
        await asyncio.to_thread(_remove, accounts)
        await stack.start("s3")
        await provision(stack.endpoints, stack.secrets)
        assert store.send("GET", f"/{archiver}/old").body == b"old"
        for vault in VAULTS:
            with account(stack, vault) as own:
                assert not own.send("GET", f"/{vault.bucket}", query={"list-type": "2"}).code
                assert own.send("GET", f"/{archiver}/old").code == "AccessDenied"


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
