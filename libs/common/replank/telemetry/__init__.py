"""Traces, metrics and logs of a service, set up in one call.

This package imports nothing by itself, so that each part costs only what it needs: `replank.telemetry.metrics` needs
prometheus_client, `replank.telemetry.context` and `replank.telemetry.semconv` the OpenTelemetry API,
`replank.telemetry.jaeger` httpx, and `replank.telemetry.setup` the extra ``telemetry``.
"""
