"""Events held against their contracts as the vault has them: which fit, which do not, and where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, NoReturn

from aiokafka import ConsumerRecord
from jsonschema import Draft202012Validator, FormatChecker, SchemaError
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from replank.contracts.documents import HEADERS
from replank.errors import ConfigurationError, ReplankError
from replank.events import TYPE_PATTERN
from replank_cli.asking import Door, Refused, segment

#: Where the vault has the contracts of events, in its mode ``standard``.
_VAULT: Final = "/schemavault"
_NAMED: Final = "events/"
_TYPE: Final = re.compile(TYPE_PATTERN)
# RFC 3339, section 5.6; whether there is such a day is for `datetime` to say.
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_MOST_TOLD_OF_ONE: Final = 5
_LONGEST_RULE: Final = 160

_formats: Final = FormatChecker(("date", "uuid"))


@_formats.checks("date-time")
def _is_instant(value: object) -> bool:
    """Whether a text is a date and time with its offset; what is no text has no format."""
    if not isinstance(value, str):
        return True
    if not _INSTANT.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value.upper())
    except ValueError:
        return False
    return True


class UnusableContract(ReplankError):
    """What the vault has under a contract's name is nothing that an event can be held against."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Where an event does not fit, and the rule that it breaks. ``pointer`` is a JSON Pointer (RFC 6901)."""

    part: Literal["headers", "value"]
    pointer: str
    rule: str
    value: Any = field(repr=False)


@dataclass(slots=True)
class Tally:
    """How many events of a type there were. One that has faults is invalid, whether its contract is known or not."""

    events: int = 0
    valid: int = 0
    invalid: int = 0
    unknown: int = 0


class Published:
    """The contracts that the vault has, each as it was when it was first asked for. Not for several threads."""

    def __init__(self, asked: Door) -> None:
        self._door = asked
        self._found: dict[str, Validator | None] = {}

    def require_vault(self) -> None:
        """Raises `ConfigurationError` where there is no vault, `Refused` where the token may not look into it."""
        try:
            self._door.get(_VAULT, limit=1)
        except Refused as error:
            if error.status == 404:
                raise ConfigurationError(
                    "the schema service has no vault: there is nothing to hold events against",
                    fix="check --url (or REPLANK_SCHEMA_URL), and the setting REPLANK_SCHEMA_VAULT of the service",
                ) from error
            raise

    def knows(self, event_type: str) -> bool:
        """Whether it was asked for already, so that `contract` asks nobody."""
        return event_type in self._found

    def contract(self, event_type: str) -> Validator | None:
        """The contract of a type, or None where the vault has none. Blocks while it asks."""
        if event_type not in self._found:
            self._found[event_type] = self._ask(event_type)
        return self._found[event_type]

    def _ask(self, event_type: str) -> Validator | None:
        if not _TYPE.fullmatch(event_type):
            return None
        try:
            # As it is, for a contract is small: what the vault compresses comes in frames that not every client reads.
            schema = self._door.ask(
                "GET",
                f"{_VAULT}/by-name/{_NAMED}{segment(event_type)}/content",
                headers={"accept-encoding": "identity"},
            )
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return _validator(schema, event_type)


def _validator(schema: Any, event_type: str) -> Validator:
    kind = validator_for(schema, default=Draft202012Validator) if isinstance(schema, Mapping | bool) else None
    if kind is None:
        _refuse(event_type, "is a document and no JSON Schema")
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        _refuse(event_type, f"is no JSON Schema: {_pointer(error.absolute_path)} breaks {_rule(error)}")
    # Without what to retrieve with: a reference that leads out of the contract is never followed.
    return kind(schema, format_checker=_formats, registry=Registry())


def _refuse(event_type: str, why: str) -> NoReturn:
    raise UnusableContract(
        f"the contract that the vault has as {_NAMED}{event_type} {why}", fix="publish a version that is one"
    )


_headers: Final = Draft202012Validator(HEADERS, format_checker=_formats)


def faults(record: ConsumerRecord, contract: Validator | None) -> list[Fault]:
    """What is wrong with an event; nothing if all is well. Without a contract only its headers are looked at.

    Raises `UnusableContract` where the contract refers to what is not in it.
    """
    headers = {name: value.decode(errors="replace") for name, value in record.headers}
    found = [*_broken(_headers, headers, "headers")]
    if contract is not None:
        try:
            value = json.loads(record.value or b"", parse_constant=_not_a_number)
            found += _broken(contract, value, "value")
        except Unresolvable as error:
            _refuse(headers.get("ce_type", ""), f"refers to {error.ref!r}, which is not in it")
        except RecursionError:
            found.append(Fault("value", "", "nested too deeply to be checked", None))
        except ValueError:
            found.append(Fault("value", "", "is no JSON", (record.value or b"").decode(errors="replace")))
    return found


def _not_a_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _broken(validator: Validator, instance: Any, part: Literal["headers", "value"]) -> Iterator[Fault]:
    found: dict[tuple[str, str], Fault] = {}
    for error in validator.iter_errors(instance):
        # Of alternatives, the one that comes closest: that no alternative fits says little.
        closest = best_match([error]) or error
        where, rule = _pointer(closest.absolute_path), _rule(closest)
        found.setdefault((where, rule), Fault(part, where, rule, closest.instance))
        if len(found) == _MOST_TOLD_OF_ONE:
            break
    yield from found.values()


def _rule(error: ValidationError | SchemaError) -> str:
    """The rule that was broken, in the schema's words. An error's own message has the value in it."""
    wanted: Any = error.validator_value
    if error.validator == "required" and isinstance(error.instance, Mapping):
        return f"required {', '.join(name for name in wanted if name not in error.instance)}"
    rule = f"{error.validator} {json.dumps(wanted, ensure_ascii=False)}"
    return rule if len(rule) <= _LONGEST_RULE else f"{rule[: _LONGEST_RULE - 1]}…"


def _pointer(path: Iterable[str | int]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


@dataclass(slots=True)
class Report:
    """What was found in a stream. ``faults`` are the first ``keep`` of them; ``faulty`` counts them all."""

    keep: int
    values: bool
    types: dict[str, Tally] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    faulty: int = 0

    @property
    def events(self) -> int:
        """How many events were looked at."""
        return sum(tally.events for tally in self.types.values())

    @property
    def invalid(self) -> int:
        """How many of them have faults."""
        return sum(tally.invalid for tally in self.types.values())

    def add(
        self, record: ConsumerRecord, event_type: str | None, found: list[Fault], *, known: bool
    ) -> list[dict[str, Any]]:
        """Count an event; returns those of its faults that are kept."""
        tally = self.types.setdefault(event_type or "(no CloudEvent)", Tally())
        tally.events += 1
        tally.invalid += bool(found)
        tally.unknown += not found and not known
        tally.valid += not found and known
        self.faulty += len(found)
        kept = [
            {
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "type": event_type,
                "part": fault.part,
                "pointer": fault.pointer,
                "rule": fault.rule,
                **({"value": fault.value} if self.values else {}),
            }
            for fault in found[: max(0, self.keep - len(self.faults))]
        ]
        self.faults += kept
        return kept

    def summary(self) -> dict[str, Any]:
        """All of it, for programs."""
        types = [{"type": name, **asdict(tally)} for name, tally in sorted(self.types.items())]
        return {"types": types, "faults": self.faults, "faulty": self.faulty}
