"""Connection pools named by workload, so that one kind of work cannot starve another of connections.

A report that takes a minute must not make an authorization check wait for a connection: each workload has a pool of its
own size, its own patience and its own statement timeout. A pool that is never asked for opens nothing::

    pools = Pools(dsn, service="schema")
    async with pools.write_heavy.acquire() as conn, conn.transaction():
        ...
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from pydantic import BaseModel, ConfigDict, Field, model_validator

from replank.connection import Connection, is_lost
from replank.errors import ConfigurationError, DependencyUnavailable
from replank.telemetry import metrics

_log = logging.getLogger(__name__)

Target = Literal["primary", "replica"]
Seconds = Annotated[float, Field(gt=0, le=86400)]

# The server says that it goes away or is not there yet; the connection is useless whatever asyncpg thinks of it.
GONE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InternalClientError,  # asyncpg's own confusion over a server that dies in the middle of an answer
)
# What asyncpg raises when a connection cannot be made, whoever is to blame. Wrong passwords and missing databases are
# among them: they too are mended outside of this process, often without restarting it.
CANNOT_CONNECT: Final = (
    OSError,
    *GONE,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ClientConfigurationError,
    asyncpg.TargetServerAttributeNotMatched,
)
# The server cancels a statement first; this much later we stop waiting for a server that no longer answers at all.
_CLIENT_GRACE: Final = 5.0


class PoolExhausted(DependencyUnavailable):
    """All connections of a pool stayed in use for the whole acquire timeout."""

    def __init__(self, pool: str, *, max_size: int, waited: float) -> None:
        super().__init__(
            "postgres",
            f"all {max_size} connections of the pool {pool} stayed in use for {waited:g} s",
            fix=f"retry later; if it lasts, look for slow statements or raise POOLS__{pool.upper()}__MAX_SIZE",
        )
        self.pool = pool


class PoolSettings(BaseModel):
    """One pool: how many connections, and how long anything may take. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_size: int = Field(default=1, ge=0, le=1000)
    max_size: int = Field(default=10, ge=1, le=1000)
    acquire_timeout: Seconds = 5.0
    """How long `Pool.acquire` waits for a free connection, connecting included."""
    statement_timeout: Seconds = 30.0
    """When the server cancels a statement."""
    idle_transaction_timeout: Seconds = 60.0
    """When the server ends a session that sits in an open transaction and blocks vacuum."""
    idle_lifetime: Seconds = 300.0
    """When an unused connection above ``min_size`` is closed."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError("min_size is greater than max_size")
        return self


class PoolsSettings(BaseModel):
    """The six pools of a service. They cost nothing until they are used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Somebody waits for the answer to every authorization query: many connections, no patience.
    authorization_primary: PoolSettings = PoolSettings(max_size=10, acquire_timeout=1.0, statement_timeout=2.0)
    authorization_replica: PoolSettings = PoolSettings(max_size=10, acquire_timeout=1.0, statement_timeout=2.0)
    # Scans and reports: few at a time, each may take long.
    read_heavy: PoolSettings = PoolSettings(max_size=4, acquire_timeout=30.0, statement_timeout=300.0)
    write_heavy: PoolSettings = PoolSettings(max_size=8, acquire_timeout=10.0, statement_timeout=60.0)
    general_primary: PoolSettings = PoolSettings()
    general_replica: PoolSettings = PoolSettings()


@dataclass(frozen=True)
class PoolStatus:
    """One pool at one moment. ``target`` is where it goes: without a replica, a replica pool goes to the primary."""

    pool: str
    target: Target
    in_use: int
    max_size: int
    waiting: int
    opened: bool


