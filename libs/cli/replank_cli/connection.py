"""Where the commands find servers: an option first, then the environment that ``replank env`` prints."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypeAlias

import asyncpg
import typer

from replank.errors import ConfigurationError, DependencyUnavailable

Dsn: TypeAlias = Annotated[str | None, typer.Option("--dsn", help="Postgres DSN.", show_default=False)]
Service: TypeAlias = Annotated[
    str | None,
    typer.Option("--service", "-s", help="Take the DSN of this service of the running stack.", show_default=False),
]
Kafka: TypeAlias = Annotated[
    str | None,
    typer.Option("--kafka", envvar="REPLANK_KAFKA", help="Kafka bootstrap servers, host:port[,…].", show_default=False),
]


def dsn_of(dsn: str | None, service: str | None) -> str:
    """The database that the options name. Raises `ConfigurationError` if they name none."""
    if dsn:
        return dsn
    if service is None:
        raise ConfigurationError("no database is named", fix="give --dsn, or --service with a running stack")
    variable = f"REPLANK_{service.upper().replace('-', '_')}_DSN"
    if found := os.environ.get(variable):
        return found
    raise ConfigurationError(f"{variable} is not set", fix='run eval "$(make env)" first, or give --dsn')


def kafka_of(kafka: str | None) -> str:
    """The Kafka that the options name. Raises `ConfigurationError` if they name none."""
    if kafka:
        return kafka
    raise ConfigurationError("no Kafka is named", fix='give --kafka, or run eval "$(make env)" first')


@asynccontextmanager
async def connect(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection for one command. A dead or refusing database is one clear line, without the password."""
    try:
        connection = await asyncpg.connect(dsn, timeout=10)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise DependencyUnavailable(
            "postgres",
            f"cannot connect to Postgres: {type(error).__name__}: {error}",
            fix="check the DSN and that the server runs",
        ) from error
    try:
        yield connection
    finally:
        await connection.close()
