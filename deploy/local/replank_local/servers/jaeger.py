"""Jaeger, the trace store: its traces survive a restart in a stack that does, and live in memory in tests."""

from __future__ import annotations

from typing import Final

from replank_local.artifacts import jaeger
from replank_local.places import DEPLOY
from replank_local.unit import Command, Place, Unit, http_ok


async def _prepare(place: Place) -> Command:
    folder = place.data_folder("jaeger")
    configuration = DEPLOY / "jaeger" / ("badger.yaml" if place.durable else "memory.yaml")
    return Command(
        argv=[str(jaeger().path), "--config", str(configuration)],
        cwd=folder,
        environment={
            "JAEGER_DATA": str(folder),
            "JAEGER_QUERY_PORT": str(place.ports["jaeger"]),
            "JAEGER_QUERY_GRPC_PORT": str(place.ports["jaeger.query-grpc"]),
            "JAEGER_HEALTH_PORT": str(place.ports["jaeger.health"]),
            "OTLP_HTTP_PORT": str(place.ports["jaeger.otlp"]),
            "OTLP_GRPC_PORT": str(place.ports["jaeger.otlp-grpc"]),
        },
    )


async def _ready(place: Place) -> bool:
    return await http_ok(place.ports["jaeger.health"], "/status")


JAEGER: Final = Unit(
    name="jaeger",
    ports={
        "jaeger": 26686,
        "jaeger.otlp": 24318,
        "jaeger.otlp-grpc": 24317,
        "jaeger.query-grpc": 26685,
        "jaeger.health": 23133,
    },
    prepare=_prepare,
    ready=_ready,
    artifact=jaeger,
)