class Pool:
    """One named pool, opened at first use. `Pools` makes the six of a service; more may be made by name.

    Without ``search_path`` names are looked up where the role's own settings say.
    """

    def __init__(
        self,
        name: str,
        dsn: str,
        settings: PoolSettings,
        *,
        service: str,
        target: Target,
        read_only: bool,
        search_path: str | None = None,
    ) -> None:
        self.name = name
        self.target = target
        self._dsn = dsn
        self._settings = settings
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._waiting = 0
        self._server_settings = {
            # Postgres cuts names at 63 bytes; the pool's name is the part that must survive.
            "application_name": f"{service[:40]}/{name}",
            "statement_timeout": str(round(settings.statement_timeout * 1000)),
            "idle_in_transaction_session_timeout": str(round(settings.idle_transaction_timeout * 1000)),
            **({"default_transaction_read_only": "on"} if read_only else {}),
            **({"search_path": search_path} if search_path is not None else {}),
        }
        self._metric_acquire = metrics.POSTGRES_POOL_ACQUIRE.labels(pool=name, target=target)
        # Asked when they are scraped, so that connections taken past us, from the asyncpg pool, count too.
        metrics.POSTGRES_POOL_IN_USE.labels(pool=name, target=target).set_function(self._in_use)
        metrics.POSTGRES_POOL_UTILISATION.labels(pool=name, target=target).set_function(
            lambda: self._in_use() / settings.max_size
        )
        metrics.POSTGRES_POOL_WAITING.labels(pool=name, target=target).set_function(lambda: self._waiting)
        metrics.POSTGRES_POOL_MAX.labels(pool=name, target=target).set(settings.max_size)

    async def open(self) -> asyncpg.Pool[asyncpg.Record]:
        """The asyncpg pool underneath, opened if it is not yet, for code that wants one.

        Errors of what it hands out are asyncpg's own. Raises `DependencyUnavailable` when the server cannot be reached;
        the next call tries again.
        """
        if self._pool is not None:
            return self._pool
        async with self._opening:
            if self._closed:
                raise DependencyUnavailable("postgres", f"the pool {self.name} is closed: the service is stopping")
            if self._pool is None:
                try:
                    self._pool = await asyncpg.create_pool(
                        self._dsn,
                        min_size=self._settings.min_size,
                        max_size=self._settings.max_size,
                        max_inactive_connection_lifetime=self._settings.idle_lifetime,
                        timeout=self._settings.acquire_timeout,
                        command_timeout=self._settings.statement_timeout + _CLIENT_GRACE,
                        server_settings=self._server_settings,
                    )
                except CANNOT_CONNECT as error:
                    raise self._unavailable(error) from error
            return self._pool

    @asynccontextmanager
    async def acquire(self, *, within: float | None = None) -> AsyncIterator[Connection]:
        """A connection for the length of the block; ``within`` (seconds) overrides the pool's own.

        Raises `PoolExhausted` when none came free in time, and `DependencyUnavailable` when the server cannot be
        reached or the connection breaks inside the block. After the latter nobody knows whether a commit that was under
        way took place: do again only what may be done twice.
        """
        pool = await self.open()
        conn = await self._checkout(pool, self._settings.acquire_timeout if within is None else within)
        try:
            yield conn
        except GONE as error:
            raise self._unavailable(error) from error
        except (asyncpg.InterfaceError, OSError) as error:
            if is_lost(conn):
                raise self._unavailable(error) from error
            raise
        except asyncpg.ReadOnlySQLTransactionError as error:
            if self.target == "primary" and "default_transaction_read_only" not in self._server_settings:
                # The server was demoted under us. Old connections must go before new ones can find the new primary.
                await pool.expire_connections()
                raise self._unavailable(error) from error
            raise
        finally:
            await self._give_back(pool, conn)

    async def check(self) -> None:
        """Ask the server for an answer. Raises `DependencyUnavailable` when there is none in time."""
        async with self.acquire() as conn:
            await conn.fetchval("select 1")

    async def wait_until_ready(self, *, first_delay: float = 0.2, max_delay: float = 10.0) -> None:
        """Return once the server answers; until then try again for ever, and log each failure and the next attempt.

        Delays (seconds) double with jitter. Meant for a task of the service's start: cancel it to give up.
        """
        delay = first_delay
        while True:
            try:
                return await self.check()
            except DependencyUnavailable as error:
                pause = delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
                _log.warning(
                    "postgres is not ready: %s; next attempt in %.1f s", error, pause, extra={"pool": self.name}
                )
                await asyncio.sleep(pause)
                delay = min(delay * 2, max_delay)

    def status(self) -> PoolStatus:
        """Numbers of this moment; asks no server."""
        return PoolStatus(
            pool=self.name,
            target=self.target,
            in_use=self._in_use(),
            max_size=self._settings.max_size,
            waiting=self._waiting,
            opened=self._pool is not None,
        )

    async def close(self, *, within: float) -> None:
        """Wait up to ``within`` seconds for connections in use, then cut them."""
        async with self._opening:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(within):
                await pool.close()
        except TimeoutError:
            # asyncpg terminates the connections when its close() is cancelled.
            _log.warning("the pool %s was cut with connections in use", self.name, extra={"pool": self.name})

    async def _checkout(self, pool: asyncpg.Pool[asyncpg.Record], within: float) -> PoolConnectionProxy[asyncpg.Record]:
        started = time.perf_counter()
        self._waiting += 1
        try:
            conn = await pool.acquire(timeout=within)
        except TimeoutError as error:
            # get_size() leaves out connections that are still being made: then the server is slow, not the pool full.
            if pool.get_size() >= self._settings.max_size and pool.get_idle_size() == 0:
                self._failed("exhausted")
                raise PoolExhausted(self.name, max_size=self._settings.max_size, waited=within) from error
            raise self._unavailable(error) from error
        except CANNOT_CONNECT as error:
            raise self._unavailable(error) from error
        except asyncpg.InterfaceError as error:
            if self._closed:
                raise DependencyUnavailable("postgres", f"the pool {self.name} is closed") from error
            raise
        finally:
            self._waiting -= 1
        self._metric_acquire.observe(time.perf_counter() - started)
        return conn

    async def _give_back(self, pool: asyncpg.Pool[asyncpg.Record], conn: PoolConnectionProxy[asyncpg.Record]) -> None:
        """Return a connection. One that breaks only now ends, and changes nothing about what was done on it before."""
        try:
            await pool.release(conn)
        except (*GONE, asyncpg.InterfaceError, OSError) as error:
            _log.warning("a connection could not be reset, and is closed: %s", error, extra={"pool": self.name})

    def _in_use(self) -> int:
        return self._pool.get_size() - self._pool.get_idle_size() if self._pool is not None else 0

    def _failed(self, reason: str) -> None:
        metrics.POSTGRES_POOL_FAILURES.labels(pool=self.name, target=self.target, reason=reason).inc()

    def _unavailable(self, error: BaseException) -> DependencyUnavailable:
        self._failed("unavailable")
        reason = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
        return DependencyUnavailable(
            "postgres",
            f"the pool {self.name} has no working connection to the {self.target}: {reason}",
            fix="check that the server of the DSN is up and lets this role in",
        )


