"""Whether what is valid under one JSON Schema is valid under another. Pure.

The question cannot be decided for all schemas, so the answer errs on one side: *yes* is said only where rules prove it,
and *no* means that there is a counterexample, or that no rule decides. The rules go keyword by keyword: every keyword
of the schema that must accept is shown to hold for all that the other one lets pass, of which is known what its
keywords, the members of its ``allOf`` and the schemas that it refers to say together.

Where schemas are recursive, what is being shown may be taken for shown one level deeper in the instance (coinduction,
as for recursive types: Amadio and Cardelli, "Subtyping recursive types", 1993): instances are finite.

What is not decided, other than by the two being equal there: ``not`` (but for types), ``if``, ``unevaluated*``,
``$dynamicRef``, references to elsewhere, regular expressions, formats, and schemas of different drafts. ``format``
counts as an assertion, for many validators make it one; default values and other annotations do not count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from replank_schema.vault.dialect import (
    MALFORMED,
    Conjunction,
    Document,
    Schema,
    draft_of,
    references,
    type_set,
    without,
)
from replank_schema.vault.difference import equal, identity, pointer

Direction = Literal["backward", "forward"]

REASONS_LIMIT: Final = 100
"""Reasons told for each direction."""

_STEPS_LIMIT: Final = 100_000
_DEPTH_LIMIT: Final = 80  # of rules that call each other: Python has a limit too


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a direction is not proven.

    ``path`` is a JSON Pointer to the keyword that stands against it, in the schema that would have to accept (the new
    one for ``backward``, the old one for ``forward``), with the references on the way followed.
    """

    path: str
    direction: Direction
    text: str


@dataclass(frozen=True, slots=True)
class Compatibility:
    """``backward``: all that is valid under the old schema is valid under the new one, so that new readers can read old
    data. ``forward``: all that is valid under the new is valid under the old, so that old readers can read new data.
    """

    backward: bool
    forward: bool
    reasons: Sequence[Reason]

    @property
    def full(self) -> bool:
        return self.backward and self.forward


def judge(old: Any, new: Any) -> Compatibility:
    """Compare two JSON Schemas, as `json` has read them. One that names no draft is taken for one of the latest."""
    try:
        if equal(old, new):
            return Compatibility(backward=True, forward=True, reasons=())
        drafts = draft_of(old), draft_of(new)
        if drafts[0] is None or drafts[0] != drafts[1]:
            return _undecided("the two are not of one draft that is known here: whether they agree is not decided")
        before, after = Document(old, drafts[0]), Document(new, drafts[0])
        backward = _Proof(after, before).reasons_against()
        forward = _Proof(before, after).reasons_against()
    except RecursionError:
        return _undecided("the schemas are nested too deep to be judged")
    return Compatibility(
        backward=not backward,
        forward=not forward,
        reasons=(
            *(Reason(path, "backward", text) for path, text in backward[:REASONS_LIMIT]),
            *(Reason(path, "forward", text) for path, text in forward[:REASONS_LIMIT]),
        ),
    )


def _undecided(text: str) -> Compatibility:
    return Compatibility(
        backward=False, forward=False, reasons=(Reason("", "backward", text), Reason("", "forward", text))
    )


class _TooMuchWork(Exception):
    pass


_NUMBERS: Final = frozenset({"integer", "fraction"})
_STRINGS: Final = frozenset({"string"})
_ARRAYS: Final = frozenset({"array"})
_OBJECTS: Final = frozenset({"object"})
# The types of which a keyword says something. Of those that are not here: of all.
_CONCERNS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"), _NUMBERS),
    **dict.fromkeys(("contentEncoding", "contentMediaType", "maxLength", "minLength", "pattern"), _STRINGS),
    **dict.fromkeys(("additionalItems", "contains", "items", "maxContains", "maxItems", "minContains"), _ARRAYS),
    **dict.fromkeys(("minItems", "prefixItems", "unevaluatedItems", "uniqueItems"), _ARRAYS),
    **dict.fromkeys(("additionalProperties", "dependencies", "dependentRequired", "dependentSchemas"), _OBJECTS),
    **dict.fromkeys(("maxProperties", "minProperties", "patternProperties", "properties"), _OBJECTS),
    **dict.fromkeys(("propertyNames", "required", "unevaluatedProperties"), _OBJECTS),
}
_STRING: Final[dict[str, Any]] = {"type": "string"}

