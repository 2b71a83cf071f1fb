"""Answering "has this user this relation to this object?", from Valkey where it is right to, else from Postgres.

A cached decision is filed under the store's incarnation and revision, and both were read in the same snapshot as the
decision itself. A change of the store raises its revision, so nothing that was cached before can be found any more: a
change needs no Valkey to take effect, and a Valkey that comes back after an outage has nothing stale to offer.

What a process must know is the current revision. It learns of its own changes before they commit, and reads Postgres
again when what it knows is older than ``max_age``: that is the longest that another process's change goes unnoticed.
A revision only ever rises here. If a change that was announced rolls back, lookups miss until the next one: slower,
never wrong.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from replank.cache import Cache
from replank.errors import DependencyUnavailable
from replank.postgres import Pool
from replank.telemetry import metrics
from replank_auth_cache.tuples import store
from replank_auth_cache.tuples.model import Answer, RelationTuple, UnknownStore

_log = logging.getLogger(__name__)

_ALLOWED: Final = b"1"
_DENIED: Final = b"0"


@dataclass(frozen=True, slots=True)
class _Known:
    """A store's revision as last learnt; ``read_at`` is the monotonic time before it was asked for."""

    incarnation: UUID
    revision: int
    read_at: float


class Decisions:
    """Checks tuples for one process. All checks and changes of the process go through the same instance.

    Without a ``cache`` every answer comes from Postgres. ``entry_ttl`` and ``max_age`` are in seconds; with
    ``max_age=0`` Postgres is asked for the revision at every check.
    """

    def __init__(
        self, pool: Pool, cache: Cache | None, *, max_age: float, entry_ttl: float, cache_pause: float = 1.0
    ) -> None:
        self._pool = pool
        self._cache = cache
        self._max_age = max_age
        self._entry_ttl = entry_ttl
        self._cache_pause = cache_pause
        self._known: dict[str, _Known] = {}
        self._announced: dict[UUID, int] = {}
        self._cache_rests_until = 0.0

    def advance(self, incarnation: UUID, revision: int) -> None:
        """A transaction of this process is about to commit this revision: nothing older is an answer any more."""
        self._announced[incarnation] = max(revision, self._announced.get(incarnation, 0))

    async def allowed(self, name: str, wanted: RelationTuple, *, exact: bool = False) -> bool:
        """Whether the tuple is in the store; ``exact`` asks Postgres whatever is cached.

        Raises `UnknownStore`, and `DependencyUnavailable` when Postgres must be asked and does not answer.
        """
        if exact:
            return (await self._ask(name, wanted)).allowed
        known = await self._current(name)
        floor = max(known.revision, self._announced.get(known.incarnation, 0))
        cached = await self._look_up(_entry(known.incarnation, floor, wanted))
        if cached is not None:
            metrics.AUTHZ_ANSWERS.labels(source="cache").inc()
            return cached
        answer = await self._ask(name, wanted)
        await self._keep(_entry(answer.incarnation, answer.revision, wanted), answer.allowed)
        return answer.allowed

    async def _current(self, name: str) -> _Known:
        known = self._known.get(name)
        now = time.monotonic()
        if known is not None and now - known.read_at < self._max_age:
            return known
        async with self._pool.acquire() as conn:
            found = await store.revision(conn, name)
        if found is None:
            raise UnknownStore(name)
        return self._learn(name, *found, read_at=now)

    async def _ask(self, name: str, wanted: RelationTuple) -> Answer:
        now = time.monotonic()
        async with self._pool.acquire() as conn:
            answer = await store.check(conn, name, wanted)
        if answer is None:
            raise UnknownStore(name)
        self._learn(name, answer.incarnation, answer.revision, read_at=now)
        metrics.AUTHZ_ANSWERS.labels(source="postgres").inc()
        return answer

    def _learn(self, name: str, incarnation: UUID, revision: int, *, read_at: float) -> _Known:
        known = self._known.get(name)
        if known is not None and known.incarnation == incarnation and known.revision > revision:
            return known  # answers overtake each other: an older one teaches nothing
        self._known[name] = _Known(incarnation, revision, read_at)
        return self._known[name]

    async def _look_up(self, key: str) -> bool | None:
        if self._cache is None or time.monotonic() < self._cache_rests_until:
            return None
        try:
            value = await self._cache.get(key)
        except DependencyUnavailable as error:
            self._rest_cache(error)
            return None
        return None if value is None else value == _ALLOWED

    async def _keep(self, key: str, allowed: bool) -> None:
        if self._cache is None or time.monotonic() < self._cache_rests_until:
            return
        try:
            await self._cache.set(key, _ALLOWED if allowed else _DENIED, lifetime=self._entry_ttl)
        except DependencyUnavailable as error:
            self._rest_cache(error)

    def _rest_cache(self, error: DependencyUnavailable) -> None:
        """A cache that does not answer must not cost every check a timeout: leave it alone for a while."""
        self._cache_rests_until = time.monotonic() + self._cache_pause
        _log.warning("answering from postgres alone for %.1f s: %s", self._cache_pause, error)


def _entry(incarnation: UUID, revision: int, wanted: RelationTuple) -> str:
    # Hashed, so that who may do what cannot be read from the keys of a shared server. None of the parts holds a NUL.
    tuple_hash = hashlib.sha256(f"{wanted.user}\0{wanted.relation}\0{wanted.object}".encode()).hexdigest()[:32]
    return f"decision:{incarnation}:{revision}:{tuple_hash}"