class Pools:
    """The six pools of a service.

    ``authorization_replica``, ``general_replica`` and ``read_heavy`` go to ``replica_dsn`` where one is given, else to
    the primary, and their `PoolStatus` and metrics say which. They are read-only in both cases, so that a write through
    them fails on a laptop as it would in production. TLS is the DSN's business (``sslmode``, ``sslrootcert``), as is
    finding the primary among several hosts (``target_session_attrs=read-write``).
    """

    def __init__(
        self, dsn: str, *, service: str, replica_dsn: str | None = None, settings: PoolsSettings | None = None
    ) -> None:
        settings = settings or PoolsSettings()

        def primary(name: str, pool: PoolSettings) -> Pool:
            return Pool(name, dsn, pool, service=service, target="primary", read_only=False)

        def replica(name: str, pool: PoolSettings) -> Pool:
            target: Target = "replica" if replica_dsn else "primary"
            return Pool(name, replica_dsn or dsn, pool, service=service, target=target, read_only=True)

        self.authorization_primary = primary("authorization_primary", settings.authorization_primary)
        self.authorization_replica = replica("authorization_replica", settings.authorization_replica)
        self.read_heavy = replica("read_heavy", settings.read_heavy)
        self.write_heavy = primary("write_heavy", settings.write_heavy)
        self.general_primary = primary("general_primary", settings.general_primary)
        self.general_replica = replica("general_replica", settings.general_replica)

    def __iter__(self) -> Iterator[Pool]:
        yield self.authorization_primary
        yield self.authorization_replica
        yield self.read_heavy
        yield self.write_heavy
        yield self.general_primary
        yield self.general_replica

    def __getitem__(self, name: str) -> Pool:
        """The pool of that name. Raises `ConfigurationError` for any other."""
        for pool in self:
            if pool.name == name:
                return pool
        raise ConfigurationError(
            f"there is no pool {name!r}", fix=f"take one of {', '.join(pool.name for pool in self)}"
        )

    async def check(self) -> None:
        """Check every opened pool, and ``general_primary`` in any case. Raises `DependencyUnavailable`."""
        for pool in self:
            if pool is self.general_primary or pool.status().opened:
                await pool.check()

    def status(self) -> list[PoolStatus]:
        """All six, opened or not."""
        return [pool.status() for pool in self]

    async def close(self, *, within: float = 10.0) -> None:
        """Close all pools at once; see `Pool.close`."""
        await asyncio.gather(*(pool.close(within=within) for pool in self))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
