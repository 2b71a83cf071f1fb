"""The inbox of one consumer: its subscriptions, and what keeps them going.

::

    broker = KafkaBroker("127.0.0.1:9092", consumer_only=True)
    inbox = Inbox(broker, pool, consumer="archiver")
    schema_events = inbox.topic("replank.schema")

    @schema_events.on(MigrationPlanned)
    async def keep_plan(delivery: Delivery[MigrationPlanned]) -> Outcome:
        await delivery.conn.execute("insert into plan …")
        return Done()

    async with inbox:
        ...
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import platform
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Literal, Self, TypeVar, overload

import asyncpg
from aiokafka.errors import KafkaError
from faststream.kafka import KafkaBroker
from uuid_utils.compat import uuid7

from replank.connection import POSTGRES_ERRORS, Connection
from replank.contracts import declarations
from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError
from replank.events import Event
from replank.inbox import store, topics, tracing
from replank.inbox.delivery import Batch, Delivery
from replank.inbox.install import verify
from replank.inbox.limit import DlqLimit
from replank.inbox.outcome import Outcome, is_transient
from replank.inbox.processing import Handler
from replank.inbox.settings import InboxSettings
from replank.inbox.subscription import Subscription, cancel
from replank.inbox.usage import Usage
from replank.telemetry import metrics

_log: Final = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)
F = TypeVar("F", bound=Event)
G = TypeVar("G", bound=Event)
Argument = TypeVar("Argument")
_Function = Callable[[Argument], Awaitable[Outcome]]
_Register = Callable[[_Function[Argument]], _Function[Argument]]


class Topic:
    """A topic and the handlers of its events, one event at a time. Made by `Inbox.topic`."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @overload
    def on(self, contract: type[E], /) -> _Register[Delivery[E]]: ...
    @overload
    def on(self, first: type[E], second: type[F], /) -> _Register[Delivery[E | F]]: ...
    @overload
    def on(self, first: type[E], second: type[F], third: type[G], /) -> _Register[Delivery[E | F | G]]: ...
    @overload
    def on(self, *contracts: type[Event]) -> _Register[Delivery[Any]]: ...
    def on(self, *contracts: type[Event]) -> _Register[Delivery[Any]]:
        """Register the decorated function for events of these contracts. Each type has one handler a topic."""

        def register(function: _Function[Delivery[Any]]) -> _Function[Delivery[Any]]:
            _register(self._subscription, contracts, function)
            return function

        return register

    async def resume(self) -> None:
        """Begin again after the subscription stopped at its dead-letter limit."""
        await self._subscription.resume()


