"""What a flag is for someone who asks, in OpenFeature's terms. Pure: a lookup, and a hash for partial rollouts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from pydantic import JsonValue

from replank.flags.model import Flag

Value = TypeVar("Value")
Convert = Callable[[JsonValue], Any]


class WrongType(Exception):
    """The flag's value is not of the type asked for."""


def as_boolean(value: JsonValue) -> bool:
    """The value, if it is a boolean."""
    if value is True or value is False:
        return value
    raise WrongType


def as_string(value: JsonValue) -> str:
    """The value, if it is a string."""
    if type(value) is str:
        return value
    raise WrongType


def as_integer(value: JsonValue) -> int:
    """The value, if it is a whole number: JSON does not tell 3 from 3.0."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    raise WrongType


def as_float(value: JsonValue) -> float:
    """The value, if it is a number that a float can hold."""
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise WrongType from None
    raise WrongType


def as_object(value: JsonValue) -> Any:
    """A copy of the value, if it is an array or an object: what the caller does to it must not change the flag."""
    if isinstance(value, (dict, list)):
        return copy.deepcopy(value)
    raise WrongType


ON: Final = "on"
OFF: Final = "off"


def evaluate(
    flags: Mapping[str, Flag],
    name: str,
    default: Value,
    targeting_key: str | None,
    convert: Convert,
    *,
    stale: bool,
) -> FlagResolutionDetails[Value]:
    """Resolve a flag; whoever it does not reach gets ``default``, with the reason."""
    flag = flags.get(name)
    if flag is None:
        return FlagResolutionDetails(default, ErrorCode.FLAG_NOT_FOUND, f"there is no flag {name}", Reason.ERROR)
    metadata = {"version": flag.version}
    if not flag.enabled:
        return FlagResolutionDetails(default, reason=Reason.DISABLED, variant=OFF, flag_metadata=metadata)
    try:
        value = convert(flag.value)
    except WrongType:
        message = f"the flag {name} has a value of another type than is asked for"
        return FlagResolutionDetails(default, ErrorCode.TYPE_MISMATCH, message, Reason.ERROR)
    reason = Reason.STATIC
    if 0 < flag.rollout < 100:
        if not targeting_key:
            message = f"the flag {name} is rolled out to {flag.rollout:g} %: it takes a targeting key to tell to whom"
            return FlagResolutionDetails(default, ErrorCode.TARGETING_KEY_MISSING, message, Reason.ERROR)
        reason = Reason.SPLIT
    if stale:
        reason = Reason.STALE
    if flag.rollout >= 100 or (targeting_key and flag.reaches(targeting_key)):
        return FlagResolutionDetails(value, reason=reason, variant=ON, flag_metadata=metadata)
    return FlagResolutionDetails(default, reason=reason, variant=OFF, flag_metadata=metadata)
