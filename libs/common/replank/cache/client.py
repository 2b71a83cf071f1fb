"""The client of one cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self
from urllib.parse import urlsplit, urlunsplit

from valkey.asyncio import BlockingConnectionPool, Valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.exceptions import ConnectionError as ValkeyConnectionError
from valkey.exceptions import ValkeyError

from replank.errors import DependencyUnavailable
from replank.telemetry import metrics

# The client library knows its own names for the schemes that everybody else's URLs have.
_SCHEMES: Final = {"redis": "valkey", "rediss": "valkeys"}


class Cache:
    """One cache, called ``name`` in metrics and errors.

    ``within`` (seconds) is the deadline of every call, waiting for one of ``connections`` and reconnecting included: a
    cache that is slower than the source of truth is of no use. Opens nothing before the first call.
    """

    def __init__(self, url: str, *, name: str, within: float = 0.25, connections: int = 20) -> None:
        self.name = name
        self._within = within
        parts = urlsplit(url)
        self._address = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
        self._client: Valkey = Valkey.from_pool(
            BlockingConnectionPool.from_url(
                urlunsplit(parts._replace(scheme=_SCHEMES.get(parts.scheme, parts.scheme))),
                max_connections=connections,
                # The deadline of the call ends the wait.
                timeout=None,
                # After a restart of the server each pooled connection fails once; every command here may be repeated.
                retry=Retry(NoBackoff(), 1, supported_errors=(ValkeyConnectionError,)),
                retry_on_error=[ValkeyConnectionError],
            )
        )

    async def get(self, key: str) -> bytes | None:
        """The value, ``None`` when there is none."""
        async with self._operation("get") as operation:
            value: bytes | None = await self._client.get(key)
            operation.outcome = "miss" if value is None else "hit"
            return value

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values in the order of the keys, in one round trip. A hit in the metrics is all of them."""
        if not keys:
            return []
        async with self._operation("get_many") as operation:
            values: list[bytes | None] = await self._client.mget(list(keys))
            operation.outcome = "miss" if None in values else "hit"
            return values

    async def set(self, key: str, value: bytes, *, lifetime: float) -> None:
        """Keep a value for ``lifetime`` seconds (at least a millisecond)."""
        async with self._operation("set"):
            await self._client.set(key, value, px=max(1, round(lifetime * 1000)))

    async def delete(self, *keys: str) -> int:
        """Forget keys; says how many there were."""
        if not keys:
            return 0
        async with self._operation("delete"):
            return int(await self._client.delete(*keys))

    async def ping(self) -> None:
        """For readiness: does it answer?"""
        async with self._operation("ping"):
            await self._client.ping()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose(close_connection_pool=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def _operation(self, name: str) -> AsyncIterator[_Operation]:
        operation = _Operation()
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._within):
                yield operation
        except TimeoutError as error:
            operation.outcome = "unavailable"
            raise self._unavailable(f"no answer within {self._within:g} s") from error
        except (ValkeyError, OSError) as error:
            operation.outcome = "unavailable"
            raise self._unavailable(str(error)) from error
        finally:
            metrics.CACHE_OPERATION.labels(cache=self.name, operation=name, outcome=operation.outcome).observe(
                time.perf_counter() - started
            )

    def _unavailable(self, reason: str) -> DependencyUnavailable:
        return DependencyUnavailable(
            f"cache {self.name}",
            f"the cache {self.name} at {self._address} does not answer: {reason}",
            fix="check that the server of VALKEY_URL is up and lets this service in",
        )


class _Operation:
    outcome = "ok"
