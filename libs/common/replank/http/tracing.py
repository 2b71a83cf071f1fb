"""Which trace a request belongs to."""

from __future__ import annotations

import uuid
from typing import Any

from opentelemetry import trace
from starlette.types import Scope

_KEY = "replank.trace_id"


def trace_id_of(scope: Scope) -> str:
    """The id (32 hexadecimal digits) of the request's trace, or one made up for it where no tracer is set up.

    It is fixed at the first call, so that the log, the header and the problem document agree.
    """
    known: Any = scope.get(_KEY)
    if known is None:
        context = trace.get_current_span().get_span_context()
        known = scope[_KEY] = trace.format_trace_id(context.trace_id) if context.is_valid else uuid.uuid4().hex
    return str(known)
