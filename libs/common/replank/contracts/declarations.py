"""What every service says about event contracts: those that it sends, and those of others that it uses.

A service needs nobody to be there to say it, and the vault collects it: each contract as a schema, and who uses it. The
key is the contract, so what is said about one contract by one service arrives in order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field, JsonValue, StringConstraints

from replank.contracts.fields import Instant, Label, Sha256
from replank.events import TYPE_PATTERN, Event

TOPIC: Final = "replank.contracts"
LONGEST_CONSUMER: Final = 255

#: What a contract is called everywhere: the CloudEvents type of its events.
Contract = Annotated[str, StringConstraints(max_length=255, pattern=TYPE_PATTERN)]
#: The name that a consumer has for good, as `replank.inbox.Inbox` is given it.
ConsumerName = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_CONSUMER)]


def canonical(json_schema: Mapping[str, JsonValue]) -> bytes:
    """The one byte form of a contract's schema: UTF-8 JSON, keys sorted by code point, no blanks."""
    text = json.dumps(json_schema, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def schema_sha256(json_schema: Mapping[str, JsonValue]) -> str:
    """Identifies a contract's schema by its content: the SHA-256 of its canonical form."""
    return hashlib.sha256(canonical(json_schema)).hexdigest()


class EventContractDeclared(Event, type="replank.contracts.event.declared.v1", topic=TOPIC):
    """``service`` sends events of this contract. Said at its start, and only if it last said something else.

    ``json_schema`` is what a reader may rely on: it allows fields that it does not know, because within a version a
    contract grows. ``sha256`` is that of its `canonical` form. ``topic`` is where events go unless whoever
    appends them says otherwise.
    """

    contract: Contract
    topic: Annotated[str, StringConstraints(min_length=1, max_length=249)]
    service: Label
    json_schema: dict[str, JsonValue]
    sha256: Sha256
    declared_at: Instant


class EventContractUsed(Event, type="replank.contracts.event.used.v1", topic=TOPIC):
    """``consumer`` applied ``events`` events of this contract, the first and last of them at these times.

    Counts what one process applied since it last said so: whoever wants totals adds up. What a process applied since
    then is lost if it is killed.
    """

    contract: Contract
    consumer: ConsumerName
    events: Annotated[int, Field(ge=1)]
    first_at: Instant
    last_at: Instant
