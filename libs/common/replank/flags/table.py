"""The flags that a process knows, in memory, each in its newest version."""

from __future__ import annotations

from collections.abc import Iterator

from replank.flags.model import Flag


class FlagTable:
    """Written by one task, read from any thread."""

    def __init__(self) -> None:
        self._known: dict[str, Flag] = {}
        # What is asked for is looked up here, without the deleted ones: a plain dict, since it is asked most.
        self.live: dict[str, Flag] = {}

    def __iter__(self) -> Iterator[Flag]:
        return iter(self._known.values())

    def apply(self, flag: Flag) -> bool:
        """Take a flag, unless it is known in this or a newer version; whether it was taken."""
        known = self._known.get(flag.name)
        if known is not None and known.version >= flag.version:
            return False
        self._known[flag.name] = flag
        if flag.deleted:
            self.live.pop(flag.name, None)
        else:
            self.live[flag.name] = flag
        return True
