"""One request goes through all four services: the effects it has, and the one trace that ties them together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from replank.contracts.archiver import PlanArchived
from replank.contracts.auth_cache import AccessGranted
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.schema import MigrationPlanned, MigrationReady
from replank.telemetry.jaeger import Jaeger, Span, Trace
from replank.testing import eventually
from replank_local.services import SERVICES
from tests.e2e.records import everything, header, repeated
from tests.e2e.system import DRAFT, OWNER, System

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="session")]

CONTRACTS: Final = (MigrationPlanned, MigrationReady, AccessGranted, BaselineRecorded, PlanArchived)
# Spans of a flow as it should be: what each service appends waits, is published, and is processed by whom it concerns.
HOPS: Final = {
    "auth-cache": "replank.auth-cache",
    "benchmark": "replank.benchmark",
    "archiver": "replank.archiver",
}


@dataclass(frozen=True, slots=True)
class Story:
    """A migration that was planned over HTTP and became ready through events, and the trace of that request."""

    migration: dict[str, Any]
    trace_id: str


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def story(system: System) -> Story:
    """One migration, from the request until it is ready."""
    answer = await system.plan()
    assert answer.status_code == 201, answer.text
    return Story(await system.ready(answer.json()["id"]), answer.headers["x-trace-id"])


def complete(trace: Trace) -> bool:
    """Whether the last span of the flow has come: nobody consumes MigrationReady, so it ends with its publication."""
    ready = trace.paths("schema: process replank.benchmark", "schema: publish replank.schema")
    ready += trace.paths("schema: process replank.auth-cache", "schema: publish replank.schema")
    ready += trace.paths("schema: process replank.archiver", "schema: publish replank.schema")
    return bool(ready) and len(trace.roots) == 1 and len(trace.find("COMMIT;")) >= 7


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def trace(system: System, story: Story) -> Trace:
    """The trace of that request, with every span of it."""
    async with Jaeger(system.stack.endpoints.jaeger) as jaeger:
        return await jaeger.trace(story.trace_id, until=complete, within=60)


def named(trace: Trace, prefix: str) -> list[Span]:
    """The spans whose name begins so."""
    return [span for span in trace.spans if span.name.startswith(prefix)]


async def test_one_request_is_one_trace(trace: Trace) -> None:
    (root,) = trace.roots
    assert str(root) == "schema: POST /v1/migrations"
    assert root.kind == "server"
    assert trace.services == set(SERVICES)
    assert not [str(span) for span in trace.spans if span.failed]


async def test_the_request_leads_through_outbox_and_kafka_to_each_service_and_back(trace: Trace) -> None:
    for service, topic in HOPS.items():
        trace.assert_path(
            "schema: POST /v1/migrations",
            "schema: outbox wait",
            "schema: publish replank.schema",
            f"{service}: process replank.schema",
            f"{service}: outbox wait",
            f"{service}: publish {topic}",
            f"schema: process {topic}",
        )


async def test_the_right_was_asked_of_auth_cache_within_the_request(trace: Trace) -> None:
    trace.assert_path("schema: POST /v1/migrations", "schema: POST", "auth-cache: POST /stores/{store}/check")


async def test_every_event_waits_then_is_published_then_is_processed(trace: Trace) -> None:
    publishes, processes = named(trace, "publish "), named(trace, "process ")
    # MigrationPlanned, one event of each of the other three, MigrationReady.
    assert len(publishes) == len(trace.find("outbox wait")) == 5
    # MigrationPlanned by three services, and what each of them said by schema.
    assert len(processes) == 6
    for publish in publishes:
        wait = publish.parent
        assert wait is not None
        assert wait.name == "outbox wait"
        assert (publish.kind, wait.service) == ("producer", publish.service)
        assert wait.end <= publish.start + 1000, "the wait ends when the event is sent"
        assert wait.tags["messaging.message.id"] == publish.tags["messaging.message.id"]
    for process in processes:
        sent = process.parent
        assert sent is not None
        assert sent.name == process.name.replace("process", "publish")
        assert process.kind == "consumer"
        assert process.tags["messaging.message.id"] == sent.tags["messaging.message.id"]


async def test_what_a_consumer_does_is_below_its_process_span(trace: Trace) -> None:
    for process in named(trace, "process "):
        below = {span.name for span in process.children}
        assert "COMMIT;" in below, f"{process} has no SQL: {sorted(below)}"
    trace.assert_path("archiver: process replank.schema", "archiver: s3 put replank-archiver")
    trace.assert_path("archiver: process replank.schema", "archiver: s3 get replank-archiver")
    trace.assert_path("benchmark: process replank.schema", "benchmark: explain")


async def test_each_service_answers_what_it_did(system: System, story: Story) -> None:
    migration = story.migration
    assert {line["item"]: line["state"] for line in migration["readiness"]} == dict.fromkeys(
        ("access", "baseline", "archive"), "met"
    )
    assert migration["mapping"] == DRAFT["mapping"]
    async with system.client("auth-cache") as client:
        key = {"user": OWNER, "relation": "owner", "object": f"migration:{migration['id']}"}
        answer = await client.post("/stores/replank/check", json={"tuple_key": key})
        stranger = await client.post("/stores/replank/check", json={"tuple_key": {**key, "user": "user:eve"}})
    assert (answer.json()["allowed"], stranger.json()["allowed"]) == (True, False)
    baseline = await system.get("benchmark", f"/v1/baselines/{migration['id']}")
    assert (baseline["status"], baseline["source"]["table"]) == ("captured", "public.migration")
    assert baseline["bytes_total"] > 0
    manifest = await system.get("archiver", f"/v1/manifests/{migration['id']}")
    assert manifest["sha256"] == migration["plan_sha256"]


async def test_the_checklist_was_settled_by_the_events_that_are_on_the_topics(system: System, story: Story) -> None:
    proofs = {line["item"]: line["event_id"] for line in story.migration["readiness"]}
    for item, contract in (("access", AccessGranted), ("baseline", BaselineRecorded), ("archive", PlanArchived)):
        records = await everything(system.stack.endpoints.kafka, contract.event_topic)
        (record,) = [record for record in records if header(record, "ce_id") == proofs[item]]
        assert header(record, "ce_type") == contract.event_type


async def test_readiness_is_said_once_and_no_event_id_twice(system: System, story: Story) -> None:
    said = 0
    for topic in sorted({contract.event_topic for contract in CONTRACTS}):
        records = await everything(system.stack.endpoints.kafka, topic)
        assert repeated(records) == {}, topic
        for record in records:
            if header(record, "ce_type") == MigrationReady.event_type:
                said += str(MigrationReady.from_value(record.value).migration_id) == story.migration["id"]
    assert said == 1


async def test_every_record_is_a_cloudevent_of_its_service_within_a_trace(system: System, story: Story) -> None:
    records = await everything(system.stack.endpoints.kafka, "replank.archiver")
    (record,) = [record for record in records if record.key == story.migration["id"].encode()]
    assert header(record, "ce_specversion") == "1.0"
    assert header(record, "ce_source") == "replank/archiver"
    assert header(record, "ce_subject") == f"migration:{story.migration['id']}"
    assert header(record, "content-type") == "application/json"
    assert header(record, "traceparent").split("-")[1] == story.trace_id


async def test_each_service_counts_what_it_published_and_handled(system: System, story: Story) -> None:
    for service in SERVICES:
        async with system.client(service, token="") as client:
            text = (await client.get("/metrics")).text
        assert total(text, "replank_outbox_published_events_total") >= 1, service
        assert total(text, "replank_inbox_events_total", consumer=service, outcome="done") >= 1, service
        assert total(text, "replank_inbox_events_total", consumer=service, outcome="dead") == 0, service


def total(text: str, name: str, **labels: str) -> float:
    """The sum of a metric over all its labels but these."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_logs_are_json_and_name_the_trace(system: System, story: Story) -> None:
    for service in SERVICES:
        lines = [json.loads(line) for line in system.logs(service).splitlines()]
        assert {line["service"] for line in lines} == {service}
        assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)
    for service in ("schema", "auth-cache"):
        assert "POST" in " ".join(messages(system, service, story.trace_id))


def messages(system: System, service: str, trace_id: str) -> Iterable[str]:
    """What a service logged within a trace."""
    for line in map(json.loads, system.logs(service).splitlines()):
        if line.get("trace_id") == trace_id:
            yield line["message"]


async def test_requests_at_the_same_time_with_one_idempotency_key_plan_one_migration(system: System) -> None:
    key, before = str(uuid4()), await system.written()

    async def insist() -> str:
        async def accepted() -> str | None:
            answer = await system.plan(key=key)
            assert answer.status_code in {201, 409}, answer.text
            return answer.json()["id"] if answer.status_code == 201 else None

        return await eventually(accepted, "the request is served", within=30) or ""

    ids = await asyncio.gather(*(insist() for _ in range(5)))
    assert len(set(ids)) == 1
    await system.ready(ids[0])
    # MigrationPlanned and MigrationReady.
    assert await system.written() == (before[0] + 1, before[1] + 2)
