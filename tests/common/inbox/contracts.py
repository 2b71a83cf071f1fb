"""The events of these tests."""

from replank.events import Event


class Paid(Event, type="test.inbox.paid.v1", topic="test.inbox"):
    """The event that most tests handle."""

    number: int
    text: str = ""


class Other(Event, type="test.inbox.other.v1", topic="test.inbox"):
    """An event that tests leave unhandled, or handle beside the other."""

    number: int


class Archived(Event, type="test.inbox.archived.v1", topic="test.inbox.archived"):
    """What handlers append."""

    number: int
