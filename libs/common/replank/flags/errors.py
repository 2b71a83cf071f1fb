"""What can go wrong when flags are changed. Reading a flag never raises: it gives the caller's default."""

from __future__ import annotations

from replank.errors import ReplankError


class FlagError(ReplankError):
    """Base of the errors of this package."""


class InvalidFlag(FlagError):
    """A name, value, rollout or author that a flag cannot have."""


class FlagValueTooLarge(InvalidFlag):
    """A value of more than `replank.flags.MAX_VALUE_BYTES` bytes of JSON."""


class FlagNotFound(FlagError):
    """No flag has this name."""


class FlagConflict(FlagError):
    """The flag is not at the version that the change was based on: somebody else changed it meanwhile."""


class FlagsMismatch(FlagError):
    """The flag tables that are installed, or the server under them, cannot be used by this library."""


class FlagsNotInstalled(FlagError):
    """The database has no flag tables."""
