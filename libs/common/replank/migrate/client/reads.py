"""Reading from whichever store a flag names, endpoint by endpoint, and knowing whether both would answer alike."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, get_args

import asyncpg
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from opentelemetry import trace

from replank.errors import ReplankError
from replank.migrate.authority import Side
from replank.migrate.client.answers import paths, shape
from replank.migrate.client.comparing import (
    ENDPOINT,
    Comparisons,
    EngineLedger,
    Ledger,
    Pool,
    Question,
    Read,
    ReadSettings,
    Store,
    timed,
)
from replank.migrate.client.token import Token, Written
from replank.migrate.sql import schema_of
from replank.telemetry import metrics

Value = TypeVar("Value")
Mode = Literal["kv", "compare", "new_with_fallback", "new"]

_log: Final = logging.getLogger(__name__)

MODES: Final[tuple[Mode, ...]] = get_args(Mode)

# What each side has of the writes to the other one. The side that takes the writes has them all; what is no side any
# more has nothing to wait for.
_APPLIED: Final = """
    select a.key, a.version
      from {schema}.authority s left join {schema}.{followed} a on a.key = any($1::text[])
     where s.side = $2 and s.writes <> 'open'
"""
_FOLLOWED: Final[dict[Side, str]] = {"target": "applied", "source": "restored"}

_MOST_KNOWN: Final = 10_000
_FIRST_WAIT: Final = 0.005
_LONGEST_WAIT: Final = 0.05

_MODE: Final = "replank.migrate.read.mode"
_STORE: Final = "replank.migrate.read.store"
_FALLBACK: Final = "replank.migrate.read.fallback"


class NotAppliedYet(ReplankError):
    """The only store that may answer does not have the caller's own writes yet. Trying again in a moment helps."""