Rule = Callable[["_Proof", "_Goal"], bool]


@dataclass(frozen=True, slots=True)
class _Goal:
    """That ``keyword`` of ``wide`` holds for whatever obeys ``narrow``. ``depth`` counts levels of the instance."""

    keyword: str
    wide: dict[str, Any]
    narrow: Conjunction
    path: str
    depth: int

    @property
    def value(self) -> Any:
        return self.wide[self.keyword]

    def given(self, keyword: str) -> Iterator[Any]:
        """What the parts of ``narrow`` that have ``keyword`` say."""
        return (part[keyword] for part in self.narrow if keyword in part)


class _Proof:
    """Shows that a wide schema accepts all that a narrow one does."""

    def __init__(self, wide: Document, narrow: Document) -> None:
        self.wide = wide
        self.narrow = narrow
        self._against: list[tuple[str, str]] = []
        self._steps = 0
        self._nesting = 0
        self._quiet = 0  # within alternatives, of which one is enough
        self._shown: dict[object, int | bool] = {}  # while it is being shown: the depth at which
        self._order: list[object] = []  # of what was shown
        self._first_reasons: dict[object, str] = {}
        self._same: dict[tuple[int, int], bool] = {}
        self._same_targets: dict[str, bool] = {}
        self._without: dict[tuple[int, str], dict[str, Any]] = {}
        self._made: dict[object, dict[str, Any]] = {}

    def reasons_against(self) -> Sequence[tuple[str, str]]:
        """Paths and texts of what stands against it; empty: it is shown."""
        try:
            shown = self.accepts(self.wide.root, (self.narrow.root,), "", 0)
        except _TooMuchWork:
            return [("", "the schemas are too large to be judged in time")]
        if shown:
            return ()
        return list(dict.fromkeys(self._against)) or [("", "it is not decided")]

    def accepts(self, wide: Schema, narrow: Sequence[Schema], path: str, depth: int) -> bool:
        """Whether ``wide`` is shown to accept all that obeys ``narrow``."""
        conjunction = self.narrow.conjunction(narrow)
        if wide is True or conjunction is None or not self._can_be(conjunction):
            return True
        if wide is False:
            return self.refuse(path, "nothing is allowed here")
        if any(self.same(wide, schema) for schema in (*narrow, *conjunction)):
            return True
        key = (id(wide), *map(id, conjunction))
        known = self._shown.get(key)
        if known is None:
            return self._show(key, wide, conjunction, path, depth)
        if known is True or (known is not False and depth > known):
            return True
        return self.refuse(path, self._first_reasons.get(key, "recursion without a way down is not decided"))

    def _show(self, key: object, wide: dict[str, Any], narrow: Conjunction, path: str, depth: int) -> bool:
        self.work(1 + len(narrow))
        if self._nesting >= _DEPTH_LIMIT:
            return self.refuse(path, "it is nested too deep to be decided")
        told, shown_before = len(self._against), len(self._order)
        self._shown[key] = depth
        self._nesting += 1
        shown = True
        for keyword in wide:
            shown = self._holds(_Goal(keyword, wide, narrow, pointer(path, keyword), depth)) and shown
            if not shown and self._quiet:
                break
        self._nesting -= 1
        self._shown[key] = shown
        if shown:
            self._order.append(key)
            return True
        # What was shown on the way may rest on this.
        for other in self._order[shown_before:]:
            del self._shown[other]
        del self._order[shown_before:]
        if len(self._against) > told:
            self._first_reasons[key] = self._against[told][1]
        return False

    def work(self, steps: int) -> None:
        """Count what is done, so that no schema takes more than a second or so."""
        self._steps += steps
        if self._steps > _STEPS_LIMIT:
            raise _TooMuchWork

    def _holds(self, goal: _Goal) -> bool:
        self.work(1 + len(goal.narrow))
        types = self.narrow.types(goal.narrow)
        if not types & _CONCERNS.get(goal.keyword, types):
            return True
        told = len(self._against)
        if _RULES.get(goal.keyword, _undecided_keyword)(self, goal):
            return True
        if self._nesting >= _DEPTH_LIMIT or not self._holds_in_each_case(goal):
            return False
        del self._against[told:]
        return True

    def _holds_in_each_case(self, goal: _Goal) -> bool:
        """Whether ``goal`` is shown for every branch of an ``anyOf`` or ``oneOf`` of what is narrow."""
        for cases in self._cases(goal):
            with_each = [self.narrow.conjunction(case) for case in cases]
            self._quiet += 1
            self._nesting += 1
            told = len(self._against)
            shown = all(
                case is None
                or not self._can_be(case)
                or self._holds(_Goal(goal.keyword, goal.wide, case, goal.path, goal.depth))
                for case in with_each
            )
            del self._against[told:]
            self._nesting -= 1
            self._quiet -= 1
            if shown:
                return True
        return False

    def _cases(self, goal: _Goal) -> Iterator[list[tuple[Schema, ...]]]:
        for part in goal.narrow:
            others = tuple(other for other in goal.narrow if other is not part)
            for keyword in ("anyOf", "oneOf"):
                if keyword in part:
                    rest = self._part_without(part, keyword)
                    yield [(*others, rest, branch) for branch in part[keyword]]
        types = self.narrow.types(goal.narrow)
        if goal.keyword in ("anyOf", "oneOf") and len(types) > 1:
            names = sorted(types - _NUMBERS) + ["number"] * bool(types & _NUMBERS)
            if len(names) > 1:
                yield [(*goal.narrow, self.made(("type", name), {"type": name})) for name in names]

    def _part_without(self, part: dict[str, Any], keyword: str) -> dict[str, Any]:
        key = (id(part), keyword)
        if key not in self._without:
            self._without[key] = without(part, keyword)
        return self._without[key]

    def _can_be(self, conjunction: Conjunction) -> bool:
        """Whether anything may obey ``conjunction``, as far as types and lists of values tell."""
        values = self.narrow.finite(conjunction)
        return bool(self.narrow.types(conjunction)) and (values is None or len(values) > 0)

    def made(self, key: object, schema: dict[str, Any]) -> dict[str, Any]:
        """One schema for each ``key``, so that it is known again."""
        return self._made.setdefault(key, schema)

    def refuse(self, path: str, text: str) -> Literal[False]:
        self._against.append((path, text))
        return False

    def one_accepts(self, wides: Sequence[Schema], narrow: Conjunction, path: str, depth: int) -> bool:
        """Whether one of ``wides`` is shown to accept ``narrow``; says nothing of why not."""
        told = len(self._against)
        self._quiet += 1
        shown = any(self.accepts(wide, narrow, f"{path}/{index}", depth) for index, wide in enumerate(wides))
        self._quiet -= 1
        del self._against[told:]
        return shown

    def same(self, wide: Schema, narrow: Schema) -> bool:
        """Whether the two say the same, word for word, also where they refer to."""
        key = (id(wide), id(narrow))
        if key not in self._same:
            self.work(1)
            self._same[key] = equal(wide, narrow) and self._refer_to_the_same(wide)
        return self._same[key]

    def _refer_to_the_same(self, schema: Schema) -> bool:
        seen: set[str] = set()
        waiting = [*references(schema)]
        while waiting:
            reference = waiting.pop()
            if reference in seen:
                continue
            seen.add(reference)
            if not self._is_same_target(reference):
                return False
            target = self.wide.target(reference)
            if target is not None:
                waiting.extend(references(target))
        return True

    def _is_same_target(self, reference: str) -> bool:
        if reference == "":
            return False
        if reference not in self._same_targets:
            address = self.wide.address(reference)
            target = self.wide.target(reference)
            other = self.narrow.target(reference)
            self._same_targets[reference] = (
                address is not None
                and address == self.narrow.address(reference)
                and (bool(address[0]) or (target is not None and other is not None and equal(target, other)))
            )
        return self._same_targets[reference]


