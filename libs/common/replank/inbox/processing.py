"""One attempt at one event, or at a batch: inbox row, handler and commit in one transaction, and what came of it."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter
from typing import Any

from replank.connection import Connection, is_lost
from replank.errors import ReplankError
from replank.events import Event, InvalidEvent
from replank.inbox import dead_letters, store, tracing
from replank.inbox.delivery import Batch, Delivery
from replank.inbox.envelope import Envelope
from replank.inbox.outcome import Dead, Done, Outcome, Reason, Retry, is_transient
from replank.inbox.settings import InboxSettings
from replank.inbox.store import Death
from replank.inbox.usage import Usage
from replank.telemetry import metrics


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered handler and the contracts whose events it takes."""

    call: Callable[[Any], Awaitable[Outcome]]
    batch: bool

    @property
    def name(self) -> str:
        """What to call it in a log."""
        return f"{self.call.__module__}.{self.call.__qualname__}"


@dataclass(frozen=True, slots=True)
class Settled:
    """Nothing is left to do: applied now or earlier, or among the dead letters now."""

    applied: int = 0
    """How many events were applied by this attempt."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """A transient failure: the same again after a pause (``None``: as long as the settings say)."""

    after: timedelta | None
    detail: str

    @property
    def cause(self) -> str:
        """The detail without the error's own text, which may hold data."""
        return self.detail.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Failed:
    """Not to be had as it is. ``final`` says that trying again is known to be useless."""

    death: Death
    final: bool


@dataclass(frozen=True, slots=True)
class Split:
    """Not in one go: somewhere in the batch is an event that cannot be applied, or whose key is parked."""


Verdict = Settled | Backoff | Failed | Split


