"""The role of a mode has its own tables and the outbox's append, whoever had what before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio
from pydantic import SecretStr

from replank.connection import Connection
from replank.contracts.schema import VaultMode
from replank.errors import ConfigurationError
from replank.testing.plugin import RoleFactory
from replank_schema.vault import grants
from replank_schema.vault.model import MODES
from replank_schema.vault.settings import role_of
from tests.schema.vault.conftest import VaultSettings

Roles = dict[VaultMode, str]

# Every right that any role has on what is in the two schemas, but for the owner's.
RIGHTS = """
    select coalesce(a.grantee::regrole::text, 'public') as role, n.nspname as thing,
           string_agg(a.privilege_type, ' ' order by a.privilege_type) as may
      from pg_namespace n cross join aclexplode(n.nspacl) a
     where n.nspname like 'vault%' and a.grantee <> n.nspowner group by 1, 2
    union all
    select coalesce(nullif(a.grantee, 0)::regrole::text, 'public'), c.oid::regclass::text,
           string_agg(a.privilege_type, ' ' order by a.privilege_type)
      from pg_class c cross join aclexplode(c.relacl) a
     where c.relnamespace::regnamespace::text like 'vault%' and a.grantee <> c.relowner group by 1, 2
    union all
    select coalesce(nullif(a.grantee, 0)::regrole::text, 'public'), attrelid::regclass || '.' || attname,
           string_agg(a.privilege_type, ' ' order by a.privilege_type)
      from pg_attribute cross join aclexplode(attacl) a
     where attrelid::regclass::text like 'vault%' group by 1, 2
    order by 1, 2
