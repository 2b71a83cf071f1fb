"""What the authority of the feature flags says: a flag is now this."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, JsonValue, StringConstraints

from replank.contracts.fields import Actor, Instant
from replank.events import Event

TOPIC: Final = "replank.flags"
FLAG_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

FlagName = Annotated[str, StringConstraints(pattern=FLAG_NAME_PATTERN)]


class FlagChanged(Event, type="replank.flags.flag.changed.v1", topic=TOPIC):
    """The whole state of a flag after a change. The key is ``name``, and the topic is compacted: it is also the state.

    Of two events the one with the higher ``version`` holds. ``value`` is a boolean, string, number, array or object;
    null only when ``deleted``. ``rollout`` is a percentage of targeting keys, with at most three decimals.
    """

    name: FlagName
    version: Annotated[int, Field(ge=1)]
    deleted: bool
    enabled: bool
    value: JsonValue
    rollout: Annotated[float, Field(ge=0, le=100)]
    updated_by: Actor
    reason: Annotated[str, StringConstraints(max_length=2000)]
    updated_at: Instant
