"""Spans as a test sees them: the ones that ended, kept in memory in the order in which they ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from replank.telemetry.sampling import SAMPLER
from replank.telemetry.template import ordinary_spans


class Spans:
    """The spans that ended while this was listening."""

    def __init__(self) -> None:
        self._ended: list[ReadableSpan] = []

    def add(self, span: ReadableSpan) -> None:
        """Called as a span ends, in whatever thread ends it."""
        self._ended.append(span)

    def all(self) -> tuple[ReadableSpan, ...]:
        """All of them."""
        return tuple(self._ended)

    def names(self) -> list[str]:
        """Their names."""
        return [span.name for span in self.all()]

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of one name."""
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only one of that name; `AssertionError` if there is none, or more."""
        found = self.named(name)
        assert len(found) == 1, f"{len(found)} spans are named {name!r} among {self.names()}"
        return found[0]

    def clear(self) -> None:
        """Forget them."""
        self._ended.clear()


class _Tap(SpanProcessor):
    """Hands each ended span to whoever listens. It stays on the provider, which has no way to take it off again."""

    def __init__(self) -> None:
        self.listeners: tuple[Spans, ...] = ()
        self.providers: list[TracerProvider] = []

    def on_end(self, span: ReadableSpan) -> None:
        for listener in self.listeners:
            listener.add(span)


_TAP: Final = _Tap()


@contextmanager
def captured_spans() -> Iterator[Spans]:
    """Capture every span that any tracer of this process ends, unless it has an unsampled parent.

    A process that has no tracer provider yet gets one, for good.
    """
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider(sampler=SAMPLER, shutdown_on_exit=False)
        trace.set_tracer_provider(provider)
    if provider not in _TAP.providers:
        provider.add_span_processor(_TAP)
        _TAP.providers.append(provider)
    spans = Spans()
    _TAP.listeners = (*_TAP.listeners, spans)
    try:
        with SAMPLER.every_flow(), ordinary_spans():
            yield spans
    finally:
        _TAP.listeners = tuple(listener for listener in _TAP.listeners if listener is not spans)


def parent_of(span: ReadableSpan) -> int | None:
    """The span id of the parent, or nothing for a root."""
    return span.parent.span_id if span.parent else None


def attributes(span: ReadableSpan) -> Mapping[str, object]:
    """The attributes, never nothing."""
    return span.attributes or {}
