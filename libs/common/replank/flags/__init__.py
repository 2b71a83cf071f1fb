"""Feature flags: changed in one database, known in every process within a second, asked for through OpenFeature.

Changing and listing flags (this module) needs asyncpg and the outbox alone::

    async with pool.acquire() as conn:
        await flags.set(conn, "new-checkout", True, rollout=25, by="user:ada", reason="first quarter of the users")

Asking is done through OpenFeature with `replank.flags.provider.FlagProvider` (extra ``flags``).
"""

from replank.flags.errors import (
    FlagConflict,
    FlagError,
    FlagNotFound,
    FlagsMismatch,
    FlagsNotInstalled,
    FlagValueTooLarge,
    InvalidFlag,
)
from replank.flags.model import MAX_VALUE_BYTES, Flag, FlagValue, bucket
from replank.flags.store import delete_flag, get_flag, history, install, list_flags, set_flag

# `flags.set(...)` reads as what it does; in this package the long names are used.
get = get_flag
set = set_flag  # noqa: A001
delete = delete_flag
list = list_flags  # noqa: A001

__all__ = [
    "MAX_VALUE_BYTES",
    "Flag",
    "FlagConflict",
    "FlagError",
    "FlagNotFound",
    "FlagValue",
    "FlagValueTooLarge",
    "FlagsMismatch",
    "FlagsNotInstalled",
    "InvalidFlag",
    "bucket",
    "delete",
    "delete_flag",
    "get",
    "get_flag",
    "history",
    "install",
    "list",
    "list_flags",
    "set",
    "set_flag",
]
