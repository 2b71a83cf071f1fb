"""A service as one process: HTTP, the relay of its outbox, the consumers of its inbox and its work, on one event loop.

::

    def compose(settings: ShopSettings) -> Service:
        service = Service(settings, name="shop", package="shop", sends=[OrderPaid], receives=[StockCounted])
        service.consume(subscribe)
        service.route(api.router(service.pools))
        return service

Its servers may come up in any order, go away and come back. The process answers from the first moment on, says in
``/readyz`` what it waits for, and tries again until it has it; nobody has to restart it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final, TypeVar

import openfeature.api
import stamina.instrumentation
from aiokafka.errors import KafkaError
from fastapi import APIRouter, FastAPI
from faststream.kafka import KafkaBroker
from openfeature.client import OpenFeatureClient

from replank import declaration, outbox
from replank.authz import AuthzClient
from replank.contracts import flags as flag_contracts
from replank.contracts.declarations import EventContractDeclared, EventContractUsed
from replank.contracts.documents import asyncapi
from replank.errors import ConfigurationError, DependencyUnavailable, ReplankError
from replank.events import Event
from replank.flags.provider import FlagProvider
from replank.flags.topic import ensure_topic
from replank.http import Authenticator, Readiness, create_app
from replank.inbox import Inbox, topics
from replank.outbox.relay import Relay
from replank.postgres import Pools, pending
from replank.settings import EventServiceSettings

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


def _is_news(record: logging.LogRecord) -> bool:
    # Said at every start of a subscriber that leaves topics to others, as ours do: `replank.inbox.topics` is the other.
    return not record.getMessage().startswith("Topic creation is skipped in consumer-only mode")


# Not FastStream's own logger: that has a handler, whose lines are coloured and no JSON.
_faststream_log = logging.getLogger("replank.faststream")
_faststream_log.addFilter(_is_news)


def _tell_of_retry(details: stamina.instrumentation.RetryDetails) -> None:
    # What fails in the end is raised, and told by whoever asked. An error of ours names its server.
    _log.info("attempt %d failed, the next in %.2f s: %s", details.retry_num, details.wait_for, details.caused_by)


# Not stamina's own hooks: they warn of every attempt, without saying whose, and add a metric that says no more.
stamina.instrumentation.set_on_retry_hooks([_tell_of_retry])

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
# Of what `outbox.verify` finds, what a migration mends; the rest the relay sees to once it runs.
_NOT_INSTALLED: Final = frozenset({"not_installed", "wrong_version", "missing_function"})


class Service:
    """What all services have in common, put together. Nothing is opened before the application starts.

    ``name`` is the service's name in traces, metrics, Kafka groups and event sources; ``package`` is the one with its
    ``migrations``. ``sends`` are the contracts that it appends to its outbox, ``receives`` those that it has handlers
    for: the topics that it writes to are created if they are missing, those of its dead letters among them. Every
    service also says what its contracts look like, and which contracts it uses: see `replank.contracts.declarations`.
    """

    def __init__(
        self,
        settings: EventServiceSettings,
        *,
        name: str,
        package: str,
        sends: Sequence[type[Event]],
        receives: Sequence[type[Event]],
    ) -> None:
        self.name = name
        self.package = package
        self.sends: tuple[type[Event], ...] = (*sends, EventContractDeclared, EventContractUsed)
        self.receives = tuple(receives)
        self.settings = settings
        replica = settings.replica_dsn
        self.pools = Pools(
            settings.dsn.get_secret_value(),
            service=name,
            replica_dsn=replica.get_secret_value() if replica else None,
            settings=settings.pools,
        )
        self.readiness = Readiness()
        self._authenticator = Authenticator(
            issuer=settings.auth_issuer, audience=settings.auth_audience, jwks=settings.auth_jwks
        )
        self._authz = (
            AuthzClient(settings.authz_url, settings.service_token_file)
            if settings.authz_url and settings.service_token_file
            else None
        )
        self._broker = KafkaBroker(settings.kafka, consumer_only=True, logger=_faststream_log)
        self._flags: FlagProvider | None = None
        self._loading_flags = asyncio.Lock()
        self._inbox: Inbox | None = None
        self._relay: Relay | None = None
        self._subscribe: Callable[[Inbox], None] = _handle_nothing
        self._routers: list[APIRouter] = []
        self._streamed: dict[re.Pattern[str], int] = {}
        self._works: list[tuple[str, Callable[[asyncio.Event], Awaitable[None]]]] = []
        self._prepared = asyncio.Event()
        self.steps: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._waiting: dict[str, str] = {}

    def consume(self, subscribe: Callable[[Inbox], None]) -> None:
        """``subscribe`` registers the handlers."""
        self._subscribe = subscribe

    def before_consuming(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """Something that must have succeeded once, with Postgres there, before events are consumed and work begins."""
        self.steps.append((name, step))

    def work(self, name: str, run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Something to do beside requests and events, once the database is migrated. ``run`` returns after its event
        is set, which is before consumers and relay end; where it raises it is run again."""
        self._works.append((name, run))

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Something to close in the end; the last one given is closed first."""
        self._closers.append(close)

    async def flags(self) -> OpenFeatureClient:
        """The client to ask feature flags with, which never waits. Anybody else may ask OpenFeature too.

        The first call loads what this service knew last from its own database, so that no request is answered by
        defaults because it came early. Raises `DependencyUnavailable` when that database does not answer.
        """
        await self._load_flags()
        return openfeature.api.get_client()

    def route(self, router: APIRouter, *, streamed: Mapping[re.Pattern[str], int] | None = None) -> None:
        """Add HTTP routes; ``streamed`` are paths whose bodies are not held as a whole, with how large they may be."""
        self._routers.append(router)
        self._streamed.update(streamed or {})

    def app(self) -> FastAPI:
        """The HTTP application, whose life is the service's life. Call it once."""
        self.readiness.add("postgres", self.pools.check)
        self.readiness.add("kafka", self._check_kafka)
        if self.settings.run_relay:
            self.readiness.add("relay", self._check_relay)
        self.readiness.add("inbox", self._check_inbox)
        self.readiness.add("keys", self._authenticator.check)
        # Flags that may be out of date are still the flags.
        self.readiness.add("flags", self._check_flags, required=False)
        if self._authz is not None:
            # Without it this service still consumes, and answers 503 where it has to ask.
            self.readiness.add("auth-cache", self._authz.ping, required=False)
            self.on_close(self._authz.close)
        return create_app(
            service=self.name,
            version=version("replank"),
            authenticator=self._authenticator,
            authz=self._authz,
            readiness=self.readiness,
            routers=self._routers,
            lifespan=self._lifespan,
            max_body=self.settings.http_max_body,
            streamed=self._streamed,
            metrics_open=self.settings.http_metrics_open,
        )

    async def close(self) -> None:
        """Close what was opened; the end of the application's life does so by itself."""
        for close in reversed(self._closers):
            await close()
        await self.pools.close()

    def asyncapi(self, description: str) -> dict[str, Any]:
        """The AsyncAPI document of what the service sends and receives."""
        return asyncapi(self.name, description, sends=self.sends, receives=self.receives)

    # --- life ---

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        before, outbox.default_source = outbox.default_source, f"replank/{self.name}"
        stop = asyncio.Event()
        publishing = asyncio.create_task(self._publish(stop), name="relay")
        consuming = asyncio.create_task(self._consume(), name="consumers")
        following = asyncio.create_task(self._follow_flags(), name="flags")
        declaring = asyncio.create_task(self._declare(), name="declarations")
        done = asyncio.Event()
        working = [asyncio.create_task(self._work(name, run, done), name=name) for name, run in self._works]
        try:
            yield
        finally:
            # Work and consumers first: what their last steps append may still be published.
            done.set()
            if working:
                await asyncio.wait(working, timeout=self.settings.shutdown_timeout)
                for task in working:
                    task.cancel()
                await asyncio.wait(working)
            consuming.cancel()
            await asyncio.wait([consuming])
            stop.set()
            await asyncio.wait([publishing], timeout=self.settings.shutdown_timeout if self._relay else 0.0)
            publishing.cancel()
            following.cancel()
            declaring.cancel()
            await asyncio.wait([publishing, following, declaring])
            if self._flags is not None:
                await self._flags.close()
            await self.close()
            outbox.default_source = before

    async def _publish(self, stop: asyncio.Event) -> None:
        if not self.settings.run_relay:
            return
        await self._until_done("relay", self._require_migrated)
        await self._until_done("relay", self._ensure_topics)
        relay = self._relay = Relay(
            dsn=self.settings.dsn.get_secret_value(), kafka=self.settings.kafka, settings=self.settings.relay
        )
        await self._until_done("relay", lambda: relay.run(stop))

    async def _consume(self) -> None:
        await self._until_done("inbox", self._require_migrated)
        for name, step in self.steps:
            await self._until_done(name, step)
        self._prepared.set()
        await self._until_done("inbox", self._ensure_topics)
        inbox = await self._until_done("inbox", self._make_inbox)
        await self._until_done("inbox", inbox.start)
        self._inbox = inbox
        try:
            await asyncio.Event().wait()
        finally:
            await inbox.stop()

    async def _work(self, name: str, run: Callable[[asyncio.Event], Awaitable[None]], done: asyncio.Event) -> None:
        await self._until_done(name, self._require_migrated)
        waits = [asyncio.create_task(event.wait()) for event in (self._prepared, done)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._prepared.is_set():
            return
        await self._until_done(name, lambda: run(done))

    async def _declare(self) -> None:
        await self._until_done("declarations", self._require_migrated)
        await self._until_done("declarations", self._declare_contracts)

    async def _declare_contracts(self) -> None:
        async with self.pools.general_primary.acquire() as conn, conn.transaction():
            declared = await declaration.declare(conn, self.sends, service=self.name)
        if declared:
            _log.info("declared %d contracts: %s", len(declared), ", ".join(declared))

    async def _follow_flags(self) -> None:
        await self._until_done("flags", self._require_migrated)
        provider = await self._until_done("flags", self._load_flags)
        provider.follow()

    async def _load_flags(self) -> FlagProvider:
        if self._flags is not None:
            return self._flags
        async with self._loading_flags:
            if self._flags is None:
                provider = FlagProvider(await self.pools.general_primary.open(), self.settings.kafka)
                await provider.load()
                openfeature.api.set_provider_and_wait(provider)
                self._flags = provider
            return self._flags

    async def _make_inbox(self) -> Inbox:
        pool = await self.pools.write_heavy.open()
        inbox = Inbox(self._broker, pool, consumer=self.name, settings=self.settings.inbox)
        self._subscribe(inbox)
        if inbox.contracts() != set(self.receives):
            raise ConfigurationError(
                f"{self.name} has not the handlers that it says it has",
                fix="give Service the contracts under `receives` that its subscribers handle",
            )
        return inbox

    async def _until_done(self, part: str, step: Callable[[], Awaitable[Result]]) -> Result:
        """Do a step until it succeeds, and return its result. Meanwhile the readiness of ``part`` says why not."""
        pause = _FIRST_PAUSE
        while True:
            try:
                result = await step()
            except ReplankError as error:
                reason = str(error)
                _log.warning("%s is not ready: %s", part, reason)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                _log.exception("%s is not ready for an unexpected reason", part)
            else:
                self._waiting.pop(part, None)
                return result
            self._waiting[part] = reason
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _require_migrated(self) -> None:
        await self.pools.general_primary.check()
        waiting = await pending(self.settings.dsn.get_secret_value(), self.package, "pre")
        async with self.pools.general_primary.acquire() as conn:
            wrong = [finding for finding in await outbox.verify(conn) if finding.code in _NOT_INSTALLED]
        if waiting or wrong:
            reason = f"{waiting[0].name} is not applied" if waiting else wrong[0].message
            raise ConfigurationError(
                f"the database of {self.name} is not migrated: {reason}",
                fix=f"run `python -m {self.package} migrate pre`",
            )

    async def _ensure_topics(self) -> None:
        written, create = self._written_topics(), self.settings.inbox.create_topics
        if create and flag_contracts.TOPIC in written:
            try:
                # Not with the broker's defaults: this topic is also where the flags are kept.
                await ensure_topic(self.settings.kafka, flag_contracts.TOPIC)
            except (KafkaError, OSError) as error:
                raise DependencyUnavailable("kafka", f"Kafka does not answer: {error!r}") from error
        await topics.ensure(self._broker, written, create=create)

    def _written_topics(self) -> list[str]:
        dead_letters = {f"{contract.event_topic}.dlq" for contract in self.receives}
        return sorted({contract.event_topic for contract in self.sends} | dead_letters)

    # --- readiness ---

    async def _check_kafka(self) -> None:
        await topics.ensure(self._broker, self._written_topics(), create=False)

    async def _check_relay(self) -> None:
        if self._relay is None:
            raise DependencyUnavailable("relay", self._waiting.get("relay", "starting"))
        if not self._relay.healthy:
            raise DependencyUnavailable("relay", self._relay.problem)

    async def _check_inbox(self) -> None:
        if self._inbox is None:
            elsewhere = {"relay", "flags", "declarations", *(name for name, _ in self._works)}
            reasons = [reason for part, reason in self._waiting.items() if part not in elsewhere]
            raise DependencyUnavailable("inbox", "; ".join(reasons) or "starting")
        if not self._inbox.healthy:
            raise DependencyUnavailable("inbox", "; ".join(self._inbox.findings()))

    async def _check_flags(self) -> None:
        if self._flags is None:
            raise DependencyUnavailable("flags", self._waiting.get("flags", "starting"))
        if self._flags.stale is not None:
            raise DependencyUnavailable("flags", f"may be out of date: {self._flags.stale}")


def _handle_nothing(_: Inbox) -> None:
    """The subscribers of a service that consumes nothing."""