class ReadRouter:
    """Answers the reads of the migration ``name`` from the key-value store or from the tables.

    ``flags`` is an OpenFeature client. The flag ``migrate.<name>.reads.<endpoint>``, a string, says where an endpoint
    reads; whoever its rollout does not reach, and an endpoint without a flag, reads ``kv``:

    - ``kv``: the key-value store answers.
    - ``compare``: it answers, and the tables are asked afterwards, in the background, whether they would answer alike.
    - ``new_with_fallback``: the tables answer; where they fail, take too long, have nothing, or do not have the
      caller's own writes yet, the key-value store does.
    - ``new``: the tables answer.

    ``source`` and ``target`` are pools of the two databases (one pool twice where they are one), used to ask what has
    been applied. ``ledger`` says so instead where it is not the engine that keeps the two stores alike. Use it with
    ``async with``, or call `start` and `close`.
    """

    def __init__(
        self,
        name: str,
        *,
        source: Pool,
        target: Pool,
        flags: OpenFeatureClient,
        settings: ReadSettings | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.name = name
        self.settings = settings or ReadSettings()
        self._pools: dict[Side, Pool] = {"source": source, "target": target}
        self._flags = flags
        self._statements = {
            side: _APPLIED.format(schema=schema_of(name), followed=followed) for side, followed in _FOLLOWED.items()
        }
        self._comparisons = Comparisons(name, ledger or EngineLedger(name, source, target), self.settings)
        # What was seen applied, so that a token which comes back again and again asks the database once.
        self._applied: OrderedDict[tuple[Side, str], int] = OrderedDict()
        self._misnamed: set[tuple[str, str]] = set()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to report how comparisons go. Without it everything works but for the report."""
        self._comparisons.start()

    async def close(self, *, within: float = 5.0) -> None:
        """Wait up to ``within`` seconds for comparisons under way, cancel the others, and report what was counted."""
        await self._comparisons.close(within)

    def mode(self, endpoint: str, key: str | None = None, default: Mode = "kv") -> Mode:
        """Where an endpoint reads for the targeting key ``key``; without one, each call falls on a side by chance.

        ``default`` is where those read whom no flag reaches.
        """
        flag = f"migrate.{self.name}.reads.{endpoint}"
        targeting = key or f"{random.random()}"  # noqa: S311 - spreads a rollout, guards nothing
        value = self._flags.get_string_value(flag, default, EvaluationContext(targeting_key=targeting))
        for known in MODES:
            if value == known:
                return known
        if (endpoint, value) not in self._misnamed:
            self._misnamed.add((endpoint, value))
            _log.error("the flag %s has the value %r, which is none of %s: reading kv", flag, value, ", ".join(MODES))
        return "kv"

    async def read(
        self,
        endpoint: str,
        *,
        kv: Read[Value],
        tables: Read[Value],
        token: Token | None = None,
        key: str | None = None,
        missing: Callable[[Value], bool] = lambda answer: answer is None,
        ignore: Sequence[str] = (),
        form: Callable[[Value], Any] = shape,
        default: Mode = "kv",
    ) -> Value:
        """The answer of the store whose turn it is. ``kv`` and ``tables`` ask one each, and change nothing.

        ``endpoint`` is one of few names. ``key`` is whom a partial rollout is decided for, such as the user. ``token``
        is what the caller has written (`replank.migrate.client.token_of`): a store that does not have it yet is not
        asked if the other one may answer, and waited for otherwise. ``missing`` says of an answer of the tables that
        it is none. Answers are compared in the form that ``form`` gives them, but for the paths in ``ignore``
        (``items.*.price``). ``default`` is as in `mode`.

        Errors of the store that answers pass through; `NotAppliedYet` where only the tables may answer and do not have
        the caller's writes within the token's timeout.
        """
        mode = self.mode(endpoint, key, default)
        trace.get_current_span().set_attributes({ENDPOINT: endpoint, _MODE: mode})
        match mode:
            case "new":
                if not await self._has(token, "target", self.settings.token_timeout):
                    raise NotAppliedYet(
                        f"the tables do not have the caller's last writes yet ({endpoint})",
                        fix="try again in a moment; if it lasts, look whether the migration's applier runs",
                    )
                return await self._ask(endpoint, "tables", tables)
            case "new_with_fallback":
                return await self._ask_with_fallback(endpoint, kv, tables, token, missing)
        if not await self._has(token, "source", self.settings.token_timeout):
            # The tables took the write, so they are where it can be read.
            return await self._fall_back(endpoint, "token", "tables", tables)
        answer = await self._ask(endpoint, "kv", kv)
        if mode == "compare":
            self._comparisons.compare_later(Question(endpoint, kv, tables, paths(ignore), form), answer)
        return answer

    async def unapplied(self, token: Token) -> Token:
        """What of a token is still on its way: the rest may be forgotten, and need not be sent back."""
        waiting = [*await self._waiting(token, "target"), *await self._waiting(token, "source")]
        return Token.of(written for written in token if written in waiting)

    # --- asking ---

    async def _ask(self, endpoint: str, store: Store, read: Read[Value]) -> Value:
        trace.get_current_span().set_attribute(_STORE, store)
        return await timed(self.name, endpoint, store, read)

    async def _ask_with_fallback(
        self,
        endpoint: str,
        kv: Read[Value],
        tables: Read[Value],
        token: Token | None,
        missing: Callable[[Value], bool],
    ) -> Value:
        patience = asyncio.timeout(self.settings.tables_timeout)
        try:
            async with patience:
                if await self._has(token, "target", 0):
                    answer = await self._ask(endpoint, "tables", tables)
                    if not missing(answer):
                        return answer
                    reason = "missing"
                else:
                    reason = "token"
        except Exception as error:
            reason = "timeout" if patience.expired() else "error"
            # The text of an error may quote what was read.
            _log.warning("reading %s from the tables failed: %s", endpoint, type(error).__name__)
        return await self._fall_back(endpoint, reason, "kv", kv)

    async def _fall_back(self, endpoint: str, reason: str, store: Store, read: Read[Value]) -> Value:
        metrics.MIGRATE_FALLBACKS.labels(self.name, endpoint, reason).inc()
        trace.get_current_span().set_attribute(_FALLBACK, reason)
        return await self._ask(endpoint, store, read)

    # --- the caller's own writes ---

    async def _has(self, token: Token | None, side: Side, within: float) -> bool:
        """Whether a side has what the token says was written to the other one, now or within so many seconds."""
        if token is None:
            return True
        deadline = time.monotonic() + within
        pause = _FIRST_WAIT
        while await self._waiting(token, side):
            if time.monotonic() + pause > deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_WAIT)
        return True

    async def _waiting(self, token: Token, side: Side) -> list[Written]:
        other: Side = "source" if side == "target" else "target"
        waiting = [one for one in token.to(other) if self._applied.get((side, one.key), 0) < one.version]
        if not waiting:
            return []
        async with self._pools[side].acquire() as conn:
            try:
                rows = await conn.fetch(self._statements[side], [one.key for one in waiting], side)
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                # The migration has ended, or has been cancelled.
                rows = []
        if not rows:
            return []
        known = {key: version for key, version in rows if key is not None}
        for key, version in known.items():
            self._applied[side, key] = version
            self._applied.move_to_end((side, key))
        while len(self._applied) > _MOST_KNOWN:
            self._applied.popitem(last=False)
        return [one for one in waiting if known.get(one.key, 0) < one.version]
