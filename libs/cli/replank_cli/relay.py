"""``replank relay``: a relay as a process of its own, for any database with an outbox."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from importlib.metadata import version
from typing import Annotated, Literal

import typer
from prometheus_client import start_http_server

from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings
from replank.telemetry.setup import TelemetrySettings, setup
from replank_cli.connection import Dsn, Kafka, Service, dsn_of, kafka_of

app = typer.Typer(add_completion=False, help="Publish what an outbox holds.", no_args_is_help=True)


@app.callback()
def relay() -> None:
    """Publish what an outbox holds."""


@app.command()
def run(
    dsn: Dsn = None,
    service: Service = None,
    kafka: Kafka = None,
    delivery: Annotated[Literal["at_least_once", "exactly_once"], typer.Option()] = "at_least_once",
    retention_hours: Annotated[int, typer.Option(min=1, help="How long published events are kept for replay.")] = 72,
    name: Annotated[str, typer.Option(help="service.name of its spans and logs.")] = "replank-relay",
    otlp: Annotated[str | None, typer.Option(envvar="REPLANK_OTLP", help="OTLP/HTTP collector.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Serve metrics on this port of loopback.")] = None,
) -> None:
    """Run a relay until SIGTERM or Ctrl-C. Start more of them to share the outbox's shards."""
    settings = RelaySettings(delivery=delivery, retention=timedelta(hours=retention_hours))
    of_database, of_kafka = dsn_of(dsn, service), kafka_of(kafka)
    telemetry = setup(TelemetrySettings(service_name=name, otlp_endpoint=otlp, service_version=version("replank")))

    async def until_told_to_stop() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await Relay(of_database, of_kafka, settings).run(stop)

    try:
        if metrics_port is not None:
            start_http_server(metrics_port, addr="127.0.0.1")
        asyncio.run(until_told_to_stop())
    finally:
        telemetry.shutdown()
