"""Traces as Jaeger's query API returns them: fetch one, walk it, draw it in a terminal.

Needs httpx alone, so that the command line, tests and any script can use it::

    async with Jaeger("http://127.0.0.1:16686") as jaeger:
        trace = await jaeger.trace(trace_id, until=lambda trace: trace.find("outbox wait"))
        print(waterfall(trace))
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import httpx

from replank.errors import DependencyUnavailable, ReplankError

_POLL_SECONDS: Final = 0.1


class TraceNotFound(ReplankError):
    """Jaeger does not have the trace, or not yet the spans that were asked for."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A span's pointer to another one: its parent (``CHILD_OF``) or a link (``FOLLOWS_FROM``)."""

    kind: str
    trace_id: str
    span_id: str


@dataclass(eq=False)
class Span:
    """One span. ``start`` (since the epoch) and ``duration`` are in microseconds; ``children`` are ordered by start."""

    trace_id: str
    span_id: str
    name: str
    service: str
    start: int
    duration: int
    tags: dict[str, Any]
    references: tuple[Reference, ...]
    logs: tuple[dict[str, Any], ...] = ()
    parent: Span | None = None
    children: list[Span] = field(default_factory=list, repr=False)

    @property
    def end(self) -> int:
        """When it ended, in microseconds since the epoch."""
        return self.start + self.duration

    @property
    def kind(self) -> str:
        """``server``, ``client``, ``producer``, ``consumer`` or ``internal``."""
        return str(self.tags.get("span.kind", "internal"))

    @property
    def failed(self) -> bool:
        """Whether its status is an error."""
        return self.tags.get("error") is True or self.tags.get("otel.status_code") == "ERROR"

    @property
    def links(self) -> tuple[Reference, ...]:
        """What it points to besides its parent."""
        parent_id = self.parent.span_id if self.parent else None
        return tuple(
            reference
            for reference in self.references
            if not (reference.kind == "CHILD_OF" and reference.span_id == parent_id)
        )

    def ancestors(self) -> Iterator[Span]:
        """The parent, its parent, and so on to the root."""
        at = self.parent
        while at is not None:
            yield at
            at = at.parent

    def descendants(self) -> Iterator[Span]:
        """Every span below this one, depth first."""
        for child in self.children:
            yield child
            yield from child.descendants()

    def __str__(self) -> str:
        return f"{self.service}: {self.name}"


@dataclass(frozen=True)
class Trace:
    """All spans of one trace that had arrived. ``roots`` are those whose parent is not among them."""

    trace_id: str
    spans: tuple[Span, ...]

    @property
    def roots(self) -> tuple[Span, ...]:
        """More than one means that the trace is broken, or not complete yet."""
        return tuple(span for span in self.spans if span.parent is None)

    @property
    def services(self) -> set[str]:
        """The names of the services that took part."""
        return {span.service for span in self.spans}

    def find(self, name: str, *, service: str | None = None) -> list[Span]:
        """The spans of that name, by start."""
        return [span for span in self.spans if span.name == name and service in {None, span.service}]

    def paths(self, *names: str) -> list[tuple[Span, ...]]:
        """Every chain of spans in which each is below the one before it, at any depth.

        A name is a span's name, or ``service: name`` to say whose.
        """
        found: list[tuple[Span, ...]] = []

        def extend(path: tuple[Span, ...], rest: Sequence[str]) -> None:
            if not rest:
                found.append(path)
                return
            below = path[-1].descendants() if path else iter(self.spans)
            for span in below:
                if rest[0] in {span.name, str(span)}:
                    extend((*path, span), rest[1:])

        extend((), names)
        return found

    def assert_path(self, *names: str) -> tuple[Span, ...]:
        """The first of `paths`; `AssertionError` draws the trace when there is none."""
        found = self.paths(*names)
        if not found:
            raise AssertionError(f"no path {' -> '.join(names)} in the trace {self.trace_id}:\n{waterfall(self)}")
        return found[0]


