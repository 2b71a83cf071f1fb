"""What can go wrong with a local stack. Each message says which thing, and what to do."""

from __future__ import annotations

from replank.errors import ReplankError


class StackError(ReplankError):
    """The stack, or one of its processes, cannot do what was asked of it."""


class NotRunning(StackError):
    """What was asked for needs a running stack, and none runs."""

    def __init__(self, what: str = "the local stack") -> None:
        super().__init__(f"{what} is not running", fix="start it with `make up`")


class MissingTools(StackError):
    """The machine lacks programs that the stack is made of."""
