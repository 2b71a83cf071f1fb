"""The databases that migrations move between, by the names that plans call them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from pydantic import SecretStr

from replank.connection import POSTGRES_ERRORS, Connection
from replank.errors import ConfigurationError, DependencyUnavailable

_CONNECT_WITHIN: Final = 5.0
_STATEMENT_WITHIN: Final = 30.0


class Databases:
    """DSNs by name. They are never stored, and never told."""

    def __init__(self, dsns: Mapping[str, SecretStr]) -> None:
        self._dsns = dict(dsns)
        self.names = frozenset(dsns)

    def dsn(self, name: str) -> str:
        """Raises `ConfigurationError` for a name that is not configured."""
        try:
            return self._dsns[name].get_secret_value()
        except KeyError:
            raise ConfigurationError(
                f"the database {name} is not configured", fix="name it in REPLANK_SCHEMA_DATABASES and start again"
            ) from None

    @asynccontextmanager
    async def connect(self, name: str) -> AsyncIterator[Connection]:
        """A connection for the length of a request. Raises `DependencyUnavailable` when the server is away."""
        try:
            conn = await asyncpg.connect(
                self.dsn(name),
                timeout=_CONNECT_WITHIN,
                command_timeout=_STATEMENT_WITHIN,
                server_settings={"application_name": "replank-schema"},
            )
        except POSTGRES_ERRORS as error:
            raise DependencyUnavailable(
                name,
                f"the database {name} cannot be reached: {str(error) or type(error).__name__}",
                fix="see that it is up",
            ) from error
        try:
            yield conn
        finally:
            await conn.close(timeout=_CONNECT_WITHIN)
