"""What a trace is asked of Jaeger for: one flow, drawn as a waterfall once all of it has come."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from replank.errors import DependencyUnavailable
from replank.telemetry.jaeger import Jaeger, Trace, TraceNotFound, waterfall
from replank_cli.console import output
from replank_cli.demo.places import SERVICES
from replank_cli.demo.report import Report

_WITHIN: Final = 20.0
_NARROWEST: Final = 100


def new_trace() -> tuple[str, dict[str, str]]:
    """The id of a trace that begins here, and the header that makes whoever gets it record it."""
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}


async def draw(report: Report, jaeger: str | None, trace_id: str, is_whole: Callable[[Trace], bool]) -> bool:
    """Draw a trace; false if it did not come whole. That there is no Jaeger is said, and is no failure."""
    if jaeger is None:
        return _nobody_traces(report)
    async with Jaeger(jaeger) as client:
        try:
            trace = await client.trace(trace_id, until=is_whole, within=_WITHIN)
        except TraceNotFound as error:
            report.say(error.message)
            return False
        except DependencyUnavailable:
            # On a new machine its address is known minutes before it is built.
            return _nobody_traces(report)
    report.say(waterfall(trace, width=max(output.width, _NARROWEST)))
    report.say(f"{jaeger}/api/traces/{trace_id} has it as JSON; `replank trace show {trace_id}` draws it again.")
    return True


def _nobody_traces(report: Report) -> bool:
    report.say("Jaeger does not run: the flow worked, but nobody keeps its trace.")
    report.say("It is built in the background where Go is installed; `make status` tells, then run this again.")
    return True


def is_whole_plan(trace: Trace) -> bool:
    """Whether planning a migration has gone through all services and back."""
    waits = len(trace.find("outbox wait"))
    return trace.services >= set(SERVICES) and waits >= len(SERVICES) and len(trace.roots) == 1


def is_whole_write(topic: str) -> Callable[[Trace], bool]:
    """Whether a write has gone from the shop through capture and Kafka to the tables."""

    def is_whole(trace: Trace) -> bool:
        return (
            bool(trace.paths("outbox wait", f"publish {topic}", f"process {topic}")) and "storefront" in trace.services
        )

    return is_whole
