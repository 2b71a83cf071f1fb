"""What keeps a backfill from being noticed: a pace, and conditions under which it waits.

The pace is a bucket of rows that leaks at so many rows a second. The conditions (replication lag, load, a query of
yours) are looked at once an interval. What cannot be told is waited for: a throttle that fails open would be none on
the day on which it is needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat

from replank.connection import POSTGRES_ERRORS, Connection
from replank.migrate.session import APPLICATION_PREFIX, session

_PART: Final = "throttle"
_TIMEOUT: Final = 10.0
_NOTICES_A_CHANGE: Final = 0.25  # seconds after which a wait looks at the settings again

# A standby that has replayed everything has no lag: null. One whose lag this role may not see shows no state either.
_LAG: Final = """
    select coalesce(max(extract(epoch from replay_lag)), 0)::float8 as lag,
           coalesce(bool_and(state is not null), true) as visible
      from pg_stat_replication
"""
_ACTIVE: Final = """
    select count(*) filter (where state = 'active' and not starts_with(application_name, $1)) as active,
           coalesce(bool_and(state is not null), true) as visible
      from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
"""

Side = Literal["source", "target"]


class ThrottleSettings(BaseModel):
    """How fast, and under which conditions, a backfill may go on. What is ``None`` is not looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_per_second: PositiveFloat | None = None
    max_replication_lag: PositiveFloat | None = None
    """Seconds that the slowest standby of either database may be behind in replaying."""
    max_active_sessions: NonNegativeInt | None = None
    """Sessions, those of migrations left out, that may be active at once on the server of either database."""
    query: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    """A query whose first column is true while the backfill may go on. It runs read-only."""
    query_on: Side = "source"
    query_timeout: PositiveFloat = 5.0
    check_interval: PositiveFloat = 1.0
    """How often the conditions are looked at, in seconds."""

    @property
    def conditional(self) -> bool:
        """Whether there is a condition to look at."""
        return (self.max_replication_lag, self.max_active_sessions, self.query) != (None, None, None)


class Throttle:
    """Lets a backfill go on, or makes it wait. ``settings`` is asked all the time: a change holds within a moment::

    await throttle.admit()
    ...  # move a chunk
    throttle.spent(len(chunk))
    """

    def __init__(self, *, source: str, target: str, settings: Callable[[], ThrottleSettings]) -> None:
        self.waiting_for = ""
        """What it waits for now, in words; empty while nothing is in the way."""
        self._dsns: dict[Side, str] = {"source": source, "target": target}
        self._settings = settings
        self._debt = 0.0
        self._leaked_at = time.monotonic()
        self._obstacle = ""
        self._checked_at = float("-inf")
        self._checked_for: ThrottleSettings | None = None

    def spent(self, rows: int) -> None:
        """Say how many rows were moved since the last `admit`."""
        self._debt += rows

    async def admit(self) -> None:
        """Return when the next chunk may be moved. May wait for ever: cancel it to give up."""
        try:
            while True:
                settings = self._settings()
                await self._look(settings)
                pause = self._leak(settings)
                if self._obstacle:
                    self.waiting_for = self._obstacle
                    pause = _NOTICES_A_CHANGE
                elif pause > 0:
                    self.waiting_for = f"the pace of {settings.rows_per_second:g} rows/s"
                else:
                    return
                await asyncio.sleep(min(pause, _NOTICES_A_CHANGE))
        finally:
            self.waiting_for = ""

    def _leak(self, settings: ThrottleSettings) -> float:
        """Seconds until what was moved has been paid for at the pace of now."""
        now = time.monotonic()
        elapsed, self._leaked_at = now - self._leaked_at, now
        if settings.rows_per_second is None:
            self._debt = 0.0
            return 0.0
        # No credit is saved up while nothing is moved: a pace after a pause is the same pace.
        self._debt = max(0.0, self._debt - elapsed * settings.rows_per_second)
        return self._debt / settings.rows_per_second

    async def _look(self, settings: ThrottleSettings) -> None:
        if not settings.conditional:
            self._obstacle = ""
            return
        now = time.monotonic()
        if settings == self._checked_for and now < self._checked_at + settings.check_interval:
            return
        self._checked_at, self._checked_for = now, settings
        self._obstacle = await self._find_obstacle(settings)

    async def _find_obstacle(self, settings: ThrottleSettings) -> str:
        seen: set[str] = set()
        for side, dsn in self._dsns.items():
            if dsn in seen:
                continue
            seen.add(dsn)
            asked = settings.query is not None and (settings.query_on == side or self._dsns[settings.query_on] == dsn)
            try:
                async with session(dsn, _PART, timeout=_TIMEOUT) as conn:
                    obstacle = await _server_obstacle(conn, side, settings)
                    if not obstacle and asked:
                        obstacle = await _query_obstacle(conn, side, settings)
            except POSTGRES_ERRORS as error:
                obstacle = f"the {side} cannot be asked for its state: {type(error).__name__}"
            if obstacle:
                return obstacle
        return ""


async def _server_obstacle(conn: Connection, side: Side, settings: ThrottleSettings) -> str:
    if settings.max_replication_lag is not None:
        (row,) = await conn.fetch(_LAG)
        if not row["visible"]:
            return f"this role may not see the replication of the {side}: grant it pg_read_all_stats"
        if row["lag"] > settings.max_replication_lag:
            return f"a standby of the {side} is {row['lag']:.1f} s behind (limit {settings.max_replication_lag:g} s)"
    if settings.max_active_sessions is not None:
        (row,) = await conn.fetch(_ACTIVE, APPLICATION_PREFIX)
        if not row["visible"]:
            return f"this role may not see the sessions of the {side}: grant it pg_read_all_stats"
        if row["active"] > settings.max_active_sessions:
            return f"{row['active']} sessions are active on the {side} (limit {settings.max_active_sessions})"
    return ""


async def _query_obstacle(conn: Connection, side: Side, settings: ThrottleSettings) -> str:
    assert settings.query is not None  # noqa: S101 - the caller looked
    try:
        async with conn.transaction(readonly=True):
            answer = await conn.fetchval(settings.query, timeout=settings.query_timeout)
    except TimeoutError:
        return f"the throttle query on the {side} did not answer within {settings.query_timeout:g} s"
    except POSTGRES_ERRORS as error:
        return f"the throttle query on the {side} fails: {type(error).__name__}"
    return "" if answer is True else f"the throttle query on the {side} does not answer true"
