"""Comparing the answers that two stores give to one question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic_core import to_jsonable_python

MOST_PATHS: Final = 20
_ANY: Final = "*"

Path = tuple[str, ...]


def shape(answer: object) -> Any:
    """An answer as JSON values, and so as a copy: models and dataclasses as objects, sequences and sets as arrays.

    Raises `pydantic_core.PydanticSerializationError` for what has no such form.
    """
    return to_jsonable_python(answer)


def paths(ignored: Sequence[str]) -> tuple[Path, ...]:
    """Read ignore rules: steps joined by dots, ``*`` for any step, such as ``items.*.price``."""
    return tuple(tuple(rule.split(".")) for rule in ignored)


def differences(ours: Any, theirs: Any, ignored: Sequence[Path] = ()) -> list[str]:
    """Where two shapes differ: names only, never values, at most `MOST_PATHS`; empty when they agree.

    What an ignore rule names does not count, nor what is below it. Elements of arrays are compared by their place and
    reported as ``*``, so that paths stay few.
    """
    found: list[str] = []
    for path in _walk(ours, theirs, (), ignored):
        text = ".".join(path) or "$"
        if text not in found:
            found.append(text)
            if len(found) == MOST_PATHS:
                break
    return found


def _walk(ours: Any, theirs: Any, at: Path, ignored: Sequence[Path]) -> Iterator[Path]:
    if any(_covers(rule, at) for rule in ignored):
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in {**ours, **theirs}:
            here = (*at, str(name))
            if name in ours and name in theirs:
                yield from _walk(ours[name], theirs[name], here, ignored)
            elif not any(_covers(rule, here) for rule in ignored):
                yield here
    elif isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            yield at
        for one, other in zip(ours, theirs, strict=False):
            yield from _walk(one, other, (*at, _ANY), ignored)
    # True and 1 are equal in Python, and are not the same answer.
    elif ours != theirs or isinstance(ours, bool) != isinstance(theirs, bool):
        yield at


def _covers(rule: Path, at: Path) -> bool:
    return len(rule) == len(at) and all(step in (_ANY, name) for step, name in zip(rule, at, strict=True))