# Rules: each shows one keyword, or says what stands against it.


def _undecided_keyword(proof: _Proof, goal: _Goal) -> bool:
    return proof.refuse(goal.path, f"whether `{goal.keyword}` lets all pass is not decided")


def _malformed(proof: _Proof, goal: _Goal) -> bool:
    path = goal.path.rpartition("/")[0]
    if not isinstance(goal.value, dict):
        return proof.refuse(path, "what is no schema is not decided")
    names = ", ".join(f"`{name}`" for name in sorted(goal.value))
    return proof.refuse(path, f"keywords with values that they may not have are not decided: {names}")


def _is_dealt_with_elsewhere(_proof: _Proof, _goal: _Goal) -> bool:
    return True


def _reference(proof: _Proof, goal: _Goal) -> bool:
    target = proof.wide.target(goal.value)
    if target is not None:
        return proof.accepts(target, goal.narrow, goal.path, goal.depth)
    address = proof.wide.address(goal.value)
    if address is not None and any(address == proof.narrow.address(other) for other in goal.given("$ref")):
        return True
    return proof.refuse(goal.path, "a reference that cannot be followed here is not decided")


def _type(proof: _Proof, goal: _Goal) -> bool:
    refused = proof.narrow.types(goal.narrow) - type_set(goal.value)
    if refused:
        names = sorted("number" if name == "fraction" else name for name in refused)
        return proof.refuse(goal.path, f"the type is not allowed: {', '.join(names)}")
    return True