class BatchTopic:
    """A topic and the handlers of its events, many at a time. Made by `Inbox.topic` with ``batch=True``."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @overload
    def on(self, contract: type[E], /) -> _Register[Batch[E]]: ...
    @overload
    def on(self, first: type[E], second: type[F], /) -> _Register[Batch[E | F]]: ...
    @overload
    def on(self, first: type[E], second: type[F], third: type[G], /) -> _Register[Batch[E | F | G]]: ...
    @overload
    def on(self, *contracts: type[Event]) -> _Register[Batch[Any]]: ...
    def on(self, *contracts: type[Event]) -> _Register[Batch[Any]]:
        """Register the decorated function for events of these contracts, in the order of their partition.

        A batch ends where an event of another handler comes between: give events that mix one handler.
        """

        def register(function: _Function[Batch[Any]]) -> _Function[Batch[Any]]:
            _register(self._subscription, contracts, function)
            return function

        return register

    async def resume(self) -> None:
        """Begin again after the subscription stopped at its dead-letter limit."""
        await self._subscription.resume()


def _register(subscription: Subscription, contracts: tuple[type[Event], ...], function: _Function[Any]) -> None:
    handler = Handler(function, batch=subscription.batch)
    if not contracts:
        raise ConfigurationError(f"handler {handler.name} is registered for no contract", fix="name at least one")
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"handler {handler.name} is not async", fix="write `async def`")
    for contract in contracts:
        event_type = getattr(contract, "event_type", None)
        if event_type is None:
            raise ConfigurationError(f"{contract.__qualname__} is no contract", fix="declare it with type= and topic=")
        known = subscription.handlers.get(event_type)
        if known is not None:
            raise ConfigurationError(
                f"{event_type} of {subscription.topic} has the handlers {known[1].name} and {handler.name}",
                fix="an event has one effect per consumer: call both from one handler, or make another Inbox",
            )
        subscription.handlers[event_type] = (contract, handler)


class Inbox:
    """Applies the events of some topics once for the consumer of this name.

    ``consumer`` names the consumer for good: it is part of what is remembered as applied, and the Kafka group of
    each topic is ``<consumer>.<topic>``. ``pool`` leads to the database that holds the inbox and the effects; each
    subscription uses up to ``settings.concurrency`` of its connections.

    ``broker`` is used for its settings. Give one with ``consumer_only=True`` unless it also publishes; if it is not
    started, the inbox connects it on start and stops it on stop.
    """

    def __init__(
        self, broker: KafkaBroker, pool: asyncpg.Pool, *, consumer: str, settings: InboxSettings | None = None
    ) -> None:
        if not consumer or consumer != consumer.strip() or len(consumer) > declarations.LONGEST_CONSUMER:
            raise ConfigurationError(f"{consumer!r} is no name for a consumer", fix="name it after its service")
        self.consumer = consumer
        self.settings = settings or InboxSettings()
        self._broker = broker
        self._pool = pool
        self._subscriptions: dict[str, Subscription] = {}
        self._usage = Usage(consumer)
        self._instance = uuid7()
        self._keeper: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._problem: str | None = "not started"
        self._owns_broker = False

    @overload
    def topic(
        self, name: str, *, batch: Literal[False] = ..., ordered: bool = ..., limit: DlqLimit | None = ...
    ) -> Topic: ...
    @overload
    def topic(
        self, name: str, *, batch: Literal[True], ordered: bool = ..., limit: DlqLimit | None = ...
    ) -> BatchTopic: ...
    def topic(
        self, name: str, *, batch: bool = False, ordered: bool = True, limit: DlqLimit | None = None
    ) -> Topic | BatchTopic:
        """Subscribe to a topic, once an inbox.

        ``ordered``: whether the events of one key have to be applied in order, so that one that becomes a dead
        letter holds back those behind it. ``limit``: how many may die before the subscription stops instead.
        """
        if name in self._subscriptions:
            raise ConfigurationError(f"{self.consumer} subscribes to {name} twice", fix="keep what topic() returned")
        if self._keeper is not None:
            raise ConfigurationError(
                f"{self.consumer} subscribes to {name} while it runs", fix="subscribe before start"
            )
        subscription = Subscription(
            self._broker,
            self._pool,
            consumer=self.consumer,
            topic=name,
            batch=batch,
            ordered=ordered,
            limit=limit or DlqLimit(),
            settings=self.settings,
            usage=self._usage,
        )
        self._subscriptions[name] = subscription
        return BatchTopic(subscription) if batch else Topic(subscription)

    def contracts(self) -> set[type[Event]]:
        """The contracts that have a handler."""
        return {
            contract for subscription in self._subscriptions.values() for contract, _ in subscription.handlers.values()
        }

    # --- life ---

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start to consume. Returns when it does, or when Kafka or Postgres does not answer: then it keeps trying.

        Raises `ConfigurationError` for what no waiting will mend: no inbox in the database, a topic that is kept
        for longer than the inbox remembers, a subscription without handlers.
        """
        if self._keeper is not None:
            raise ConfigurationError(f"the inbox of {self.consumer} is started twice", fix="stop it first")
        for name, subscription in self._subscriptions.items():
            if not subscription.handlers:
                raise ConfigurationError(f"{self.consumer} subscribes to {name} and handles no event of it")
        self._owns_broker = not self._broker.running
        try:
            await self._begin()
        except DependencyUnavailable as error:
            self._not_yet(error)
        except BaseException:
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep(), name=f"inbox {self.consumer}")

    async def stop(self) -> None:
        """Let running handlers finish (within ``settings.stop_timeout``), commit, leave. Harmless when not started."""
        keeper, self._keeper = self._keeper, None
        self._problem = "stopped"
        if keeper is not None:
            await cancel([keeper])
        await asyncio.gather(*(subscription.stop() for subscription in self._subscriptions.values()))
        if self._started.is_set():
            self._started.clear()
            try:
                with tracing.quiet():
                    async with self._pool.acquire() as conn:
                        await store.sign_off(conn, self.consumer, self._instance)
                        if self.settings.usage_interval is not None:
                            await self._usage.tell(conn)
            except (*POSTGRES_ERRORS, ReplankError) as error:
                _log.info("consumer could not sign off", extra={"consumer": self.consumer, "error": repr(error)})
        # Stopping the broker would stop what else reads through it: another inbox, a plain FastStream subscriber.
        if self._owns_broker and not any(subscriber.running for subscriber in self._broker.subscribers):
            await self._broker.stop()

    async def started(self) -> None:
        """Wait until it consumes for the first time."""
        await self._started.wait()

    @property
    def healthy(self) -> bool:
        """Whether every subscription reads: for a readiness probe."""
        return self._problem is None and all(subscription.healthy for subscription in self._subscriptions.values())

    def findings(self) -> list[str]:
        """What is wrong or waits, in words; nothing if all is well."""
        if self._problem is not None:
            return [self._problem]
        return [finding for subscription in self._subscriptions.values() for finding in subscription.findings()]

    # --- what keeps it going ---

    async def _begin(self) -> None:
        names = list(self._subscriptions)
        try:
            async with self._pool.acquire() as conn:
                wrong = [
                    finding
                    for finding in await verify(conn, dead_letter_topic=self.settings.dead_letter_topic)
                    if finding.severity == "error"
                ]
                if wrong:
                    raise ConfigurationError(wrong[0].message, fix=wrong[0].fix)
                await self._heartbeat(conn)
        except POSTGRES_ERRORS as error:
            if not is_transient(error):
                raise
            raise DependencyUnavailable("postgres", f"Postgres does not answer: {type(error).__name__}") from error
        # Without its topic, the first of what it writes would stop the relay of this database's outbox.
        written = [f"{name}.dlq" for name in names] if self.settings.dead_letter_topic else []
        if self.settings.usage_interval is not None:
            written.append(declarations.TOPIC)
        await topics.ensure(self._broker, [*names, *written], create=self.settings.create_topics)
        await topics.require_shorter_retention(self._broker, names, self.settings.retention)
        try:
            await self._broker.connect()
        except (KafkaError, OSError) as error:
            raise DependencyUnavailable("kafka", f"Kafka does not answer: {error!r}") from error
        for subscription in self._subscriptions.values():
            await subscription.start()
        self._problem = None
        self._started.set()

    def _not_yet(self, error: ReplankError) -> None:
        if self._problem != str(error):
            _log.warning("consumer cannot start yet", extra={"consumer": self.consumer, "why": str(error)})
        self._problem = str(error)

    async def _keep(self) -> None:
        failures = 0
        while not self._started.is_set():
            failures += 1
            pause = min(self.settings.backoff * 2 ** min(failures, 32), self.settings.backoff_max)
            await asyncio.sleep(pause.total_seconds())
            try:
                await self._begin()
            except ReplankError as error:
                self._not_yet(error)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(self.settings.heartbeat, self._look_after))
            group.create_task(self._every(self.settings.maintenance_interval, self._maintain))
            group.create_task(self._every(self.settings.redrive_interval, self._redrive))
            if self.settings.usage_interval is not None:
                group.create_task(self._every(self.settings.usage_interval, self._tell_usage))

    async def _every(self, interval: timedelta, duty: Callable[[], Awaitable[None]]) -> None:
        """Do a duty again and again. Its failure is logged once until it succeeds, and never ends the consumer."""
        failing = False
        while True:
            try:
                with tracing.quiet():
                    await duty()
            except Exception as error:
                if not failing:
                    _log.warning(
                        "a duty of the inbox fails and is tried again",
                        extra={"consumer": self.consumer, "duty": duty.__name__.strip("_"), "error": repr(error)},
                        exc_info=None if is_transient(error) else error,
                    )
                failing = True
            else:
                failing = False
            await asyncio.sleep(interval.total_seconds())

    async def _look_after(self) -> None:
        """Say that this process is alive, count what is parked, start again what has ended."""
        for subscription in self._subscriptions.values():
            if not subscription.running:
                _log.error("subscription had ended and is started again", extra={"topic": subscription.topic})
                await subscription.start()
        async with self._pool.acquire() as conn:
            await self._heartbeat(conn)
            for name in self._subscriptions:
                metrics.INBOX_PARKED_KEYS.labels(self.consumer, name).set(
                    await store.parked_keys(conn, self.consumer, name)
                )

    async def _heartbeat(self, conn: Connection) -> None:
        handlers = {
            name: {type_: handler.name for type_, (_, handler) in subscription.handlers.items()}
            for name, subscription in self._subscriptions.items()
        }
        await store.heartbeat(
            conn, self.consumer, self._instance, host=platform.node(), pid=os.getpid(), handlers=handlers
        )

    async def _maintain(self) -> None:
        async with self._pool.acquire() as conn:
            changes = await store.maintain(conn, self.settings.retention, self.settings.partition_days_ahead)
        for change, partition in changes:
            _log.info(f"inbox partition {change}", extra={"partition": partition})

    async def _tell_usage(self) -> None:
        """Tell which contracts this process used since it last did."""
        async with self._pool.acquire() as conn:
            await self._usage.tell(conn)

    async def _redrive(self) -> None:
        """Handle the dead letters again that somebody asked for, one transaction each, until there are none left."""
        while True:
            async with self._pool.acquire() as conn, conn.transaction():
                letter = await store.next_redrive(conn, self.consumer, self._subscriptions)
                if letter is None:
                    return
                await self._subscriptions[letter.event.topic].processor.redrive(conn, letter)