class Jaeger:
    """A client of the query API at ``url``. Use it with ``async with``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.AsyncClient(base_url=url, timeout=10.0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def trace(
        self, trace_id: str | int, *, until: Callable[[Trace], object] | None = None, within: float = 10.0
    ) -> Trace:
        """The trace, once ``until`` says of it something true. Spans arrive late and in any order, so it asks again.

        ``trace_id`` is 32 hexadecimal digits, or a number as OpenTelemetry's ``SpanContext`` has it. Raises
        `TraceNotFound` after ``within`` seconds; its text draws what had come.
        """
        name = f"{trace_id:032x}" if isinstance(trace_id, int) else trace_id
        deadline = time.monotonic() + within
        while True:
            trace = await self.find(name)
            if trace is not None and (until is None or until(trace)):
                return trace
            if time.monotonic() >= deadline:
                if trace is None:
                    raise TraceNotFound(f"no span of the trace {name} came to {self._url} within {within:g} s")
                raise TraceNotFound(f"the trace {name} was not as expected within {within:g} s:\n{waterfall(trace)}")
            await asyncio.sleep(_POLL_SECONDS)

    async def find(self, trace_id: str) -> Trace | None:
        """The trace as far as it has arrived, or nothing."""
        body = await self._get(f"/api/traces/{trace_id}", missing={404})
        return parse(body["data"][0]) if body and body.get("data") else None

    async def search(
        self, service: str, *, operation: str | None = None, tags: dict[str, str] | None = None, limit: int = 20
    ) -> list[Trace]:
        """The newest traces in which ``service`` has a span, of that name and with these tags if given."""
        query: dict[str, str] = {"service": service, "limit": str(limit), "lookback": "2d"}
        if operation:
            query["operation"] = operation
        if tags:
            query["tags"] = json.dumps(tags)
        body = await self._get("/api/traces", query=query)
        return [parse(found) for found in (body or {}).get("data") or ()]

    async def services(self) -> list[str]:
        """The names of all services of which Jaeger has a span."""
        body = await self._get("/api/services")
        return sorted((body or {}).get("data") or ())

    async def _get(
        self, path: str, *, query: dict[str, str] | None = None, missing: set[int] | None = None
    ) -> dict[str, Any] | None:
        try:
            response = await self._client.get(path, params=query)
        except httpx.HTTPError as error:
            raise DependencyUnavailable(
                "jaeger",
                f"Jaeger at {self._url} does not answer: {type(error).__name__}",
                fix="start it with `make up`",
            ) from error
        if response.status_code in (missing or set()):
            return None
        if response.is_error:
            raise DependencyUnavailable("jaeger", f"Jaeger at {self._url} answered {response.status_code} to {path}")
        body: dict[str, Any] = response.json()
        return body


def parse(found: dict[str, Any]) -> Trace:
    """The trace in one element of ``data`` of an answer of Jaeger's."""
    services = {key: process["serviceName"] for key, process in found["processes"].items()}
    # A sender that tries again after a lost answer is kept twice by some storages.
    spans = {span["spanID"]: _span(span, services) for span in found["spans"]}
    ordered = sorted(spans.values(), key=lambda span: (span.start, -span.duration))
    for span in ordered:
        parents = (ref for ref in span.references if ref.kind == "CHILD_OF" and ref.trace_id == span.trace_id)
        span.parent = next((spans[ref.span_id] for ref in parents if ref.span_id in spans), None)
        if span.parent is not None:
            span.parent.children.append(span)
    return Trace(found["traceID"], tuple(ordered))


def _span(span: dict[str, Any], services: dict[str, str]) -> Span:
    return Span(
        trace_id=span["traceID"],
        span_id=span["spanID"],
        name=span["operationName"],
        service=services[span["processID"]],
        start=span["startTime"],
        duration=span["duration"],
        tags={tag["key"]: tag["value"] for tag in span["tags"]},
        references=tuple(
            Reference(reference["refType"], reference["traceID"], reference["spanID"])
            for reference in span["references"]
        ),
        logs=tuple(
            {"time": log["timestamp"], **{entry["key"]: entry["value"] for entry in log["fields"]}}
            for log in span["logs"] or ()
        ),
    )


def waterfall(trace: Trace, *, width: int = 120) -> str:
    """The trace as text, a line a span: the tree of names, its place in time, its duration; ``!`` marks a failure."""
    if not trace.spans:
        return f"trace {trace.trace_id}: no spans"
    start = min(span.start for span in trace.spans)
    total = max(span.end for span in trace.spans) - start or 1
    rows = [row for root in trace.roots for row in _tree(root, "", "")]
    label_width = min(max(len(label) for label, _ in rows), width * 3 // 5)
    bar_width = max(width - label_width - 14, 10)
    services = ", ".join(sorted(trace.services))
    lines = [f"trace {trace.trace_id}: {len(rows)} spans, {_duration(total)}, services: {services}"]
    for label, span in rows:
        left = (span.start - start) * (bar_width - 1) // total
        size = max(span.duration * bar_width // total, 1)
        bar = (" " * left + "█" * min(size, bar_width - left)).ljust(bar_width)
        short = label if len(label) <= label_width else label[: label_width - 1] + "…"
        mark = "!" if span.failed else " "
        lines.append(f"{short:<{label_width}} {mark}|{bar}| {_duration(span.duration):>9}")
    return "\n".join(lines)


def _tree(span: Span, branch: str, indent: str) -> Iterator[tuple[str, Span]]:
    # A span names its service where that is not the one above it: the eye finds the hand-overs.
    label = span.name if span.parent is not None and span.parent.service == span.service else str(span)
    yield f"{branch}{label}", span
    for child in span.children:
        last = child is span.children[-1]
        yield from _tree(child, indent + ("└ " if last else "├ "), indent + ("  " if last else "│ "))


def _duration(microseconds: int) -> str:
    if microseconds < 1_000:
        return f"{microseconds} us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1_000:.1f} ms"
    return f"{microseconds / 1_000_000:.2f} s"