"""
TABLES = "select oid::regclass::text from pg_class where relnamespace::regnamespace::text = $1 and relkind = 'r'"


@pytest.fixture
def roles(ungranted_vault: VaultSettings) -> Roles:
    return {mode: settings.role for mode, settings in ungranted_vault.items()}


@pytest_asyncio.fixture
async def conn(database: asyncpg.Pool) -> AsyncIterator[Connection]:
    async with database.acquire() as lent:
        yield lent


async def rights(conn: Connection) -> set[tuple[str, str, str]]:
    return {(row["role"].strip('"'), row["thing"], row["may"]) for row in await conn.fetch(RIGHTS)}


async def expected(conn: Connection, roles: Roles) -> set[tuple[str, str, str]]:
    wanted = set()
    for mode, role in roles.items():
        wanted.add((role, f"vault_{mode}", "USAGE"))
        tables = await conn.fetch(TABLES, f"vault_{mode}")
        assert len(tables) >= 5
        wanted |= {(role, table, "DELETE INSERT SELECT UPDATE") for (table,) in tables}
    return wanted


async def test_each_role_may_write_its_own_tables_and_append_events_and_nothing_else(
    conn: Connection, roles: Roles, ungranted_vault: VaultSettings
) -> None:
    assert await rights(conn) == set()
    await grants.grant(conn, roles)
    assert await rights(conn) == await expected(conn, roles)
    for settings in ungranted_vault.values():
        as_role = await asyncpg.connect(settings.dsn.get_secret_value())
        try:
            await as_role.execute("select replank_outbox.append('topic', 'key', 'shop.order.paid.v1', '{}'::bytea)")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await as_role.fetch("select * from replank_outbox.event")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await as_role.execute("create table public.mine (id int)")
        finally:
            await as_role.close()


async def test_nothing_is_changed_where_everything_is_right(conn: Connection, roles: Roles) -> None:
    async def versions() -> list[asyncpg.Record]:
        return await conn.fetch(
            "select oid, xmin::text from pg_class where relnamespace::regnamespace::text like 'vault%' union all "
            "select oid, xmin::text from pg_namespace union all select oid, xmin::text from pg_proc order by 1"
        )

    await grants.grant(conn, roles)
    before = await versions()
    await grants.grant(conn, roles)
    assert await versions() == before


async def test_many_processes_may_start_at_once(database: asyncpg.Pool, conn: Connection, roles: Roles) -> None:
    async def start() -> None:
        async with database.acquire() as own:
            await grants.grant(own, roles)

    await asyncio.gather(*(start() for _ in range(8)))
    assert await rights(conn) == await expected(conn, roles)


async def test_a_table_that_came_later_gets_its_rights_at_the_next_start(conn: Connection, roles: Roles) -> None:
    await grants.grant(conn, roles)
    await conn.execute("create table vault_pro.later (id bigint generated always as identity)")
    await grants.grant(conn, roles)
    found = await rights(conn)
    assert (roles["pro"], "vault_pro.later", "DELETE INSERT SELECT UPDATE") in found
    assert (roles["pro"], "vault_pro.later_id_seq", "SELECT USAGE") in found


@pytest.mark.parametrize(
    "mistake",
    [
        "grant usage on schema vault_pro to {standard}",
        "grant usage, create on schema vault_pro to {pro}",
        "grant select on vault_pro.blob to {standard}",
        "grant select (sha256) on vault_pro.blob to {standard}",
        "grant truncate on vault_pro.blob to {pro}",
        "grant select on vault_pro.blob to {pro} with grant option",
        "grant select on vault_pro.blob to public",
        "grant usage on schema vault_pro to public",
        "revoke delete on vault_pro.blob from {pro}",
        "revoke usage on schema vault_pro from {pro}",
        "revoke execute on function replank_outbox.append_many from {pro}",
    ],
)
async def test_what_somebody_granted_or_revoked_by_hand_is_put_right(
    mistake: str, conn: Connection, roles: Roles
) -> None:
    await grants.grant(conn, roles)
    await conn.execute(mistake.format(**{mode: f'"{role}"' for mode, role in roles.items()}))
    await grants.grant(conn, roles)
    assert await rights(conn) == await expected(conn, roles)
    assert await may_append(conn, roles["pro"])


async def test_a_right_that_was_passed_on_goes_with_the_one_who_passed_it_on(
    conn: Connection, roles: Roles, ungranted_vault: VaultSettings
) -> None:
    await grants.grant(conn, roles)
    await conn.execute(f'grant select on vault_pro.blob to "{roles["pro"]}" with grant option')
    as_pro = await asyncpg.connect(ungranted_vault["pro"].dsn.get_secret_value())
    await as_pro.execute(f'grant select on vault_pro.blob to "{roles["standard"]}"')
    await as_pro.close()
    await grants.grant(conn, roles)
    assert await rights(conn) == await expected(conn, roles)


async def test_the_role_of_an_earlier_configuration_loses_everything(
    conn: Connection, roles: Roles, postgres_role: RoleFactory
) -> None:
    await grants.grant(conn, roles)
    later: Roles = {**roles, "pro": role_of_dsn(await postgres_role())}
    await grants.grant(conn, later)
    assert await rights(conn) == await expected(conn, later)
    assert not await may_append(conn, roles["pro"])
    assert await may_append(conn, roles["standard"])


async def test_the_modes_may_change_their_roles_with_each_other(conn: Connection, roles: Roles) -> None:
    await grants.grant(conn, roles)
    swapped: Roles = {"standard": roles["pro"], "pro": roles["standard"]}
    await grants.grant(conn, swapped)
    assert await rights(conn) == await expected(conn, swapped)
    for role in swapped.values():
        assert await may_append(conn, role)


@pytest.mark.parametrize(
    ("strength", "why"),
    [
        ("alter role {standard} superuser", "is a superuser"),
        ("alter role {standard} createrole", "may create roles"),
        ("alter role {standard} replication", "may replicate"),
        ("grant pg_read_all_data to {standard}", "is a member of pg_read_all_data"),
        ("grant {pro} to {standard}", "the role of mode pro"),
        ("alter schema vault_pro owner to {standard}", "owner of vault_pro"),
        ("alter schema vault_pro owner to {pro}", "owner of vault_pro"),
    ],
)
async def test_a_role_that_grants_cannot_keep_away_is_refused(
    strength: str, why: str, conn: Connection, roles: Roles
) -> None:
    await conn.execute(strength.format(**{mode: f'"{role}"' for mode, role in roles.items()}))
    try:
        with pytest.raises(ConfigurationError, match=why) as refused:
            await grants.grant(conn, roles)
        assert refused.value.fix
        assert await rights(conn) == set()
    finally:
        await conn.execute("alter schema vault_pro owner to current_user")


async def test_a_member_of_the_owner_is_refused(conn: Connection, roles: Roles, postgres_role: RoleFactory) -> None:
    owner = role_of_dsn(await postgres_role())
    await conn.execute(f'alter schema vault_pro owner to "{owner}"; grant "{owner}" to "{roles["standard"]}"')
    try:
        with pytest.raises(ConfigurationError, match="owner of vault_pro or a member of it"):
            await grants.grant(conn, roles)
    finally:
        await conn.execute("alter schema vault_pro owner to current_user")


async def test_one_role_for_both_modes_is_refused(conn: Connection, roles: Roles) -> None:
    with pytest.raises(ConfigurationError, match="more than one mode"):
        await grants.grant(conn, dict.fromkeys(MODES, roles["pro"]))


async def test_a_role_that_is_missing_is_named(conn: Connection, roles: Roles) -> None:
    with pytest.raises(ConfigurationError, match="the role nobody of the vault's mode pro does not exist"):
        await grants.grant(conn, {**roles, "pro": "nobody"})


async def test_nothing_is_granted_when_it_fails_half_way(conn: Connection, roles: Roles) -> None:
    await conn.execute("alter function replank_outbox.append_many rename to elsewhere")
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await grants.grant(conn, roles)
    assert await rights(conn) == set()


async def may_append(conn: Connection, role: str) -> bool:
    allowed: bool = await conn.fetchval(
        "select bool_and(has_function_privilege($1, oid, 'execute')) from pg_proc where "
        "pronamespace = 'replank_outbox'::regnamespace and proname in ('append', 'append_many', 'append_ordered')",
        role,
    )
    return allowed


def role_of_dsn(dsn: str) -> str:
    return role_of(SecretStr(dsn))
