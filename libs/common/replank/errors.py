"""Errors that say which thing failed and what to do about it."""

from __future__ import annotations


class ReplankError(Exception):
    """Base of every error that this library raises on purpose.

    ``str(error)`` names the thing that failed; ``fix`` says, in one sentence, what the reader can do.
    """

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} ({self.fix})" if self.fix else self.message


class ConfigurationError(ReplankError):
    """A setting is missing, malformed or contradicts another one."""


class DependencyUnavailable(ReplankError):
    """A server that this process needs does not answer. ``dependency`` names it (``postgres``, ``kafka``, …)."""

    def __init__(self, dependency: str, message: str, *, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.dependency = dependency
