"""What an operator makes before the services start: roles, databases, accounts, buckets. Each step may be repeated.

Topics are not among it: each service makes those that it sends to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import asyncpg
from minio import Minio

from replank.objects.accounts import Account, ensure_accounts
from replank_local.credentials import Secrets
from replank_local.endpoints import S3_ACCESS_KEY, Endpoints
from replank_local.services import PROGRAMS, READABLE, READER, SERVICES, STOREFRONT, VAULTS

_EXTENSIONS: Final = ("pg_stat_statements", "pg_trgm", "btree_gin", "hypopg")


async def provision(endpoints: Endpoints, secrets: Secrets) -> None:
    """Make what every service and example owns. Nothing that is there already is changed, but passwords and grants."""
    await asyncio.gather(
        _databases(endpoints, secrets),
        asyncio.to_thread(_buckets, endpoints, [service.bucket for service in SERVICES.values() if service.has_bucket]),
        asyncio.to_thread(ensure_accounts, endpoints.s3, S3_ACCESS_KEY, endpoints.s3_secret_key, accounts(secrets)),
    )


def accounts(secrets: Secrets) -> list[Account]:
    """The accounts of the object store, each with the one bucket that it reaches."""
    return [Account(vault.access_key, secrets.password(vault.secret), vault.bucket) for vault in VAULTS]


async def _databases(endpoints: Endpoints, secrets: Secrets) -> None:
    connection = await asyncpg.connect(endpoints.postgres())
    try:
        vaults = [vault.role for vault in VAULTS]
        for role in (*(program.role for program in PROGRAMS.values()), READER, *vaults):
            await _role(connection, role, secrets.password(role))
        # Every role may connect to every database by default: each shall reach its own alone.
        await connection.execute("revoke connect, temporary on database postgres, template1 from public")
        for program in PROGRAMS.values():
            for database in program.databases.values():
                await _database(connection, database, owner=program.role)
        for database in READABLE.values():
            await connection.execute(f"grant connect on database {_identifier(database)} to {_identifier(READER)}")
        # What they may do there is granted by the database's owner, the service, as it starts.
        for role in vaults:
            database = _identifier(SERVICES["schema"].database)
            await connection.execute(f"grant connect on database {database} to {_identifier(role)}")
        await connection.execute(f"grant pg_read_all_data, pg_monitor to {_identifier(READER)}")
        # A migration that is to wait for standbys or for load has to see them.
        await connection.execute(f"grant pg_monitor to {_identifier(STOREFRONT.role)}")
        await connection.execute(f"alter role {_identifier(READER)} set default_transaction_read_only = on")
    finally:
        await connection.close()
    for program in PROGRAMS.values():
        for database in program.databases.values():
            await _extensions(endpoints.postgres(database=database))


async def _role(connection: asyncpg.Connection, role: str, password: str) -> None:
    if not await connection.fetchval("select exists (select from pg_roles where rolname = $1)", role):
        await connection.execute(f"create role {_identifier(role)} login")
    await connection.execute(f"alter role {_identifier(role)} password {_literal(password)}")


async def _database(connection: asyncpg.Connection, name: str, *, owner: str) -> None:
    database = _identifier(name)
    if not await connection.fetchval("select exists (select from pg_database where datname = $1)", name):
        await connection.execute(f"create database {database} owner {_identifier(owner)} template template0")
    await connection.execute(f"revoke connect, temporary on database {database} from public")


async def _extensions(dsn: str) -> None:
    """Those that need a superuser or come with the server; one that is not installed (hypopg) is left out."""
    connection = await asyncpg.connect(dsn)
    try:
        available = await connection.fetch("select name from pg_available_extensions where name = any($1)", _EXTENSIONS)
        for row in available:
            await connection.execute(f"create extension if not exists {_identifier(row['name'])}")
    finally:
        await connection.close()


def _buckets(endpoints: Endpoints, buckets: Iterable[str]) -> None:
    address = endpoints.s3.removeprefix("http://")
    client = Minio(address, access_key=S3_ACCESS_KEY, secret_key=endpoints.s3_secret_key, secure=False)
    for bucket in buckets:
        if not client.bucket_exists(bucket):
            client.make_bucket(bucket)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
