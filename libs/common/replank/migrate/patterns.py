"""Key patterns: ``order:{id}``, literal text with named captures.

A capture stands for one or more characters other than the literal character that follows it; the last one, when nothing
follows it, for any. So a pattern is read in one way only, from left to right and without going back, in Python and in
SQL alike, and a key can be built again from its captures. Braces as text are doubled: ``{{`` and ``}}``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from replank.migrate.sql import literal

_TOKEN: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[^{}]+|[{}]")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Capture:
    """A named gap in a pattern."""

    name: str
    stop: str | None
    """The character that ends it, and so never occurs in it; None at the end of the pattern."""


@dataclass(frozen=True)
class Pattern:
    """A pattern that was read by `parse`: literals and captures, never two captures side by side."""

    text: str
    parts: tuple[str | Capture, ...]

    @cached_property
    def captures(self) -> tuple[str, ...]:
        """The names of the captures, in their order."""
        return tuple(part.name for part in self.parts if isinstance(part, Capture))

    @cached_property
    def _python(self) -> re.Pattern[str]:
        return re.compile(
            "".join(re.escape(part) if isinstance(part, str) else f"({_gap(part)})" for part in self.parts), re.DOTALL
        )

    def match(self, key: str) -> dict[str, str] | None:
        """What the captures are in this key; None when it does not match."""
        found = self._python.fullmatch(key)
        return dict(zip(self.captures, found.groups(), strict=True)) if found else None

    def stop(self, capture: str) -> str | None:
        """The character that ends a capture, and so never occurs in it."""
        return next(part.stop for part in self.parts if isinstance(part, Capture) and part.name == capture)

    def build(self, values: Mapping[str, str]) -> str:
        """The key that has these captures."""
        return "".join(part if isinstance(part, str) else values[part.name] for part in self.parts)

    # In SQL

    @cached_property
    def regex(self) -> str:
        """The pattern as an advanced regular expression of Postgres's, anchored, without groups."""
        return "^" + "".join(_escape(part) if isinstance(part, str) else _gap(part) for part in self.parts) + "$"

    def matches_sql(self, key: str) -> str:
        """A condition on the SQL expression ``key``: does it match?"""
        if not self.captures:
            return f"{key} = {literal(self.text_of_literals)}"
        match self.parts:
            # The usual pattern, and by far the cheapest test.
            case (str(prefix), Capture()):
                return f"(starts_with({key}, {literal(prefix)}) and length({key}) > {len(prefix)})"
            case _:
                return f"{key} ~ {literal(self.regex)}"

    @cached_property
    def text_of_literals(self) -> str:
        """The literal characters alone."""
        return "".join(part for part in self.parts if isinstance(part, str))

    def capture_sql(self, capture: str, key: str) -> str:
        """An SQL expression for a capture of the SQL expression ``key``, which must match."""
        start, before = 1, ""
        for part in self.parts:
            if isinstance(part, str):
                start += len(part)
                continue
            tail = f"substr({key}, {start}{before})"
            value = tail if part.stop is None else f"split_part({tail}, {literal(part.stop)}, 1)"
            if part.name == capture:
                return value
            before += f" + length({value})"
        raise KeyError(capture)

    def build_sql(self, values: Mapping[str, str]) -> str:
        """An SQL expression for the key whose captures are these SQL expressions of type text."""
        return " || ".join(literal(part) if isinstance(part, str) else values[part.name] for part in self.parts)

    def common_key(self, other: Pattern) -> str | None:
        """A shortest key that both patterns match; None when there is none. Exact.

        Both are regular languages: this walks the product of their automata, breadth first. Characters that neither
        pattern names are alike to both, so that one of them stands for all.
        """
        ours, theirs = _automaton(self), _automaton(other)
        named = sorted(set(self.text_of_literals + other.text_of_literals))
        alphabet = [_unnamed(named), *named]
        waiting = deque([(0, 0, "")])
        seen = {(0, 0)}
        while waiting:
            here, there, key = waiting.popleft()
            if here == len(ours) and there == len(theirs):
                return key
            for character in alphabet:
                for step in _steps(ours, here, character):
                    for other_step in _steps(theirs, there, character):
                        if (step, other_step) not in seen:
                            seen.add((step, other_step))
                            waiting.append((step, other_step, key + character))
        return None


def parse(text: str) -> Pattern:
    """Read a pattern. Raises `ValueError` saying what is wrong with it."""
    tokens: list[str | Capture] = []
    for found in _TOKEN.finditer(text):
        token, name = found.group(), found.group(1)
        if name is not None:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{{{name}}} is not a capture: write lower-case letters, digits and _ in it")
            if any(isinstance(part, Capture) and part.name == name for part in tokens):
                raise ValueError(f"{{{name}}} occurs twice")
            if tokens and isinstance(tokens[-1], Capture):
                raise ValueError(f"{{{tokens[-1].name}}} and {{{name}}} touch: nothing says where one ends")
            tokens.append(Capture(name, None))
        elif token in {"{", "}"}:
            raise ValueError(f"a single {token}: write {token}{token} for the character itself")
        else:
            characters = token[0] if token in {"{{", "}}"} else token
            if tokens and isinstance(tokens[-1], str):
                tokens[-1] += characters
            else:
                tokens.append(characters)
    if not tokens:
        raise ValueError("an empty pattern matches no key")
    parts = tuple(
        Capture(part.name, str(tokens[place + 1])[0]) if isinstance(part, Capture) and place + 1 < len(tokens) else part
        for place, part in enumerate(tokens)
    )
    return Pattern(text, parts)


def _gap(capture: Capture) -> str:
    """A capture as a regular expression, of Python's and of Postgres's."""
    return ".+" if capture.stop is None else f"[^{_escape(capture.stop)}]+"


def _escape(text: str) -> str:
    """Literal text inside a regular expression of Postgres's. Only punctuation of ASCII means anything there."""
    return "".join(f"\\{c}" if c.isascii() and not (c.isalnum() or c in "_ \t\n\r\v\f") else c for c in text)


def _automaton(pattern: Pattern) -> list[str | Capture]:
    """The pattern one character or capture a state."""
    states: list[str | Capture] = []
    for part in pattern.parts:
        states.extend(part if isinstance(part, str) else [part])
    return states


def _steps(states: list[str | Capture], here: int, character: str) -> list[int]:
    """Where one character leads. A capture that has begun is the state behind it, which it may stay in."""
    after: list[int] = []
    if here < len(states):
        state = states[here]
        if character != state.stop if isinstance(state, Capture) else character == state:
            after.append(here + 1)
    if here > 0:
        before = states[here - 1]
        if isinstance(before, Capture) and character != before.stop:
            after.append(here)
    return after


def _unnamed(named: list[str]) -> str:
    return next(c for c in map(chr, range(ord("a"), 0x10FFFF)) if c not in named)
