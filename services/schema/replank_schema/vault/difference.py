"""What differs between two JSON values, as paths. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Change = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Paths (JSON Pointers, RFC 6901) of the new value that were ``added`` or ``changed``, and of the old that were
    ``removed``.

    A member that came or went with all that is below it is one path; so is a value that became one of another type.
    ``count`` is how many there are, also of those that the limit left out.
    """

    added: Sequence[str]
    removed: Sequence[str]
    changed: Sequence[str]
    count: int


def difference(old: Any, new: Any, *, limit: int = 1_000) -> Difference:
    """Compare two values that `json` has read; list the first ``limit`` paths, in the order of the old value's members.

    Items of arrays are compared by their index: an item put in at the front changes all that follow. Numbers are the
    same if their values are (``1`` and ``1.0``). The order of members does not matter.
    """
    paths: dict[Change, list[str]] = {"added": [], "removed": [], "changed": []}
    count = 0
    for change, path in _changes(old, new):
        if count < limit:
            paths[change].append(path)
        count += 1
    return Difference(tuple(paths["added"]), tuple(paths["removed"]), tuple(paths["changed"]), count)


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: unlike in Python, a boolean is no number."""
    # Python's comparison is quick to say that values differ, and wrong only about booleans.
    return one == other and next(_changes(one, other), None) is None


def identity(value: Any) -> Hashable:
    """What two values have in common exactly if they are the same JSON."""
    match value:
        case bool():
            return (bool, value)
        case list():
            return (list, tuple(map(identity, value)))
        case dict():
            return (dict, frozenset((name, identity(member)) for name, member in value.items()))
        case _:
            return value  # type: ignore[no-any-return] # a text, a number or null


def pointer(path: str, member: str | int) -> str:
    """The JSON Pointer of what ``path`` has as a member or item."""
    return f"{path}/{str(member).replace('~', '~0').replace('/', '~1')}"


def _changes(old: Any, new: Any) -> Iterator[tuple[Change, str]]:
    # A stack of its own: values may be nested deeper than Python calls.
    waiting: list[tuple[str, Any, Any]] = [("", old, new)]
    while waiting:
        path, was, now = waiting.pop()
        if not (isinstance(was, (dict, list)) and type(was) is type(now)):
            if was != now or isinstance(was, bool) is not isinstance(now, bool):
                yield "changed", path
            continue
        before, after = _members(was), _members(now)
        below = []
        for member, value in before.items():
            if member in after:
                below.append((pointer(path, member), value, after[member]))
            else:
                yield "removed", pointer(path, member)
        for member in after:
            if member not in before:
                yield "added", pointer(path, member)
        waiting.extend(reversed(below))


def _members(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else dict(enumerate(value))