def _values(proof: _Proof, goal: _Goal) -> bool:
    values = proof.narrow.finite(goal.narrow)
    if values is None:
        return proof.refuse(goal.path, "only listed values are allowed")
    listed = [goal.value] if goal.keyword == "const" else goal.value
    proof.work(len(listed) + len(values))
    allowed = set(map(identity, listed))
    if any(identity(value) not in allowed for value in values):
        return proof.refuse(goal.path, "a value is not in the list")
    return True


def _bound(part: dict[str, Any], side: Literal["min", "max"]) -> tuple[float, bool] | None:
    """The bound of numbers, and whether it is excluded itself."""
    inclusive, exclusive = f"{side}imum", f"exclusive{side.capitalize()}imum"
    excluded = part.get(exclusive)
    if isinstance(excluded, bool) or excluded is None:  # as in draft 4
        return (part[inclusive], bool(excluded)) if inclusive in part else None
    if inclusive not in part:
        return excluded, True
    is_stricter = excluded >= part[inclusive] if side == "min" else excluded <= part[inclusive]
    return (excluded, True) if is_stricter else (part[inclusive], False)


def _number_bound(proof: _Proof, goal: _Goal) -> bool:
    side: Literal["min", "max"] = "min" if goal.keyword.lower().endswith("minimum") else "max"
    bound = _bound(goal.wide, side)
    if bound is None:  # in draft 4: `exclusiveMinimum` alone says nothing
        return True
    limit, is_excluded = bound
    known = [each for each in (_bound(part, side) for part in goal.narrow) if each is not None]
    values = proof.narrow.finite(goal.narrow)
    if values is not None:
        numbers = [each for each in values if proof.narrow.types_of(each) & _NUMBERS]
        if not numbers:
            return True
        known.append((min(numbers) if side == "min" else max(numbers), False))
    if "fraction" not in proof.narrow.types(goal.narrow):
        known = [_to_integer(each, side) for each in known]
    for other, other_is_excluded in known:
        is_beyond = other > limit if side == "min" else other < limit
        if is_beyond or (other == limit and (other_is_excluded or not is_excluded)):
            return True
    return proof.refuse(goal.path, f"numbers {'below' if side == 'min' else 'above'} the limit may come")


def _to_integer(bound: tuple[float, bool], side: Literal["min", "max"]) -> tuple[float, bool]:
    """The same bound for integers, not excluded."""
    limit, is_excluded = bound
    if math.isinf(limit):
        return bound
    if side == "min":
        return (math.floor(limit) + 1 if is_excluded else math.ceil(limit)), False
    return (math.ceil(limit) - 1 if is_excluded else math.floor(limit)), False


def _multiple(proof: _Proof, goal: _Goal) -> bool:
    def divides(other: float) -> bool:
        both_integers = isinstance(goal.value, int) and isinstance(other, int)
        return bool(other % goal.value == 0 if both_integers else other == goal.value)

    if any(divides(other) for other in goal.given("multipleOf")):
        return True
    if goal.value == 1 and "fraction" not in proof.narrow.types(goal.narrow):
        return True
    return proof.refuse(goal.path, "numbers that are no multiple may come")


_MEASURED: Final[dict[str, tuple[type[str] | type[list[Any]] | type[dict[str, Any]], str]]] = {
    "Length": (str, "strings"),
    "Items": (list, "arrays"),
    "Properties": (dict, "objects"),
}


