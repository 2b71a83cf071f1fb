"""A service's events as an AsyncAPI 3 document, and the rule that within ``.v1`` a contract only grows.

The documents are committed. Writing one anew first compares every contract with what was committed, so that a
breaking change cannot be published by accident: it needs a new version of the type, beside the old one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from replank.errors import ReplankError
from replank.events import Event

_Schema = Mapping[str, Any]

# What a reader may be told differently without any value becoming valid or invalid.
_ANNOTATIONS: Final = frozenset({"title", "description", "examples", "default", "deprecated", "$comment"})
# Parts of a schema that hold schemas, and are compared member by member.
_NESTED: Final = frozenset({"properties", "$defs", "required"})
# Where a schema has schemas below it, as pydantic writes them.
_SCHEMAS: Final = frozenset({"additionalProperties", "contains", "items", "not", "propertyNames"})
_LISTS_OF_SCHEMAS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS_OF_SCHEMAS: Final = frozenset({"$defs", "patternProperties", "properties"})

#: What an event's headers are, read as text.
HEADERS: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "content-type"],
    "properties": {
        "ce_specversion": {"const": "1.0"},
        "ce_id": {"type": "string", "format": "uuid"},
        "ce_type": {"type": "string"},
        "ce_source": {"type": "string", "format": "uri-reference"},
        "ce_subject": {"type": "string"},
        "ce_time": {"type": "string", "format": "date-time"},
        "content-type": {"const": "application/json"},
        "traceparent": {"type": "string"},
        "tracestate": {"type": "string"},
        "baggage": {"type": "string"},
    },
}


class BreakingChange(ReplankError):
    """A contract differs from its committed form in a way that readers or stored events would not survive."""


def asyncapi(
    service: str, description: str, *, sends: Iterable[type[Event]], receives: Iterable[type[Event]]
) -> dict[str, Any]:
    """The AsyncAPI 3.0 document of a service that sends and receives these contracts."""
    sent = sorted(sends, key=lambda contract: contract.event_type)
    received = sorted(receives, key=lambda contract: contract.event_type)
    messages: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for contract in {*sent, *received}:
        messages[contract.event_type] = {
            "name": contract.event_type,
            "title": contract.__name__,
            "description": contract.__doc__,
            "contentType": "application/json",
            "headers": {"$ref": "#/components/schemas/cloudEventHeaders"},
            "payload": {"$ref": f"#/components/schemas/{contract.event_type}"},
        }
        schemas[contract.event_type] = payload_schema(contract)
        channel = channels.setdefault(
            contract.event_topic,
            {"address": contract.event_topic, "messages": {}, "bindings": {"kafka": {"topic": contract.event_topic}}},
        )
        channel["messages"][contract.event_type] = {"$ref": f"#/components/messages/{contract.event_type}"}
    operations = {
        f"{action}_{topic}": {
            "action": action,
            "channel": {"$ref": f"#/channels/{topic}"},
            "messages": [
                {"$ref": f"#/channels/{topic}/messages/{contract.event_type}"}
                for contract in contracts
                if contract.event_topic == topic
            ],
        }
        for action, contracts in (("send", sent), ("receive", received))
        for topic in sorted({contract.event_topic for contract in contracts})
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": service, "version": "1", "description": description},
        "defaultContentType": "application/json",
        "channels": {name: _with_sorted_messages(channel) for name, channel in sorted(channels.items())},
        "operations": operations,
        "components": {
            "messages": dict(sorted(messages.items())),
            "schemas": {"cloudEventHeaders": HEADERS, **dict(sorted(schemas.items()))},
        },
    }


def _with_sorted_messages(channel: dict[str, Any]) -> dict[str, Any]:
    return {**channel, "messages": dict(sorted(channel["messages"].items()))}


def payload_schema(contract: type[Event]) -> dict[str, Any]:
    """The JSON Schema of a contract's value, as written."""
    return contract.model_json_schema(mode="serialization")


def reader_schema(contract: type[Event]) -> dict[str, Any]:
    """The JSON Schema that readers of a contract may rely on: as `payload_schema`, but open to fields added later."""
    opened: dict[str, Any] = _opened(payload_schema(contract))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **opened}


def _opened(schema: Any) -> Any:
    """A schema, to any depth, without what forbids fields that it does not name."""
    if not isinstance(schema, Mapping):
        return schema
    opened: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "additionalProperties" and value is False:
            continue
        # Everything else (constants, defaults, examples) is a value, whatever it looks like.
        if keyword in _MAPS_OF_SCHEMAS and isinstance(value, Mapping):
            opened[keyword] = {name: _opened(member) for name, member in value.items()}
        elif keyword in _LISTS_OF_SCHEMAS and isinstance(value, list):
            opened[keyword] = [_opened(member) for member in value]
        else:
            opened[keyword] = _opened(value) if keyword in _SCHEMAS else value
    return opened


def breaking_changes(committed: _Schema, current: _Schema, *, at: str = "value") -> list[str]:
    """How ``current`` breaks readers of ``committed``, or its own reading of events stored under ``committed``.

    Within a version only this may change: texts, and new fields that are not required. Everything else breaks someone:
    a field gone or renamed breaks readers, a newly required one makes stored events unreadable, and a wider or narrower
    value does one or the other.
    """
    faults = [
        f"{at}: {keyword} was {committed.get(keyword)!r}, is {current.get(keyword)!r}"
        for keyword in sorted((committed.keys() | current.keys()) - _ANNOTATIONS - _NESTED)
        if _bare(committed.get(keyword)) != _bare(current.get(keyword))
    ]
    was_required, is_required = set(committed.get("required", ())), set(current.get("required", ()))
    faults += [f"{at}.{field}: is no longer always written" for field in sorted(was_required - is_required)]
    faults += [f"{at}.{field}: is newly required" for field in sorted(is_required - was_required)]
    for group in ("properties", "$defs"):
        now = current.get(group, {})
        for name, schema in committed.get(group, {}).items():
            if name in now:
                faults += breaking_changes(schema, now[name], at=f"{at}.{name}")
            else:
                faults.append(f"{at}.{name}: is gone")
    return faults


def _bare(schema: Any) -> Any:
    """The schema without its texts, to any depth."""
    if isinstance(schema, Mapping):
        return {key: _bare(value) for key, value in schema.items() if key not in _ANNOTATIONS}
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    return schema


def document_changes(committed: _Schema, current: _Schema) -> list[str]:
    """How the event types that the committed document *sends* are broken by the current one."""
    faults: list[str] = []
    schemas = current["components"]["schemas"]
    for event_type in _sent(committed):
        if event_type not in schemas:
            faults.append(f"{event_type}: is no longer sent")
        else:
            was = committed["components"]["schemas"][event_type]
            faults += [f"{event_type}: {fault}" for fault in breaking_changes(was, schemas[event_type])]
    return faults


def _sent(document: _Schema) -> list[str]:
    return [
        message["$ref"].rpartition("/")[2]
        for operation in document["operations"].values()
        if operation["action"] == "send"
        for message in operation["messages"]
    ]


def write(document: dict[str, Any], path: Path) -> None:
    """Write a document where it is committed.

    An AsyncAPI document that would break the one there is not written: `BreakingChange`.
    """
    if "asyncapi" in document and path.exists():
        faults = document_changes(json.loads(path.read_text()), document)
        if faults:
            raise BreakingChange(
                f"{path.name} would break its readers: {'; '.join(faults)}",
                fix="keep the contract as it was and declare the change as the type's next version beside it",
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(document))


def text(document: Mapping[str, Any]) -> str:
    """A document as it is committed: stable, one line a member, ending in a newline."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
