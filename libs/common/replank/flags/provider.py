"""OpenFeature over flags that are always in memory: loaded from the own database, kept current from Kafka."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import ProviderNotReadyError
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType
from openfeature.provider import AbstractProvider, Metadata

from replank.contracts.flags import TOPIC
from replank.flags.evaluation import Convert, Value, as_boolean, as_float, as_integer, as_object, as_string, evaluate
from replank.flags.follower import Follower
from replank.flags.local_copy import LocalCopy
from replank.flags.model import Flag
from replank.flags.store import Pool
from replank.flags.table import FlagTable
from replank.telemetry import metrics

log = logging.getLogger(__name__)

_SAVE_AT_CLOSE: Final = 2.0


class FlagProvider(AbstractProvider):
    """An OpenFeature provider. Start it in the event loop of the process, then register it::

        async with FlagProvider(pool, kafka="kafka:9092") as provider:
            openfeature.api.set_provider_and_wait(provider)
            client = openfeature.api.get_client()
            client.get_boolean_value("new-checkout", False, EvaluationContext(targeting_key=str(user_id)))

    ``pool`` is of the service's own database, where `replank.flags.install` was called. Asking never waits, and works
    from any thread. While Kafka does not answer, the provider is STALE and serves what it knew last; it recovers by
    itself. ``heartbeat`` (seconds) is how long Kafka may be silent before it is asked whether it is there; STALE is
    noticed within twice that.
    """

    def __init__(self, pool: Pool, kafka: str, *, topic: str = TOPIC, heartbeat: float = 5.0) -> None:
        super().__init__()
        self._copy = LocalCopy(pool)
        self._table = FlagTable()
        self._follower = Follower(
            kafka,
            topic,
            self._table,
            changed=self._on_changed,
            current=self._on_current,
            stale=self._on_stale,
            heartbeat=heartbeat,
        )
        self._stale: str | None = "the topic of the flags was not read yet"
        self._settled = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # --- life ---

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, *, catch_up: timedelta = timedelta(seconds=5)) -> None:
        """Load the last known flags and begin to follow changes.

        Waits until the topic was read to its end or Kafka was found not to answer, at most ``catch_up``: the flags are
        then as new as they can be. Raises as `load` does.
        """
        await self.load()
        self.follow()
        try:
            async with asyncio.timeout(catch_up.total_seconds()):
                await self._settled.wait()
        except TimeoutError:
            log.warning("the topic of the flags is not read to its end yet, going on", extra={"flags": self.known})
        except BaseException:
            # Who is cancelled here has no provider to close.
            await self.close()
            raise

    async def load(self) -> None:
        """Load the last known flags: from then on they can be asked for, and the provider can be registered.

        Raises `replank.flags.FlagsNotInstalled`, and `replank.errors.DependencyUnavailable` when the service's own
        database does not answer.
        """
        for flag in await self._copy.load():
            self._table.apply(flag)
        self._loop = asyncio.get_running_loop()

    def follow(self) -> None:
        """Begin to follow changes in the background. Call it once."""
        self._tasks = [
            asyncio.create_task(self._follower.run(), name="replank flags follower"),
            asyncio.create_task(self._copy.run(), name="replank flags local copy"),
        ]

    async def close(self) -> None:
        """Stop following, and save what is not in the local copy yet. Flags can still be asked for."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("a background task of the flags had failed", exc_info=outcome)
        if self._tasks:
            await self._copy.close(_SAVE_AT_CLOSE)
        self._tasks = []

    @property
    def known(self) -> int:
        """How many flags there are."""
        return len(self._table.live)

    @property
    def stale(self) -> str | None:
        """Why the flags may be out of date, or None."""
        return self._stale

    # --- what OpenFeature calls ---

    def get_metadata(self) -> Metadata:
        return Metadata(name="replank")

    def initialize(self, evaluation_context: EvaluationContext) -> None:  # noqa: ARG002 - OpenFeature's interface
        """Called by OpenFeature at registration, on any thread; it takes the provider for READY afterwards."""
        if self._loop is None:
            raise ProviderNotReadyError("start the provider before it is registered: `await provider.start()`")
        self._loop.call_soon_threadsafe(self._announce_stale)

    def shutdown(self) -> None:
        """Called by OpenFeature when the provider is replaced, on any thread: stops following."""
        if self._loop is not None and not self._loop.is_closed():
            for task in self._tasks:
                self._loop.call_soon_threadsafe(task.cancel)

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, default_value, evaluation_context, as_boolean)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key, default_value, evaluation_context, as_string)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key, default_value, evaluation_context, as_integer)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return self._resolve(flag_key, default_value, evaluation_context, as_float)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        return self._resolve(flag_key, default_value, evaluation_context, as_object)

    def _resolve(
        self, name: str, default: Value, context: EvaluationContext | None, convert: Convert
    ) -> FlagResolutionDetails[Value]:
        return evaluate(
            self._table.live,
            name,
            default,
            context.targeting_key if context is not None else None,
            convert,
            stale=self._stale is not None,
        )

    # --- what the follower tells ---

    def _on_changed(self, flags: Sequence[Flag]) -> None:
        self._copy.keep(flags)
        metrics.FLAGS_KNOWN.set(self.known)
        self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=[flag.name for flag in flags]))

    def _on_current(self) -> None:
        self._stale = None
        self._settled.set()
        metrics.FLAGS_STALE.set(0)
        metrics.FLAGS_KNOWN.set(self.known)
        self.emit_provider_ready(ProviderEventDetails(message="following changes"))

    def _on_stale(self, cause: str) -> None:
        self._stale = cause
        self._settled.set()
        self._announce_stale()

    def _announce_stale(self) -> None:
        if self._stale is not None:
            metrics.FLAGS_STALE.set(1)
            self.emit_provider_stale(ProviderEventDetails(message=self._stale))
