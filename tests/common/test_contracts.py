"""Our event contracts: what they refuse, and that within a version they only grow."""

from __future__ import annotations

import importlib
import json
import pkgutil
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

import replank.contracts
from replank.contracts import documents
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.schema import MigrationPlanned, Source, canonical_plan, plan_sha256
from replank.events import Event, InvalidEvent, contracts

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "asyncapi"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
MIGRATION = UUID("01932f00-0000-7000-8000-000000000001")


def planned(plan: dict[str, Any]) -> MigrationPlanned:
    return MigrationPlanned(
        migration_id=MIGRATION,
        name="orders",
        owner="user:ada",
        source=Source(target="shop", table="public.kv"),
        plan=plan,
        plan_sha256=plan_sha256(plan),
        planned_by="user:ada",
        planned_at=NOW,
    )


# What any database says whose flags are changed here, or whose records are being moved: no one service's to document.
OF_DATABASES = frozenset({"replank.flags", "replank.migrate"})
# Said by many, each under its own name.
SHARED_TOPICS = OF_DATABASES | {"replank.alerts"}


def every_contract() -> list[type[Event]]:
    for module in pkgutil.iter_modules(replank.contracts.__path__):
        if module.name != "__main__":
            importlib.import_module(f"replank.contracts.{module.name}")
    return [found for found in contracts().values() if found.__module__.startswith("replank.contracts.")]


def test_every_contract_is_named_after_its_topic() -> None:
    found = every_contract()
    assert len(found) >= 7
    for contract in found:
        assert contract.event_type.startswith(f"{contract.event_topic}.") or contract.event_topic in SHARED_TOPICS
        assert contract.__doc__, f"{contract.__name__} does not say what happened"


def test_an_event_survives_the_wire_exactly() -> None:
    event = planned({"b": [1, 2.5, None, True], "a": {"ü": "\\u0000 is six characters"}})
    received = MigrationPlanned.from_value(event.to_value())
    assert received == event
    assert plan_sha256(received.plan) == event.plan_sha256


def test_a_reader_ignores_what_a_newer_writer_added_at_any_depth() -> None:
    value = json.loads(planned({}).to_value())
    value["later"] = 1
    value["source"]["later"] = 1
    assert MigrationPlanned.from_value(json.dumps(value).encode()) == planned({})


@pytest.mark.parametrize("field", ["migration_id", "owner", "planned_at", "plan_sha256", "source"])
def test_a_value_of_the_wrong_form_is_refused_by_the_name_of_its_field(field: str) -> None:
    value = json.loads(planned({}).to_value())
    value[field] = "no such thing"
    with pytest.raises(InvalidEvent, match=field) as refusal:
        MigrationPlanned.from_value(json.dumps(value).encode())
    assert "no such thing" not in str(refusal.value)


