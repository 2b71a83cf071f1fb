"""Which flows are traced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

# asyncpg's pool runs this each time a connection comes back: no part of anybody's flow.
_POOL_RESET: Final = "SELECT pg_advisory_unlock_all()"


class FlowSampler(Sampler):
    """Samples as the parent is sampled, and where there is none, a share of the flows that begin here.

    SQL outside any flow (a poll, a health check) begins no trace, and the pool's own housekeeping is part of none.
    The share may change at any time: OpenTelemetry lets a process have one sampler, for life.
    """

    def __init__(self) -> None:
        self._ratio = TraceIdRatioBased(0.0)
        self._forced = 0

    def use(self, ratio: float) -> None:
        """Sample this share of the flows from now on: 0 to 1."""
        self._ratio = TraceIdRatioBased(ratio)

    @contextmanager
    def every_flow(self) -> Iterator[None]:
        """Sample every flow that begins here meanwhile, whatever the share."""
        self._forced += 1
        try:
            yield
        finally:
            self._forced -= 1

    def should_sample(  # noqa: PLR0917 - the SDK calls it so
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """The SDK's question, asked once a span."""
        parent = trace.get_current_span(parent_context).get_span_context()
        statement = (attributes.get("db.query.text") or attributes.get("db.statement")) if attributes else None
        if isinstance(statement, str) and (not parent.is_valid or statement.startswith(_POOL_RESET)):
            return SamplingResult(Decision.DROP, None, parent.trace_state)
        if not parent.is_valid and not self._forced:
            return self._ratio.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        decision = Decision.DROP if parent.is_valid and not parent.trace_flags.sampled else Decision.RECORD_AND_SAMPLE
        return SamplingResult(decision, attributes, parent.trace_state)

    def get_description(self) -> str:
        """For logs."""
        return f"FlowSampler({self._ratio.get_description()})"


SAMPLER: Final = FlowSampler()
"""The sampler of this process."""
