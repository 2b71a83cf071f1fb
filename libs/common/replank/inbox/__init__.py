"""The inbox: the effect of an event happens once per consumer, in order, and nothing is dropped.

Consuming needs the extra ``inbox``; installing it and looking after its dead letters does not. See
`replank.inbox.consumer` for how a consumer is written, `replank.inbox.dead_letters` for what becomes of events that
cannot be applied, and ``docs/architecture/inbox.md`` for how it works.
"""

from typing import TYPE_CHECKING, Any

from replank.inbox import dead_letters
from replank.inbox.delivery import Batch, Delivery
from replank.inbox.install import InboxMismatch, install, verify
from replank.inbox.limit import DlqLimit
from replank.inbox.outcome import Dead, Done, Outcome, Reason, Retry, Transient
from replank.inbox.settings import InboxSettings

if TYPE_CHECKING:
    from replank.inbox.consumer import BatchTopic, Inbox, Topic

__all__ = [
    "Batch",
    "BatchTopic",
    "Dead",
    "Delivery",
    "DlqLimit",
    "Done",
    "Inbox",
    "InboxMismatch",
    "InboxSettings",
    "Outcome",
    "Reason",
    "Retry",
    "Topic",
    "Transient",
    "dead_letters",
    "install",
    "verify",
]


def __getattr__(name: str) -> Any:
    # FastStream and aiokafka take half a second of CPU to import, and a migration or a command needs neither.
    if name in {"BatchTopic", "Inbox", "Topic"}:
        from replank.inbox import consumer  # noqa: PLC0415

        return getattr(consumer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
