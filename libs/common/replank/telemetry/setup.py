"""Traces, metrics and logs of a process, set up in one call by its composition root::

    telemetry = setup(TelemetrySettings(service_name="archiver", otlp_endpoint="http://127.0.0.1:4318"))
    ...
    telemetry.shutdown()

From then on SQL (asyncpg) and outgoing HTTP (httpx) make spans. Incoming HTTP does where the application makes them, as
what `replank.http.create_app` returns.
Nothing here can take the service down: see `replank.telemetry.pipeline`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from opentelemetry import propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from replank.errors import ConfigurationError
from replank.telemetry import metrics
from replank.telemetry.encode import encode
from replank.telemetry.logs import logging_to
from replank.telemetry.pipeline import SpanPipeline
from replank.telemetry.registry import render_metrics
from replank.telemetry.sampling import SAMPLER
from replank.telemetry.template import use_sink

__all__ = ["Telemetry", "TelemetrySettings", "render_metrics", "setup"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings:
    """What a process says about itself, and where to.

    ``otlp_endpoint`` is the base URL of an OTLP/HTTP collector; without one nothing is exported and no trace begins
    here. ``sample_ratio`` (0 to 1) is the share of the flows that begin here which are traced; one that began
    elsewhere is traced if it is traced there. ``log_levels`` are exceptions from ``log_level`` by the name of the
    logger.
    """

    service_name: str
    otlp_endpoint: str | None = None
    otlp_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    sample_ratio: float = 1.0
    log_level: str = "INFO"
    log_levels: Mapping[str, str] = field(default_factory=dict)
    log_json: bool = True
    service_version: str = ""
    environment: str = ""

    def __post_init__(self) -> None:
        if not self.service_name:
            raise ConfigurationError("the service has no name", fix="set service_name")
        if not 0.0 <= self.sample_ratio <= 1.0:
            raise ConfigurationError(f"the sample ratio {self.sample_ratio} is not between 0 and 1")
        if self.otlp_endpoint is not None:
            parts = urlsplit(self.otlp_endpoint)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ConfigurationError("the OTLP endpoint is not an http:// or https:// URL")

    def resource(self) -> dict[str, str | int]:
        """The attributes of every span of this process, by OpenTelemetry's conventions."""
        found: dict[str, str | int] = {
            "service.name": self.service_name,
            "service.version": self.service_version,
            "deployment.environment.name": self.environment,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
        }
        return {name: value for name, value in found.items() if value != ""}


class _ToPipeline(SpanProcessor):
    """Hands ended spans to the pipeline of the moment. A process has one tracer provider for life, hence the switch."""

    def __init__(self) -> None:
        self.pipeline: SpanPipeline | None = None

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if self.pipeline is None or context is None or not context.trace_flags.sampled:
            return
        try:
            scope, encoded = encode(span)
        except Exception:
            # Whoever ends a span must never fail for it.
            metrics.SPANS_DROPPED.labels("malformed").inc()
            _log.warning("the span %s cannot be encoded", span.name, exc_info=True)
            return
        self.pipeline.add(scope, encoded)


_processor: Final = _ToPipeline()
_lock: Final = threading.Lock()


class _Process:
    telemetry: Telemetry | None = None
    providers: Final[list[TracerProvider]] = []


class Telemetry:
    """What `setup` set up; `shutdown` undoes it."""

    def __init__(self, settings: TelemetrySettings, pipeline: SpanPipeline | None, undo: ExitStack) -> None:
        self.settings = settings
        self._pipeline = pipeline
        self._undo = undo

    def flush(self, timeout: float = 5.0) -> bool:
        """Block until the spans that ended so far were sent, for at most ``timeout`` seconds; whether they all were."""
        return self._pipeline is None or self._pipeline.flush(timeout)

    def shutdown(self, timeout: float = 5.0) -> None:
        """Send what waits, for at most ``timeout`` seconds, and leave the process as it was. Harmless the second time.

        It blocks: on an event loop, call it as ``await asyncio.to_thread(telemetry.shutdown)``.
        """
        with _lock:
            if _Process.telemetry is not self:
                return
            use_sink(None)
            _processor.pipeline = None
            SAMPLER.use(0.0)
            if self._pipeline is not None:
                self._pipeline.close(timeout)
            self._undo.close()
            _Process.telemetry = None


def setup(settings: TelemetrySettings) -> Telemetry:
    """Set up traces, metrics and logs for this process. Raises `ConfigurationError` while it already is set up.

    A process that forks does this after the fork: threads do not survive one.
    """
    with _lock:
        if _Process.telemetry is not None:
            raise ConfigurationError(
                f"telemetry is already set up, for the service {_Process.telemetry.settings.service_name}",
                fix="call setup once a process, or shut the other one down first",
            )
        undo = ExitStack()
        undo.enter_context(
            logging_to(
                service=settings.service_name,
                level=settings.log_level,
                levels=settings.log_levels,
                as_json=settings.log_json,
            )
        )
        # Before the instrumentations read it: the current names of attributes, not those of 2021.
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
        propagate.set_global_textmap(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
        _use_provider(settings)
        pipeline = None
        if settings.otlp_endpoint is not None:
            pipeline = SpanPipeline(settings.otlp_endpoint, settings.resource(), headers=settings.otlp_headers)
            SAMPLER.use(settings.sample_ratio)
            _processor.pipeline = pipeline
            use_sink(pipeline)
        for instrumentor in (AsyncPGInstrumentor(), HTTPXClientInstrumentor()):  # type: ignore[no-untyped-call]
            if not instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.instrument()
                # Left in place it would tell whoever is called that the flow is not traced, and end its trace there.
                undo.callback(instrumentor.uninstrument)
        _Process.telemetry = telemetry = Telemetry(settings, pipeline, undo)
        return telemetry


def _use_provider(settings: TelemetrySettings) -> None:
    """OpenTelemetry lets a process have one tracer provider, for life: ours, or the one that is there already."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        provider = TracerProvider(
            sampler=SAMPLER, resource=Resource.create(dict(settings.resource())), shutdown_on_exit=False
        )
        trace.set_tracer_provider(provider)
    elif not isinstance(provider, TracerProvider):
        raise ConfigurationError(
            f"this process has a tracer provider that is not the OpenTelemetry SDK's: {type(provider).__name__}",
            fix="call setup before anything else sets a tracer provider",
        )
    if provider not in _Process.providers:
        provider.add_span_processor(_processor)
        _Process.providers.append(provider)