def _size(proof: _Proof, goal: _Goal) -> bool:
    is_least = goal.keyword.startswith("min")
    kind, name = _MEASURED[goal.keyword[3:]]
    known = [*goal.given(goal.keyword)]
    if is_least:
        known.append(0)
    if goal.keyword == "minProperties":
        known.append(len(_required(goal)))
    values = proof.narrow.finite(goal.narrow)
    if values is not None:
        sizes = [len(value) for value in values if isinstance(value, kind)]
        if not sizes:
            return True
        known.append(min(sizes) if is_least else max(sizes))
    if any(other >= goal.value if is_least else other <= goal.value for other in known):
        return True
    return proof.refuse(goal.path, f"{'smaller' if is_least else 'larger'} {name} may come")


def _equal_text(proof: _Proof, goal: _Goal) -> bool:
    """Patterns and formats: only the same is known to say the same."""
    if goal.value in goal.given(goal.keyword):
        return True
    return proof.refuse(goal.path, f"whether `{goal.keyword}` lets all pass is not decided")


def _unique_items(proof: _Proof, goal: _Goal) -> bool:
    if not goal.value or any(goal.given("uniqueItems")) or any(most <= 1 for most in goal.given("maxItems")):
        return True
    return proof.refuse(goal.path, "arrays with equal items may come")


def _required(goal: _Goal) -> set[str]:
    return {name for names in goal.given("required") for name in names}


def _require(proof: _Proof, goal: _Goal) -> bool:
    values = proof.narrow.finite(goal.narrow)
    missing = set(goal.value) - _required(goal)
    if values is not None:
        missing = {name for name in missing if any(isinstance(each, dict) and name not in each for each in values)}
    if missing:
        return proof.refuse(goal.path, f"members may be missing: {', '.join(sorted(missing))}")
    return True


_LONGEST_NAME: Final = 64
_LONGEST_PATTERN: Final = 256
# Python's own escapes and groups, repeated groups, references back: not the same elsewhere, or slow.
_UNTAMED: Final = re.compile(r"\\[AZaQEGz1-9]|\(\?[^:=!<]|\(\?<[^=!]|\)[*+?{]")
_MOST_REPETITIONS: Final = 3
_MOST_ALTERNATIVES: Final = 12


def _matches(pattern: str, name: str) -> bool | None:
    """Whether a name matches a pattern; None: that depends on whose regular expressions they are, or may take too long.

    What is left means the same in Python and ECMAScript, for names in printable ASCII, and cannot keep a matcher that
    backtracks busy for long: patterns come from others.
    """
    if len(name) > _LONGEST_NAME or not (name.isascii() and name.isprintable()):
        return None
    compiled = _tame(pattern)
    return None if compiled is None else compiled.search(name) is not None


@lru_cache(maxsize=10_000)
def _tame(pattern: str) -> re.Pattern[str] | None:
    if len(pattern) > _LONGEST_PATTERN or _UNTAMED.search(pattern) or pattern.count("|") > _MOST_ALTERNATIVES:
        return None
    if sum(map(pattern.count, "*+?{")) > _MOST_REPETITIONS:
        return None
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return None


def _member(proof: _Proof, conjunction: Conjunction, name: str) -> tuple[Schema, ...]:
    """What ``conjunction`` says of the member ``name``."""
    said: list[Schema] = []
    for part in conjunction:
        declared = part.get("properties", {})
        patterns = part.get("patternProperties", {})
        proof.work(len(patterns))
        matched = [(_matches(pattern, name), schema) for pattern, schema in patterns.items()]
        said.extend(schema for does_match, schema in matched if does_match)
        if name in declared:
            said.append(declared[name])
        elif "additionalProperties" in part and all(does_match is False for does_match, _ in matched):
            said.append(part["additionalProperties"])
    return tuple(said)


def _declared(goal: _Goal) -> list[str]:
    """The names of members that what is narrow declares."""
    return list(dict.fromkeys(name for properties in goal.given("properties") for name in properties))


def _properties(proof: _Proof, goal: _Goal) -> bool:
    shown = True
    for name, schema in goal.value.items():
        said = _member(proof, goal.narrow, name)
        shown = proof.accepts(schema, said, pointer(goal.path, name), goal.depth + 1) and shown
    return shown


def _pattern_properties(proof: _Proof, goal: _Goal) -> bool:
    shown = True
    for pattern, schema in goal.value.items():
        path = pointer(goal.path, pattern)
        for name in _declared(goal):
            proof.work(1)
            if _matches(pattern, name) is not False:
                shown = proof.accepts(schema, _member(proof, goal.narrow, name), path, goal.depth + 1) and shown
        said: list[Schema] = []
        for part in goal.narrow:
            patterns = part.get("patternProperties", {})
            if pattern in patterns:
                said.append(patterns[pattern])
            elif not patterns and "additionalProperties" in part:
                said.append(part["additionalProperties"])
        shown = proof.accepts(schema, said, path, goal.depth + 1) and shown
    return shown