def test_the_canonical_form_does_not_depend_on_order_or_blanks() -> None:
    assert canonical_plan(json.loads('{"b": 1, "a": [ {"d": 1, "c": 2} ]}')) == b'{"a":[{"c":2,"d":1}],"b":1}'


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        ({"a": float("inf")}, "not JSON compliant"),
        ({"a": float("nan")}, "not JSON compliant"),
        ({"a": "\ud800"}, "surrogates not allowed"),
        ({"a": ["x\x00y"]}, r"U\+0000"),
        ({"a\x00": 1}, r"U\+0000"),
        (json.loads('{"a":' + "[" * 64 + "]" * 64 + "}"), "64 levels"),
    ],
    ids=["infinity", "nan", "lone surrogate", "nul", "nul in a key", "too deep"],
)
def test_a_plan_that_cannot_be_carried_everywhere_has_no_canonical_form(plan: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        canonical_plan(plan)


def test_the_deepest_plan_that_is_allowed_can_be_read_by_consumers() -> None:
    event = planned(json.loads('{"a":' + "[" * 63 + "]" * 63 + "}"))
    assert MigrationPlanned.from_value(event.to_value()) == event


@pytest.mark.parametrize(
    "source",
    [
        {"target": "shop"},
        {"target": "shop", "table": "t", "query": "select 1"},
        {"target": "Shop!", "table": "t"},
        {"target": "shop", "table": 'a"b'},
        {"target": "shop", "table": "a.b.c"},
        {"target": "shop", "table": ""},
        {"target": "shop", "query": "x" * 20_001},
    ],
)
def test_a_source_is_one_table_or_one_query_of_a_named_target(source: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate(source)


# --- documents ---


def document() -> dict[str, Any]:
    return documents.asyncapi("benchmark", "…", sends=[BaselineRecorded], receives=[MigrationPlanned])


def payload(of: dict[str, Any], contract: type[Event] = BaselineRecorded) -> dict[str, Any]:
    found: dict[str, Any] = of["components"]["schemas"][contract.event_type]
    return found


def test_an_unchanged_document_breaks_nobody() -> None:
    assert documents.document_changes(document(), document()) == []


def test_texts_and_new_optional_fields_may_be_added() -> None:
    changed = deepcopy(document())
    payload(changed)["description"] = "said better"
    payload(changed)["properties"]["status"]["title"] = "said better"
    payload(changed)["properties"]["later"] = {"type": "integer", "default": 0}
    assert documents.document_changes(document(), changed) == []


def break_by_removal(schema: dict[str, Any]) -> None:
    del schema["properties"]["status"]


def break_by_type(schema: dict[str, Any]) -> None:
    schema["properties"]["target"]["type"] = "integer"


def break_by_nested_type(schema: dict[str, Any]) -> None:
    schema["properties"]["rows_estimated"]["anyOf"][0]["type"] = "string"


def break_by_new_enum_value(schema: dict[str, Any]) -> None:
    schema["properties"]["status"]["enum"].append("skipped")


def break_by_requiring(schema: dict[str, Any]) -> None:
    schema["properties"]["later"] = {"type": "integer"}
    schema["required"].append("later")


def break_by_writing_less(schema: dict[str, Any]) -> None:
    schema["required"].remove("recorded_at")


@pytest.mark.parametrize(
    "change",
    [
        break_by_removal,
        break_by_type,
        break_by_nested_type,
        break_by_new_enum_value,
        break_by_requiring,
        break_by_writing_less,
    ],
)
def test_whatever_else_changes_is_a_breaking_change_and_is_not_written(change: Any, tmp_path: Path) -> None:
    committed = tmp_path / "benchmark.json"
    documents.write(document(), committed)
    before = committed.read_text()
    changed = deepcopy(document())
    change(payload(changed))
    with pytest.raises(documents.BreakingChange, match=BaselineRecorded.event_type):
        documents.write(changed, committed)
    assert committed.read_text() == before


def test_an_event_that_is_no_longer_sent_is_a_breaking_change() -> None:
    changed = documents.asyncapi("benchmark", "…", sends=[], receives=[MigrationPlanned])
    assert documents.document_changes(document(), changed) == [f"{BaselineRecorded.event_type}: is no longer sent"]


def test_what_a_service_receives_is_for_its_sender_to_answer_for() -> None:
    changed = deepcopy(document())
    del payload(changed, MigrationPlanned)["properties"]["owner"]
    assert documents.document_changes(document(), changed) == []


def test_every_contract_grew_only_since_it_was_committed() -> None:
    committed: dict[str, Any] = {}
    for path in REFERENCE.glob("*.json"):
        committed |= json.loads(path.read_text())["components"]["schemas"]
    for contract in every_contract():
        if contract.event_topic in OF_DATABASES:
            continue
        assert contract.event_type in committed, f"{contract.__name__} is in no committed document: run `make docs`"
        faults = documents.breaking_changes(committed[contract.event_type], documents.payload_schema(contract))
        assert faults == []
