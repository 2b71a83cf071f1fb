"""One call sets up a process: its spans are one trace, its lines carry the trace, and no secret is in either."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from replank.errors import ConfigurationError
from replank.telemetry.jaeger import Jaeger
from replank.telemetry.sampling import FlowSampler
from replank.telemetry.setup import TelemetrySettings, setup
from replank.testing.faults import unused_address
from replank.testing.plugin import FaultProxies
from replank.testing.processes import Process

PROGRAMS = str(Path(__file__).with_name("programs"))


def lines_of(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]


async def run(env: dict[str, str]) -> Process:
    async with Process("flow", env=env, cwd=PROGRAMS) as process:
        assert await process.exit_code() == 0, process.output
    return process


async def test_a_request_its_sql_its_calls_and_its_events_are_one_trace(
    postgres_dsn: str, otlp_endpoint: str, jaeger: Jaeger
) -> None:
    trace_id = secrets.token_hex(16)
    env = {
        "DSN": postgres_dsn,
        "OTLP": otlp_endpoint,
        "OTHER": otlp_endpoint,
        "TRACEPARENT": f"00-{trace_id}-{secrets.token_hex(8)}-01",
    }
    process = await run(env)
    found = await jaeger.trace(trace_id, until=lambda found: found.find("publish orders"))
    assert found.services == {"flow-test"}
    server = "POST /orders/{order_id}"
    found.assert_path(server, "select")
    found.assert_path(server, "GET")
    found.assert_path(server, "outbox wait", "publish orders")
    assert {span.kind for span in found.find(server)} == {"server"}

    statements = [span.tags.get("db.query.text") for span in found.spans]
    assert "select $1::text" in statements
    assert not [text for text in statements if text and "advisory_unlock" in str(text)], "the pool's housekeeping"
    assert "hunter2" not in repr([(span.name, span.tags, span.logs) for span in found.spans])
    assert "hunter2" not in process.output


async def test_log_lines_of_everybody_are_json_with_the_trace(postgres_dsn: str, otlp_endpoint: str) -> None:
    trace_id = secrets.token_hex(16)
    env = {
        "DSN": postgres_dsn,
        "OTLP": otlp_endpoint,
        "OTHER": otlp_endpoint,
        "TRACEPARENT": f"00-{trace_id}-{secrets.token_hex(8)}-01",
    }
    by_message = {line["message"]: line for line in lines_of(await run(env))}
    ours, structured, library = (by_message[text] for text in ("handled it", "from structlog", "from a library"))
    for line in (ours, structured, library):
        assert line["trace_id"] == trace_id
        assert len(line["span_id"]) == 16
        assert line["service"] == "flow-test"
        assert line["event_id"] == "e-1"
        assert line["event_type"] == "shop.order.paid.v1"
        assert line["timestamp"].endswith("Z")
    assert "trace_id" not in by_message["in good health"], "a probe is not worth a trace"
    assert (ours["attempt"], ours["password"]) == (2, "[redacted]")
    assert structured["dsn"] == "postgresql://ann:[redacted]@db/shop"
    assert library["logger"] == "uvicorn.error"


async def test_without_a_sampled_parent_nothing_is_recorded(
    postgres_dsn: str, otlp_endpoint: str, jaeger: Jaeger
) -> None:
    unsampled, sampled = secrets.token_hex(16), secrets.token_hex(16)
    for trace_id, flags in ((unsampled, "00"), (sampled, "01")):
        parent = f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"
        await run({"DSN": postgres_dsn, "OTLP": otlp_endpoint, "OTHER": otlp_endpoint, "TRACEPARENT": parent})
    # The later flow has arrived, so the earlier one would have too.
    await jaeger.trace(sampled, until=lambda found: found.find("publish orders"))
    assert await jaeger.find(unsampled) is None


async def test_a_service_runs_with_no_collector_and_with_a_dead_one(postgres_dsn: str, otlp_endpoint: str) -> None:
    await run({"DSN": postgres_dsn, "OTHER": otlp_endpoint})
    async with unused_address() as address:
        process = await run({"DSN": postgres_dsn, "OTHER": otlp_endpoint, "OTLP": f"http://{address}"})
    warnings = [line for line in lines_of(process) if "cannot be exported" in line["message"]]
    assert len(warnings) == 1


async def test_a_service_that_is_told_to_end_does_so_though_its_collector_stalls(
    postgres_dsn: str, otlp_endpoint: str, fault_proxy: FaultProxies
) -> None:
    proxy = await fault_proxy(otlp_endpoint.removeprefix("http://"))
    proxy.stall()
    env = {"DSN": postgres_dsn, "OTHER": otlp_endpoint, "OTLP": f"http://{proxy.address}"}
    async with Process("flow", env=env, cwd=PROGRAMS) as process:
        await process.line_with("done", within=15)
        assert await process.exit_code(within=5) == 0


def test_setting_up_twice_is_an_error_until_the_first_is_shut_down() -> None:
    first = setup(TelemetrySettings(service_name="one"))
    try:
        with pytest.raises(ConfigurationError, match="already set up, for the service one"):
            setup(TelemetrySettings(service_name="two"))
    finally:
        first.shutdown()
    first.shutdown()
    again = setup(TelemetrySettings(service_name="two"))
    again.shutdown()


async def test_after_its_shutdown_a_process_decides_for_nobody_whether_a_flow_is_traced() -> None:
    heads = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        httpx.AsyncClient(base_url="http://{}:{}".format(*server.sockets[0].getsockname())) as client,
    ):
        telemetry = setup(TelemetrySettings(service_name="caller"))
        try:
            await client.get("/")
        finally:
            await asyncio.to_thread(telemetry.shutdown)
        await client.get("/")
    during, after = heads
    assert b"traceparent:" in during
    assert b"traceparent:" not in after


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"service_name": ""}, "no name"),
        ({"service_name": "a", "sample_ratio": 1.5}, "not between 0 and 1"),
        ({"service_name": "a", "otlp_endpoint": "127.0.0.1:4318"}, "not an http"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        TelemetrySettings(**settings)


def test_an_unknown_log_level_is_named_and_leaves_nothing_set_up() -> None:
    with pytest.raises(ConfigurationError, match="LOUD"):
        setup(TelemetrySettings(service_name="a", log_level="LOUD"))
    setup(TelemetrySettings(service_name="a")).shutdown()


class TestSampling:
    def decision(self, ratio: float, *, parent: bool | None = None, statement: str | None = None) -> Decision:
        sampler = FlowSampler()
        sampler.use(ratio)
        context = None
        if parent is not None:
            flags = TraceFlags(1 if parent else 0)
            context = trace.set_span_in_context(NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=flags)))
        attributes = {"db.query.text": statement} if statement else None
        return sampler.should_sample(context, 1 << 127, "name", SpanKind.CLIENT, attributes).decision

    @pytest.mark.parametrize("ratio", [0.0, 1.0])
    def test_the_parent_decides_whatever_the_ratio(self, ratio: float) -> None:
        assert self.decision(ratio, parent=True) is Decision.RECORD_AND_SAMPLE
        assert self.decision(ratio, parent=False) is Decision.DROP

    def test_the_ratio_decides_where_a_flow_begins(self) -> None:
        assert self.decision(1.0) is Decision.RECORD_AND_SAMPLE
        assert self.decision(0.0) is Decision.DROP

    def test_sql_outside_any_flow_begins_no_trace(self) -> None:
        assert self.decision(1.0, statement="select 1") is Decision.DROP
        assert self.decision(1.0, parent=True, statement="select 1") is Decision.RECORD_AND_SAMPLE

    def test_the_pools_housekeeping_is_part_of_no_trace(self) -> None:
        statement = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;"
        assert self.decision(1.0, parent=True, statement=statement) is Decision.DROP