def _additional_properties(proof: _Proof, goal: _Goal) -> bool:
    shown = True
    own, own_patterns = goal.wide.get("properties", {}), goal.wide.get("patternProperties", {})
    for name in _declared(goal):
        proof.work(1 + len(own_patterns))
        if name not in own and not any(_matches(pattern, name) for pattern in own_patterns):
            said = _member(proof, goal.narrow, name)
            shown = proof.accepts(goal.value, said, goal.path, goal.depth + 1) and shown
    # Members with other names: those that match a pattern, and those that match none.
    patterns = {pattern for patterns in goal.given("patternProperties") for pattern in patterns}
    for pattern in sorted(patterns - own_patterns.keys()):
        said = tuple(each[pattern] for each in goal.given("patternProperties") if pattern in each)
        shown = proof.accepts(goal.value, said, goal.path, goal.depth + 1) and shown
    said = tuple(goal.given("additionalProperties"))
    return proof.accepts(goal.value, said, goal.path, goal.depth + 1) and shown


def _property_names(proof: _Proof, goal: _Goal) -> bool:
    said: list[Schema] = [_STRING, *goal.given("propertyNames")]
    for part in goal.narrow:
        if part.get("additionalProperties") is False and not part.get("patternProperties"):
            names = [*part.get("properties", {})]
            said.append(proof.made(("names", id(part)), {"enum": names}))
    return proof.accepts(goal.value, said, goal.path, goal.depth + 1)


def _dependencies(proof: _Proof, goal: _Goal) -> bool:
    """``dependencies``, ``dependentRequired`` and ``dependentSchemas``."""
    shown = True
    for name, needed in goal.value.items():
        path = pointer(goal.path, name)
        if False in _member(proof, goal.narrow, name):
            continue
        others = [each[name] for each in goal.given(goal.keyword) if name in each]
        if isinstance(needed, list):
            there = _required(goal).union(*(other for other in others if isinstance(other, list)))
            if not there >= set(needed):
                shown = proof.refuse(path, "a member that is needed may be missing")
        elif not any(proof.same(needed, other) for other in others if not isinstance(other, list)):
            shown = proof.accepts(needed, goal.narrow, path, goal.depth) and shown
    return shown


def _positions(part: dict[str, Any], draft: int) -> tuple[list[Schema], Schema]:
    """The schemas of the first items, one each, and that of all others."""
    items = part.get("items", True)
    if draft == 2020:
        return part.get("prefixItems", []), items
    return (items, part.get("additionalItems", True)) if isinstance(items, list) else ([], items)


def _items(proof: _Proof, goal: _Goal) -> bool:
    firsts, rest = _positions(goal.wide, proof.wide.draft)
    positions = [_positions(part, proof.narrow.draft) for part in goal.narrow]
    most = min(goal.given("maxItems"), default=None)
    count = max(len(firsts), *(len(prefix) for prefix, _ in positions), 0)
    shown = True
    for index in range(count if most is None else min(count, most)):
        said = [prefix[index] if index < len(prefix) else other for prefix, other in positions]
        wide = firsts[index] if index < len(firsts) else rest
        shown = proof.accepts(wide, said, goal.path, goal.depth + 1) and shown
    if most is None or most > count:
        shown = proof.accepts(rest, [other for _, other in positions], goal.path, goal.depth + 1) and shown
    return shown


def _contains(proof: _Proof, goal: _Goal) -> bool:
    least, most = goal.wide.get("minContains", 1), goal.wide.get("maxContains", math.inf)
    is_shown = any(
        "contains" in part
        and proof.same(goal.value, part["contains"])
        and part.get("minContains", 1) >= least
        and part.get("maxContains", math.inf) <= most
        for part in goal.narrow
    )
    if is_shown or (least == 0 and most == math.inf):
        return True
    return proof.refuse(goal.path, "how many items match is not decided")


def _any_of(proof: _Proof, goal: _Goal) -> bool:
    if proof.one_accepts(goal.value, goal.narrow, goal.path, goal.depth):
        return True
    return proof.refuse(goal.path, "no branch is shown to accept all that may come")


