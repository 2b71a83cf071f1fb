"""What the outbox tests publish."""

from __future__ import annotations

from replank.events import Event


class Paid(Event, type="test.outbox.paid.v1", topic="test.outbox.orders"):
    number: int
    padding: str = ""


class Shipped(Event, type="test.outbox.shipped.v1", topic="test.outbox.shipments"):
    number: int


class NoContract(Event):
    number: int