class _Rollback(Exception):
    """Carries a verdict out of a transaction that must not commit."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Work:
    """An event that has a handler: the record, and its value as the contract reads it."""

    envelope: Envelope
    event: Event
    handler: Handler


class Processor:
    """Applies events of one topic for one consumer. It holds no state of its own but counters."""

    def __init__(
        self,
        *,
        consumer: str,
        group: str,
        topic: str,
        ordered: bool,
        settings: InboxSettings,
        handlers: Mapping[str, tuple[type[Event], Handler]],
        usage: Usage,
    ) -> None:
        self.consumer = consumer
        self.group = group
        self.topic = topic
        self.ordered = ordered
        self.known_parked: set[bytes] = set()
        """Keys that were parked when last looked at: a hint that spares batches a rollback, never a decision."""
        self._settings = settings
        self._handlers = handlers
        self._usage = usage

    def prepare(self, envelope: Envelope) -> Work | Failed | None:
        """What there is to do about a record: work, a reason why it cannot be done, or nothing (no handler for it)."""
        if envelope.fault:
            return Failed(Death(Reason.NOT_A_CLOUDEVENT, envelope.fault), final=True)
        found = self._handlers.get(envelope.type)
        if found is None:
            metrics.INBOX_EVENTS.labels(self.consumer, self.topic, "", "skipped").inc()
            return None
        contract, handler = found
        try:
            event = contract.from_value(envelope.value or b"")
        except InvalidEvent as error:
            return Failed(Death(Reason.INVALID_EVENT, error.message), final=True)
        return Work(envelope, event, handler)

    async def apply(self, conn: Connection, work: Work, attempt: int) -> Verdict:
        """Try to apply one event. Cancellation rolls back and passes through; nothing else is raised."""
        envelope = work.envelope
        with tracing.processing(self.group, (envelope,), attempt) as span:
            try:
                fresh = await self._claim_and_handle(conn, work, attempt)
            except Exception as error:
                verdict = self._verdict(error, conn, attempt)
            else:
                outcome = "done" if fresh else "duplicate"
                self._count({envelope.type: 1}, outcome)
                tracing.mark(span, outcome, failed=False)
                return Settled(applied=int(fresh))
            if isinstance(verdict, Split):
                verdict = await self.follow(conn, work)
            tracing.mark(span, _failure(verdict), failed=True)
            return verdict

    async def apply_batch(self, conn: Connection, batch: Sequence[Work], attempt: int) -> Verdict:
        """Try to apply a batch (of one handler) in one transaction.

        `Split` asks the caller to go through the batch one by one: somewhere in it is an event that cannot be applied.
        """
        envelopes = [work.envelope for work in batch]
        with tracing.processing(self.group, envelopes, attempt) as span:
            try:
                fresh = await self._claim_and_handle_batch(conn, batch, attempt)
            except Exception as error:
                verdict = self._verdict(error, conn, attempt)
            else:
                done = Counter(work.envelope.type for work in fresh)
                self._count(done, "done")
                self._count(Counter(work.envelope.type for work in batch) - done, "duplicate")
                tracing.mark(span, "done" if fresh else "duplicate", failed=False)
                return Settled(applied=len(fresh))
            if isinstance(verdict, Failed) and len(batch) > 1:
                verdict = Split()
            if not isinstance(verdict, Split):
                tracing.mark(span, _failure(verdict), failed=True)
            return verdict

    async def _claim_and_handle(self, conn: Connection, work: Work, attempt: int) -> bool:
        """In one transaction; whether the event was new. Raises `_Rollback` with the verdict if it is not to commit."""
        envelope = work.envelope
        async with conn.transaction():
            fresh, parked = await store.claim(conn, self.consumer, envelope)
            if not fresh:
                return False
            if parked and self.ordered:
                raise _Rollback(Split())
            if envelope.key is not None:
                self.known_parked.discard(envelope.key)
            await self._handle(conn, (work,), attempt)
            return True

    async def _claim_and_handle_batch(self, conn: Connection, batch: Sequence[Work], attempt: int) -> list[Work]:
        """In one transaction; the events that were new. Raises `_Rollback` with the verdict if it is not to commit."""
        async with conn.transaction():
            new_ids, parked = await store.claim_many(conn, self.consumer, self.topic, [work.envelope for work in batch])
            if parked and self.ordered:
                self.known_parked |= parked
                raise _Rollback(Split())
            fresh = []
            for work in batch:
                # Of an event that is twice in the batch, the first is the event and the second its duplicate.
                if work.envelope.event_id in new_ids:
                    new_ids.remove(work.envelope.event_id)
                    fresh.append(work)
            if fresh:
                await self._handle(conn, fresh, attempt)
            return fresh

    async def follow(self, conn: Connection, work: Work) -> Verdict:
        """Let an event follow its parked key into the dead letters; to be tried again if the key is parked no more."""
        envelope = work.envelope
        assert envelope.key is not None  # noqa: S101 - only a key can be parked
        try:
            async with conn.transaction():
                await store.lock_key(conn, self.consumer, self.topic, envelope.key)
                if not await store.is_parked(conn, self.consumer, self.topic, envelope.key):
                    return Backoff(timedelta(0), "its key was un-parked in this moment")
                await self._bury(
                    conn, envelope, Death(Reason.KEY_PARKED, "an earlier event of this key is a dead letter")
                )
        except Exception as error:
            return backoff_for(error)
        self.known_parked.add(envelope.key)
        self._count({envelope.type: 1}, "dead")
        return Settled()

    async def bury(self, conn: Connection, envelope: Envelope, death: Death) -> Verdict:
        """Make an event a dead letter, in a transaction of its own. Whatever is in the way of that is waited for."""
        try:
            async with conn.transaction():
                await self._bury(conn, envelope, death)
        except Exception as error:
            return backoff_for(error)
        self._count({envelope.type: 1}, "dead")
        return Settled()

    async def _bury(self, conn: Connection, envelope: Envelope, death: Death) -> None:
        copy = self._settings.dead_letter_topic
        if await dead_letters.bury(conn, self.consumer, envelope, death, ordered=self.ordered, copy=copy):
            metrics.INBOX_DEAD_LETTERS.labels(self.consumer, self.topic, death.reason).inc()

    async def redrive(self, conn: Connection, letter: store.DeadLetter) -> None:
        """Handle a dead letter again, within the transaction in which it is locked, and write down what came of it."""
        attempt = letter.attempts + 1
        with tracing.redriving(self.group, letter.event, attempt) as span:
            prepared = self.prepare(letter.event)
            verdict: Verdict
            if prepared is None:
                detail = f"no handler for {letter.event.type} is registered for {self.topic} any more"
                verdict = Failed(Death(Reason.REJECTED, detail, attempts=attempt), final=True)
            elif isinstance(prepared, Failed):
                verdict = prepared
            else:
                try:
                    async with conn.transaction():
                        await self._handle(conn, (prepared,), attempt)
                    verdict = Settled()
                except Exception as error:
                    if is_lost(conn):
                        raise
                    verdict = self._verdict(error, conn, attempt)
            match verdict:
                case Backoff(after, detail):
                    await store.redrive_later(conn, letter.seq, after or self.backoff(attempt), attempt, detail)
                case Failed(death, final=False):
                    await store.redrive_later(conn, letter.seq, self.backoff(attempt), attempt, death.detail)
                case Failed(death):
                    await store.redrive_died(conn, self.consumer, letter, death)
                case _:
                    self._usage.count(letter.event.type)
                    await store.redriven(conn, letter.seq, attempt)
                    if letter.ordered and letter.event.key is not None:
                        await store.lock_key(conn, self.consumer, self.topic, letter.event.key)
                        await store.unpark(conn, self.consumer, self.topic, letter.event.key)
            ended = "done" if isinstance(verdict, Settled) else _failure(verdict)
            tracing.mark(span, ended, failed=ended != "done")
            metrics.INBOX_REDRIVES.labels(self.consumer, self.topic, ended).inc()

    def backoff(self, attempt: int) -> timedelta:
        """The pause after so many attempts: twice as long each time, give or take a half, up to the maximum."""
        longest: timedelta = min(self._settings.backoff * 2 ** min(attempt - 1, 32), self._settings.backoff_max)
        return longest * random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries, guards nothing

    async def _handle(self, conn: Connection, batch: Sequence[Work], attempt: int) -> None:
        """Call the handler; returns if the transaction may commit."""
        handler = batch[0].handler
        deliveries = [Delivery(work.event, conn, work.envelope, attempt) for work in batch]
        timeout = self._settings.handler_timeout
        started = perf_counter()
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                outcome = await handler.call(Batch(deliveries, conn, attempt) if handler.batch else deliveries[0])
        finally:
            metrics.INBOX_HANDLER_SECONDS.labels(self.consumer, self.topic, batch[0].envelope.type).observe(
                perf_counter() - started
            )
        match outcome:
            case Done():
                return
            case Retry(after):
                raise _Rollback(Backoff(after, "the handler asked to try again"))
            case Dead(reason):
                raise _Rollback(Failed(Death(Reason.REJECTED, reason, attempts=attempt), final=True))
            case _:
                raise _NoOutcome(
                    f"handler {handler.name} returned {type(outcome).__name__}", fix="return Done(), Retry() or Dead()"
                )

    def _verdict(self, error: Exception, conn: Connection, attempt: int) -> Verdict:
        if isinstance(error, _Rollback):
            return error.verdict
        detail = f"{type(error).__name__}: {error}"
        if isinstance(error, store.BeyondRetention):
            return Failed(Death(Reason.BEYOND_INBOX_RETENTION, error.message, attempts=attempt), final=True)
        stack = "".join(traceback.format_exception(error))
        if is_transient(error, conn):
            most = self._settings.transient_attempts
            if most is not None and attempt >= most:
                return Failed(Death(Reason.RETRIES_EXHAUSTED, detail, stack, attempt), final=True)
            return Backoff(None, detail)
        return Failed(
            Death(Reason.HANDLER_ERROR, detail, stack, attempt),
            final=isinstance(error, _NoOutcome) or attempt >= self._settings.attempts,
        )

    def _count(self, types: Mapping[str, int], outcome: str) -> None:
        for type_, count in types.items():
            metrics.INBOX_EVENTS.labels(self.consumer, self.topic, type_, outcome).inc(count)
            if outcome == "done":
                self._usage.count(type_, count)


def _failure(verdict: Verdict) -> str:
    """What to call an attempt that did not apply its event: a public reason, or that it is tried again."""
    match verdict:
        case Failed(death, final=True):
            return death.reason
        case Settled():
            return Reason.KEY_PARKED
        case _:
            return "retry"


def backoff_for(error: Exception) -> Backoff:
    """Wait, whatever the error is: the event can neither be applied nor put away now, and may not be dropped."""
    return Backoff(None, f"{type(error).__name__}: {error}")


class _NoOutcome(ReplankError):
    """A handler returned something that is no outcome: a mistake in its code, which trying again does not mend."""