def _one_of(proof: _Proof, goal: _Goal) -> bool:
    for branches in goal.given("oneOf"):
        if len(branches) == len(goal.value) and _are_same_branches(proof, goal.value, branches):
            return True
    alternatives = [branch for branch in goal.value if branch is not False]
    if not _are_apart(proof, alternatives):
        return proof.refuse(goal.path, "whether exactly one branch accepts what may come is not decided")
    return _any_of(proof, goal)


def _are_same_branches(proof: _Proof, wides: Sequence[Schema], narrows: Sequence[Schema]) -> bool:
    left = list(narrows)
    for wide in wides:
        partner = next((index for index, narrow in enumerate(left) if proof.same(wide, narrow)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def _are_apart(proof: _Proof, schemas: Sequence[Schema]) -> bool:
    """Whether nothing is valid under two of ``schemas``, as their types, or a member that both require, show."""
    document = proof.wide
    conjunctions = [parts for schema in schemas if (parts := document.conjunction([schema])) is not None]
    for index, one in enumerate(conjunctions):
        proof.work(index)
        for other in conjunctions[:index]:
            if document.types(one) & document.types(other) and not _differ_in_a_member(proof, one, other):
                return False
    return True


def _differ_in_a_member(proof: _Proof, one: Conjunction, other: Conjunction) -> bool:
    document = proof.wide
    if document.types(one) & document.types(other) != _OBJECTS:
        return False
    required = [{name for part in parts for name in part.get("required", ())} for parts in (one, other)]
    for name in sorted(required[0] & required[1]):
        members = document.conjunction(_member(proof, one, name)), document.conjunction(_member(proof, other, name))
        if members[0] is None or members[1] is None:
            return True
        if not document.types(members[0]) & document.types(members[1]):
            return True
        one_values, other_values = document.finite(members[0]), document.finite(members[1])
        listed = one_values is not None and other_values is not None
        if listed and set(map(identity, one_values or ())).isdisjoint(map(identity, other_values or ())):
            return True
    return False


def _all_of(proof: _Proof, goal: _Goal) -> bool:
    shown = True
    for index, schema in enumerate(goal.value):
        shown = proof.accepts(schema, goal.narrow, f"{goal.path}/{index}", goal.depth) and shown
    return shown


def _not(proof: _Proof, goal: _Goal) -> bool:
    if any(proof.same(goal.value, other) for other in goal.given("not")):
        return True
    refused = proof.wide.conjunction([goal.value])
    if refused is None or not proof.wide.types(refused) & proof.narrow.types(goal.narrow):
        return True
    return proof.refuse(goal.path, "whether `not` lets all pass is not decided")


def _if(proof: _Proof, goal: _Goal) -> bool:
    then, otherwise = goal.wide.get("then", True), goal.wide.get("else", True)
    for part in goal.narrow:
        others = part.get("if"), part.get("then", True), part.get("else", True)
        if "if" in part and all(map(proof.same, (goal.value, then, otherwise), others)):
            return True
    if proof.one_accepts([then], goal.narrow, goal.path, goal.depth) and proof.one_accepts(
        [otherwise], goal.narrow, goal.path, goal.depth
    ):
        return True
    return proof.refuse(goal.path, "whether `if` lets all pass is not decided")


def _unevaluated(proof: _Proof, goal: _Goal) -> bool:
    if goal.value is True or goal.value == {}:
        return True
    return _undecided_keyword(proof, goal)


_RULES: Final[dict[str, Rule]] = {
    MALFORMED: _malformed,
    "$ref": _reference,
    "type": _type,
    **dict.fromkeys(("const", "enum"), _values),
    **dict.fromkeys(("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"), _number_bound),
    "multipleOf": _multiple,
    **dict.fromkeys(("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"), _size),
    **dict.fromkeys(("contentEncoding", "contentMediaType", "format", "pattern"), _equal_text),
    "uniqueItems": _unique_items,
    "required": _require,
    "properties": _properties,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "propertyNames": _property_names,
    **dict.fromkeys(("dependencies", "dependentRequired", "dependentSchemas"), _dependencies),
    **dict.fromkeys(("additionalItems", "items", "prefixItems"), _items),
    "contains": _contains,
    **dict.fromkeys(("else", "maxContains", "minContains", "then"), _is_dealt_with_elsewhere),
    "anyOf": _any_of,
    "oneOf": _one_of,
    "allOf": _all_of,
    "not": _not,
    "if": _if,
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), _unevaluated),
}
