"""This project's outbox and relay, with its defaults; at least once, or exactly once."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Sequence
from typing import Final

import asyncpg
from opentelemetry import context, propagate
from prometheus_client import REGISTRY

from bench.outbox.subjects import Append, Target
from bench.outbox.workload import SOURCE, Row, event_class
from bench.procs import Command, module
from replank import outbox
from replank.outbox.relay import Relay
from replank.outbox.settings import RelaySettings
from replank.telemetry import metrics
from replank.telemetry.setup import TelemetrySettings, setup

EXACTLY_ONCE: Final = "replank-exactly-once"


def subject(name: str) -> Replank:
    return Replank(name)


class Replank:
    """Reads by snapshot windows; event rows are neither updated nor deleted."""

    ordered = True
    traces = True
    event_tables = ("replank_outbox", "event%")

    def __init__(self, name: str) -> None:
        self.name = name

    async def prepare(self, target: Target) -> None:
        connection = await asyncpg.connect(target.dsn)
        try:
            await outbox.install(connection)
        finally:
            await connection.close()

    def append(self, target: Target) -> Append:
        event = event_class(target.topic)

        async def append(connection: asyncpg.Connection, rows: Sequence[Row]) -> None:
            # One transaction is one request is one trace, here as in a service.
            token = context.attach(propagate.extract({"traceparent": rows[0].traceparent}))
            try:
                await outbox.append_many(
                    connection, [outbox.Message(event.of(row), key=row.key, source=SOURCE) for row in rows]
                )
            finally:
                context.detach(token)

        return append

    def relay(self, target: Target) -> Command:
        delivery = "exactly_once" if self.name == EXACTLY_ONCE else "at_least_once"
        return module(
            __name__,
            *("--dsn", target.dsn, "--kafka", target.kafka, "--delivery", delivery),
            # Not the one of a stack that uses the same Kafka.
            *("--cursor-topic", f"{target.topic}.cursors"),
        )


async def _relay(dsn: str, kafka: str, settings: RelaySettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    telemetry = setup(
        TelemetrySettings(
            service_name="bench-relay", otlp_endpoint=os.environ.get("REPLANK_TEST_OTLP"), log_level="WARNING"
        )
    )
    print("ready")
    await Relay(dsn=dsn, kafka=kafka, settings=settings).run(stop)
    await asyncio.to_thread(telemetry.shutdown)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--delivery", required=True)
    parser.add_argument("--cursor-topic", required=True)
    arguments = parser.parse_args()
    asyncio.run(
        _relay(
            arguments.dsn,
            arguments.kafka,
            RelaySettings(delivery=arguments.delivery, cursor_topic=arguments.cursor_topic),
        )
    )
    print(json.dumps({"spans_exported": REGISTRY.get_sample_value(metrics.SPANS_EXPORTED.name)}))


if __name__ == "__main__":
    main()
