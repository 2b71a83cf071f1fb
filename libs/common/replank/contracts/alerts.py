"""What any service says when a person has to look: on one topic, so that one consumer can tell people."""

from __future__ import annotations

from typing import Final, Literal

from replank.contracts.fields import Explanation, Instant, Label, Slug, Thing
from replank.events import Event

TOPIC: Final = "replank.alerts"


class AlertRaised(Event, type="replank.alerts.alert.raised.v1", topic=TOPIC):
    """Something needs a person. The key is ``subject``: the thing it is about, such as ``migration:018f…``.

    ``detail`` says what happened and what to do.
    """

    service: Slug
    severity: Literal["info", "warning", "critical"]
    subject: Thing
    summary: Label
    detail: Explanation
    raised_at: Instant
