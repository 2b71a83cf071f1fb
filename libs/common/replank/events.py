"""Event contracts: what an event is called, where it goes, and what its payload must look like.

A contract is a pydantic model with a CloudEvents type and a Kafka topic::

    class OrderPaid(Event, type="shop.order.paid.v1", topic="shop.orders"):
        order_id: UUID
        amount: Decimal

On the wire an event is a CloudEvents 1.0 message in Kafka binary mode: the attributes are record headers
(``ce_id``, ``ce_type``, …), the value is the JSON of the model. Within one version a contract only grows: a reader
ignores fields that it does not know, a writer may not use fields that the contract does not have.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from replank.errors import ReplankError

#: A CloudEvents type as contracts have it: lower-case dotted words that end in a version.
TYPE_PATTERN: Final = r"^[a-z0-9][a-z0-9_.-]*\.v[1-9][0-9]*$"
_TYPE: Final = re.compile(TYPE_PATTERN)
# Kafka's own rule (org.apache.kafka.common.internals.Topic): these characters, at most 249 of them.
_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class ContractError(ReplankError):
    """A contract is declared wrongly, or clashes with one that is registered already."""


class UnknownContract(ReplankError):
    """An object or a ``ce_type`` for which no contract is registered in this process."""


class InvalidEvent(ReplankError):
    """A received value does not satisfy its contract."""


class Event(BaseModel):
    """Base of all contracts. Subclass it with ``type=`` and ``topic=``; instances are immutable.

    ``type`` is the CloudEvents type and ends in ``.v<N>``; ``topic`` is the Kafka topic. A subclass without both is an
    abstract base: it can be inherited from, never appended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_type: ClassVar[str]
    event_topic: ClassVar[str]

    def __init_subclass__(cls, *, type: str | None = None, topic: str | None = None, **kwargs: Any) -> None:
        # Python and type checkers look here for the class keywords; pydantic hands them on once the model is built.
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, type: str | None = None, topic: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if type is None and topic is None:
            return
        if type is None or topic is None:
            raise ContractError(f"contract {cls.__qualname__} gives only one of type and topic", fix="give both")
        if not _TYPE.fullmatch(type):
            raise ContractError(
                f"contract {cls.__qualname__} has the malformed type {type!r}",
                fix="use lower-case dotted words that end in a version, such as shop.order.paid.v1",
            )
        if not _TOPIC.fullmatch(topic) or topic in {".", ".."}:
            raise ContractError(f"contract {cls.__qualname__} has the malformed Kafka topic {topic!r}")
        known = _contracts.get(type)
        # A module that is reloaded declares the same class again: that is not a clash.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ContractError(
                f"the event type {type!r} is declared by both {known.__module__}.{known.__qualname__} "
                f"and {cls.__module__}.{cls.__qualname__}",
                fix="give one of them another type",
            )
        cls.event_type = type
        cls.event_topic = topic
        _contracts[type] = cls

    @classmethod
    def from_value(cls, value: bytes) -> Self:
        """Parse a received record value, ignoring fields that a newer writer added.

        Raises `InvalidEvent`, whose text names the fields at fault and never repeats their values.
        """
        try:
            return cls.model_validate_json(value, extra="ignore")
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(part) for part in fault['loc']) or 'value'}: {fault['type']}"
                for fault in error.errors(include_input=False, include_url=False, include_context=False)
            )
            raise InvalidEvent(f"value does not satisfy {cls.event_type}: {faults}") from None

    def to_value(self) -> bytes:
        """The record value: compact UTF-8 JSON."""
        return self.__pydantic_serializer__.to_json(self)


_contracts: dict[str, type[Event]] = {}


def contract(event_type: str) -> type[Event]:
    """The contract registered for a CloudEvents type. Raises `UnknownContract`."""
    try:
        return _contracts[event_type]
    except KeyError:
        raise UnknownContract(
            f"no contract is registered for the event type {event_type!r}",
            fix="import the module that declares it",
        ) from None


def contracts() -> dict[str, type[Event]]:
    """All registered contracts, by type."""
    return dict(_contracts)
