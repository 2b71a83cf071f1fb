"""The inbox: the effect of an event happens once per consumer, in order, and nothing is dropped.

Needs the extra ``inbox``. See `replank.inbox.consumer` for how a consumer is written, `replank.inbox.dead_letters` for
what becomes of events that cannot be applied, and ``docs/architecture/inbox.md`` for how it works.
"""

from replank.inbox import dead_letters
from replank.inbox.consumer import BatchTopic, Inbox, Topic
from replank.inbox.delivery import Batch, Delivery
from replank.inbox.install import InboxMismatch, install, verify
from replank.inbox.limit import DlqLimit
from replank.inbox.outcome import Dead, Done, Outcome, Reason, Retry, Transient
from replank.inbox.settings import InboxSettings

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
