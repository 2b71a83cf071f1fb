"""One stream of log lines: structlog and the standard library, ours and everybody's, in the same form.

A line is one JSON object: ``timestamp`` (UTC), ``level``, ``logger``, ``message``, ``service``, ``trace_id`` and
``span_id`` of the current span, what was bound (``event_id``, ``event_type``, …) or given as ``extra``, and
``exception``. Secrets and row data are taken out of all of it, see `replank.telemetry.redaction`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from replank.errors import ConfigurationError
from replank.telemetry import redaction

# Libraries that install handlers of their own, or are louder at INFO than a service should be.
_LIBRARIES: Final[Mapping[str, str]] = {
    "uvicorn": "INFO",
    "uvicorn.error": "INFO",
    # Our own access log says the same, with the trace.
    "uvicorn.access": "WARNING",
    "granian": "INFO",
    "_granian": "INFO",
    "granian.access": "WARNING",
    "aiokafka": "WARNING",
    "faststream": "INFO",
    "httpx": "WARNING",
    "httpcore": "WARNING",
    "urllib3": "WARNING",
    "asyncio": "WARNING",
}


def _with_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def _without_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {
        key: value
        if key in {"_record", "_from_structlog"}
        else (redaction.HIDDEN if redaction.names_secret(key) else redaction.redact(value))
        for key, value in event.items()
    }


def _with_service(service: str) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add


def _without_colours(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # the message once more, as uvicorn would show it on a terminal
    return event


def _in_order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What everyone looks for first comes first."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "logger", "message") if key in event}
    return {**first, **event}


def _to_json(event: EventDict, **_: Any) -> str:
    return json.dumps(event, default=str, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def logging_to(
    stream: TextIO | None = None,
    *,
    service: str,
    level: str = "INFO",
    levels: Mapping[str, str] | None = None,
    as_json: bool = True,
) -> Iterator[logging.Handler]:
    """Send every log line of this process to ``stream`` (standard error by default) while the context is entered.

    ``levels`` sets the level of single loggers, by name. Handlers that write to the terminal are put aside meanwhile,
    so that nothing appears twice; others (a test's capture, say) stay. Raises `ConfigurationError` for an unknown
    level.
    """
    wanted = {**_LIBRARIES, **(levels or {})}
    for name in (level, *wanted.values()):
        if name not in logging.getLevelNamesMapping():
            raise ConfigurationError(f"{name!r} is no log level", fix="use DEBUG, INFO, WARNING, ERROR or CRITICAL")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        _with_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        _with_service(service),
        _without_colours,
        _without_secrets,
        _in_order,
        structlog.processors.JSONRenderer(serializer=_to_json)
        if as_json
        else structlog.dev.ConsoleRenderer(event_key="message"),
    ]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()], processors=last)
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Loggers at module level are made before this runs, and tests set up more than once.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in _loggers(root, wanted)]
    for logger, *_ in before:
        for other in logger.handlers[:]:
            if logger is not root or type(other) is logging.StreamHandler:
                logger.removeHandler(other)
        logger.propagate = True
    root.addHandler(handler)
    root.setLevel(level)
    for name, own_level in wanted.items():
        logging.getLogger(name).setLevel(own_level)
    logging.captureWarnings(True)
    try:
        yield handler
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        for logger, own, propagate, handlers in before:
            logger.setLevel(own)
            logger.propagate = propagate
            for other in handlers:
                if other not in logger.handlers:
                    logger.addHandler(other)
        structlog.reset_defaults()


def _loggers(root: logging.Logger, names: Mapping[str, str]) -> list[logging.Logger]:
    return [root, *(logging.getLogger(name) for name in names)]
