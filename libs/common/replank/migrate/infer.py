"""A first mapping, proposed from a sample of the key-value store: for a person to read, correct and keep.

What is proposed is exact: nothing is cleaned, rounded or dropped unless the person says so. What looks dirty, and what
would take it, stands in comments with its share. Comments name counts and JSON types, never values.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TypeAlias

from replank.migrate.mapping import Mapping, Source, load, path_text

JsonValue: TypeAlias = Any
"""What `json.loads` returns; numbers may be `decimal.Decimal`, which keeps their decimals (``parse_float=Decimal``)."""

_SEPARATORS: Final = re.compile(r"[:/|.#]")
_KIND: Final = re.compile(r"[A-Za-z][A-Za-z_-]*")
_INTEGER: Final = re.compile(r"0|-?[1-9]\d{0,17}")
_NUMERIC: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_INSTANT: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{3}|\.\d{6})?Z")
_DATE_LIKE: Final = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}(?:[T ].*)?")
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME_NAME: Final = re.compile(r"(?:At|_at|[dD]ate|[tT]ime|[tT]s|[oO]n)$")

_RARE: Final = 0.05
"""A field in a smaller share of the records than this stays in rest."""
_AGREED: Final = 0.9
"""The share of a field's values that has to be of a kind for the field to get its type."""
_OVERLAP: Final = 0.8
"""The share of a field's values that has to be keys of an entity for the field to be a reference."""
_ENOUGH: Final = 5
"""Of fewer distinct values than this nothing is concluded about references."""
_CERTAIN: Final = 100
"""In fewer records than this, a field that is always there is not taken for one that has to be."""
_MEMBERS: Final = 30
"""An object with more names than this in all is data under its own keys, not a record."""
_DISTINCT: Final = 20_000
"""So many distinct values of a field are remembered."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should look at before they use the proposal."""

    entity: str
    path: str
    """Empty for what concerns the keys."""
    what: str
    records: int
    of: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """A mapping that is valid, and what was noticed on the way."""

    text: str
    """YAML with comments."""
    mapping: Mapping
    """The text, read."""
    findings: tuple[Finding, ...]
    records: int


def infer(
    sample: Iterable[tuple[str, JsonValue]], *, name: str = "migration", source: Source | None = None
) -> Proposal:
    """Propose a mapping for the store that the sample of (key, value) is from.

    Entities are told apart by what their keys begin with; objects in objects become columns, arrays of objects become
    child tables, whatever is rare or of many kinds stays jsonb. Raises `ValueError` when no record of the sample has a
    key and a value that an entity could be made of.
    """
    records = list(sample)
    shapes = _shapes(key for key, _ in records)
    kinds: dict[str, _Kind] = {}
    strangers = 0
    for key, value in records:
        shape = shapes.get(_shape_of(key, shapes))
        captures = shape.read(key) if shape is not None else None
        if shape is None or captures is None or not isinstance(value, dict):
            strangers += 1
            continue
        kind = kinds.setdefault(shape.name, _Kind(shape))
        kind.add(captures, value)
    if not kinds:
        raise ValueError("no record of the sample has a key such as order:1 and an object as its value")
    writer = _Writer(name, source or Source(table="kv_store", key="key", value="value"), kinds)
    text, findings = writer.write(len(records), strangers)
    return Proposal(text, load(text), tuple(findings), len(records))


# Keys


@dataclass(slots=True)
class _Shape:
    """What the keys of an entity look like: literal segments, then one or more that vary."""

    name: str
    prefix: str
    """The literal text in front, with its separator."""
    separators: str
    """Between the segments that vary."""
    others: int = 0
    """Keys with the same prefix that have another number of segments."""

    def read(self, key: str) -> tuple[str, ...] | None:
        """The segments that vary; None when the key is of another shape."""
        rest, found = key.removeprefix(self.prefix), []
        for separator in self.separators:
            segment, cut, rest = rest.partition(separator)
            if not cut or not segment:
                return None
            found.append(segment)
        return (*found, rest) if rest else None

    def pattern(self, captures: Sequence[str]) -> str:
        between = [*self.separators, ""]
        text = "".join(f"{{{name}}}{cut}" for name, cut in zip(captures, between, strict=True))
        return self.prefix.replace("{", "{{").replace("}", "}}") + text


def _shapes(keys: Iterable[str]) -> dict[str, _Shape]:
    """The shapes of the keys by their prefixes. No prefix begins with another one, so that no key has two."""
    below: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        head = _head(key)
        if head:
            below[head].append(key)
    shapes: dict[str, _Shape] = {}
    names: set[str] = set()
    for prefix, members in sorted(_split(below)):
        tails = [key.removeprefix(prefix) for key in members]
        layouts = Counter("".join(_SEPARATORS.findall(tail)) for tail in tails)
        layout, count = layouts.most_common(1)[0]
        shapes[prefix] = _Shape(
            _unused(_snake(_SEPARATORS.split(prefix)[-2]), names), prefix, layout, len(members) - count
        )
    return shapes


def _head(key: str) -> str:
    """The first segment with its separator, if it looks like the name of a kind."""
    found = _SEPARATORS.search(key)
    return key[: found.end()] if found and _KIND.fullmatch(key[: found.start()]) else ""


def _split(groups: dict[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    """Lengthen a prefix for as long as what follows is one of a few names that each stand before many keys."""
    for prefix, members in groups.items():
        heads = Counter(_head(key.removeprefix(prefix)) for key in members)
        few = "" not in heads and len(heads) <= 10 and all(count >= 10 for count in heads.values())
        if few and len(members) > len(heads):
            inner: defaultdict[str, list[str]] = defaultdict(list)
            for key in members:
                inner[prefix + _head(key.removeprefix(prefix))].append(key)
            yield from _split(inner)
        else:
            yield prefix, members


def _shape_of(key: str, shapes: dict[str, _Shape]) -> str:
    prefix = ""
    while head := _head(key.removeprefix(prefix)):
        prefix += head
        if prefix in shapes:
            return prefix
    return ""


# Values


@dataclass(slots=True)
class _Field:
    """What was seen at one path of an object."""

    path: tuple[str, ...]
    present: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    spellings: Counter[str] = field(default_factory=Counter)
    """Of texts: date, iso8601, …, uuid, number, blank (nothing in it), untrimmed, text."""
    whole: bool = True
    decimals: int = 0
    largest: Decimal = Decimal(0)
    values: set[str] = field(default_factory=set)
    members: _Object | None = None
    elements: _Object | None = None
    lengths: Counter[str] = field(default_factory=Counter)
    """Of arrays: empty, objects, other."""

    def add(self, value: JsonValue) -> None:
        self.present += 1
        match value:
            case None:
                self.kinds["null"] += 1
            case bool():
                self.kinds["boolean"] += 1
            case int() | float() | Decimal():
                self._number(Decimal(str(value)))
            case str():
                self._text(value)
            case dict():
                self.kinds["object"] += 1
                self.members = self.members or _Object(self.path)
                self.members.add(value)
            case _:
                self.kinds["array"] += 1
                self._array(value)

    def _number(self, number: Decimal) -> None:
        self.kinds["number"] += 1
        exponent = number.normalize().as_tuple().exponent
        if isinstance(exponent, int):
            self.decimals = max(self.decimals, -exponent)
        self.whole = self.whole and number == number.to_integral_value()
        self.largest = max(self.largest, abs(number))
        self._remember(str(number))

    def _text(self, text: str) -> None:
        self.kinds["string"] += 1
        self.spellings[_spelling(text)] += 1
        if text != text.strip():
            self.spellings["untrimmed"] += 1
        self._remember(text)

    def _array(self, value: list[JsonValue]) -> None:
        if not value:
            self.lengths["empty"] += 1
        elif all(isinstance(element, dict) for element in value):
            self.lengths["objects"] += 1
            self.elements = self.elements or _Object(())
            for element in value:
                self.elements.add(element)
        else:
            self.lengths["other"] += 1

    def _remember(self, text: str) -> None:
        if len(self.values) < _DISTINCT:
            self.values.add(text)

    @property
    def filled(self) -> int:
        """How often there was a value other than null."""
        return self.present - self.kinds["null"]


@dataclass(slots=True)
class _Object:
    """What was seen of the objects in one place."""

    path: tuple[str, ...]
    count: int = 0
    fields: dict[str, _Field] = field(default_factory=dict)

    def add(self, value: dict[str, JsonValue]) -> None:
        self.count += 1
        for name, inner in value.items():
            # Past the bound the names are data: what they are no longer matters.
            if name not in self.fields and len(self.fields) <= _MEMBERS * 2:
                self.fields[name] = _Field((*self.path, name))
            if name in self.fields:
                self.fields[name].add(inner)


@dataclass(slots=True)
class _Kind:
    """The records of one entity."""

    shape: _Shape
    captures: list[set[str]] = field(default_factory=list)
    root: _Object = field(default_factory=lambda: _Object(()))
    same_as_key: Counter[str] = field(default_factory=Counter)

    def add(self, captures: tuple[str, ...], value: dict[str, JsonValue]) -> None:
        if not self.captures:
            self.captures = [set() for _ in captures]
        for seen, capture in zip(self.captures, captures, strict=True):
            if len(seen) < _DISTINCT:
                seen.add(capture)
        self.root.add(value)
        for name, inner in value.items():
            if _snake(name) in {"id", "key", f"{self.shape.name}_id"} and str(inner) in captures:
                self.same_as_key[name] += 1


def _spelling(text: str) -> str:
    if not text.strip():
        return "blank"
    if _UUID.fullmatch(text):
        return "uuid"
    if found := _INSTANT.fullmatch(text):
        return {0: "iso8601", 4: "iso8601_ms", 7: "iso8601_us"}[len(found[1] or "")]
    if _DATE.fullmatch(text):
        return "date"
    if _NUMERIC.fullmatch(text):
        return "number"
    return "another date" if _DATE_LIKE.fullmatch(text) else "text"


# The proposal


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    path: tuple[str, ...]
    type: str
    representation: str
    required: bool
    remarks: tuple[str, ...]
    field: _Field


class _Writer:
    def __init__(self, name: str, source: Source, kinds: dict[str, _Kind]) -> None:
        self.name, self.source, self.kinds = name, source, kinds
        self.findings: list[Finding] = []
        self.references: dict[str, set[str]] = {}
        self.tables: set[str] = set()

    def write(self, records: int, strangers: int) -> tuple[str, list[Finding]]:
        source = {"table": self.source.table, "key": self.source.key, "value": self.source.value}
        lines = [
            f"# Proposed from a sample of {records} records. Read it, correct it, try it: it knows the sample only.",
            "mapping: 1",
            f"name: {self.name}",
            f"source: {_flow(source)}",
            "others: refuse",
        ]
        if strangers:
            lines.append(f"# {strangers} of {records} have a key or a value like no other's: they would be rejected.")
            self.findings.append(Finding("", "", "keys or values that no entity was made of", strangers, records))
        lines.append("entities:")
        for name in self._ordered():
            lines += self._entity(name, self.kinds[name])
        return "\n".join(lines) + "\n", self.findings

    def _ordered(self) -> list[str]:
        """The ones with one capture first: others are named after them."""
        return sorted(self.kinds, key=lambda name: (len(self.kinds[name].captures), name))

    def _entity(self, name: str, kind: _Kind) -> Iterator[str]:
        count = kind.root.count
        captures = self._captures(name, kind)
        yield f"  {name}:  # {count} records"
        yield f"    key: {json.dumps(kind.shape.pattern(list(captures)))}"
        if kind.shape.others:
            what = "the key has another number of parts: perhaps another entity"
            yield f"    # of {kind.shape.others} more {what}"
            self.findings.append(Finding(name, "", what, kind.shape.others, count + kind.shape.others))
        yield f"    table: {_unused(_plural(name), self.tables)}"
        yield "    columns:"
        used = {"rest"}
        for capture, (kind_of, reference) in captures.items():
            used.add(capture)
            refers = {"references": reference} if reference else {}
            yield f"      {capture}: {_flow({'key': capture, 'type': kind_of} | refers)}"
        same = {field for field, times in kind.same_as_key.items() if times == count}
        children: list[_Field] = []
        for column in self._columns(name, kind.root, count, used, same=same, children=children):
            yield self._line(name, column, count)
        for field_name in sorted(same):
            yield f"      # {json.dumps(field_name)} says what the key says: it stays in rest"
        yield f"    primary_key: {_flow(list(captures))}"
        yield "    rest: rest"
        if children:
            yield "    children:"
            names: set[str] = set()
            for array in children:
                yield from self._child(name, list(captures), array, names)

    def _captures(self, name: str, kind: _Kind) -> dict[str, tuple[str, str | None]]:
        """Name -> (type, entity that it refers to) of each capture."""
        found: dict[str, tuple[str, str | None]] = {}
        for position, values in enumerate(kind.captures):
            kind_of = self._id_type(name) if len(kind.captures) == 1 else "text"
            reference = self._reference(name, values, None, kind_of) if len(kind.captures) > 1 else None
            last = position == len(kind.captures) - 1
            plain = f"{reference}_id" if reference else "id" if last else f"part{position + 1}"
            found[_unused(plain, set(found))] = (kind_of, reference)
        return found

    def _id_type(self, name: str) -> str:
        """bigint where the keys are whole numbers and others refer to them by JSON numbers; else text."""
        (values,) = self.kinds[name].captures
        if not all(_INTEGER.fullmatch(value) for value in values):
            return "text"
        columns = [f for kind in self.kinds.values() for f in _flat(kind.root) if _refers_by_name(f.path[-1], name)]
        by_number = columns and all(f.kinds["number"] and not f.kinds["string"] for f in columns)
        return "bigint" if by_number else "text"

    def _columns(
        self, entity: str, root: _Object, count: int, used: set[str], *, same: set[str], children: list[_Field] | None
    ) -> Iterator[_Column]:
        for name, seen in root.fields.items():
            if name in same and not root.path:
                continue
            if seen.present < count * _RARE and count >= _CERTAIN:
                self.findings.append(
                    Finding(entity, path_text(seen.path), "rare: it stays in rest", seen.present, count)
                )
                continue
            inner = seen.members
            if inner is not None and seen.kinds["object"] == seen.filled and 0 < len(inner.fields) <= _MEMBERS:
                yield from self._columns(entity, inner, count, used, same=same, children=children)
            elif children is not None and self._is_child(seen):
                children.append(seen)
            elif seen.filled:
                yield self._column(seen, count, used)

    @staticmethod
    def _is_child(seen: _Field) -> bool:
        elements = seen.elements
        return (
            seen.kinds["array"] == seen.filled
            and elements is not None
            and not seen.lengths["other"]
            and 0 < len(elements.fields) <= _MEMBERS
        )

    def _column(self, seen: _Field, count: int, used: set[str]) -> _Column:
        kind, representation, remarks = _type_of(seen)
        required = seen.filled == count >= _CERTAIN and not seen.spellings["blank"]
        return _Column(
            _unused(_snake("_".join(seen.path)), used), seen.path, kind, representation, required, tuple(remarks), seen
        )

    def _line(self, entity: str, column: _Column, count: int, indent: str = "      ") -> str:
        said: dict[str, Any] = {"path": _path(column.path), "type": column.type}
        if column.representation:
            said["as"] = column.representation
        if column.required:
            said["null"] = False
        if column.type in {"text", "bigint", "integer"}:
            wanted = "bigint" if column.type == "integer" else column.type
            reference = self._reference(entity, column.field.values, column.path[-1], wanted)
            if reference:
                said |= {"type": wanted, "references": reference}
        share = f"{100 * column.field.filled / count:.3g} % of {count}"
        for remark in column.remarks:
            self.findings.append(Finding(entity, path_text(column.path), remark, column.field.filled, count))
        return f"{indent}{_plain(column.name)}: {_flow(said)}  # {'; '.join([share, *column.remarks])}"

    def _child(self, entity: str, parents: list[str], array: _Field, names: set[str]) -> Iterator[str]:
        elements = array.elements
        assert elements is not None  # noqa: S101 - _is_child says so
        name = _unused(_snake("_".join(array.path)), names)
        parent = [p if p.endswith("_id") else f"{entity}_{p}" for p in parents]
        used = {*parent, "position", "rest"}
        columns = list(self._columns(entity, elements, elements.count, used, same=set(), children=None))
        if not columns:
            return
        yield f"      {name}:  # {elements.count} elements, {array.lengths['empty']} empty arrays"
        yield f"        path: {_flow(_path(array.path))}"
        yield f"        table: {_unused(f'{entity}_{name}', self.tables)}"
        yield f"        parent: {_flow(parent)}"
        yield "        position: position"
        yield "        columns:"
        for column in columns:
            yield self._line(entity, column, elements.count, "          ")
        yield "        rest: rest"

    def _reference(self, entity: str, values: set[str], field_name: str | None, kind: str) -> str | None:
        """The entity whose keys the values are."""
        if len(values) < _ENOUGH:
            return None
        for other, candidate in self.kinds.items():
            if other == entity or len(candidate.captures) != 1 or self._id_type(other) != kind:
                continue
            keys = candidate.captures[0]
            share = len(values & keys) / len(values)
            # Small numbers are everywhere: of them the name has to say it, too.
            telling = not all(_INTEGER.fullmatch(value) for value in values)
            named = field_name is not None and _refers_by_name(field_name, other)
            if (share >= _OVERLAP and (telling or named)) and not self._reaches(other, entity):
                self.references.setdefault(entity, set()).add(other)
                return other
        return None

    def _reaches(self, start: str, goal: str) -> bool:
        """Whether one entity refers to another already, by way of whichever others."""
        waiting, seen = [start], set()
        while waiting:
            here = waiting.pop()
            if here == goal:
                return True
            if here not in seen:
                seen.add(here)
                waiting += self.references.get(here, ())
        return False


def _type_of(seen: _Field) -> tuple[str, str, list[str]]:
    """(type, representation, remarks) for a field."""
    kind, count = next(((k, n) for k, n in seen.kinds.most_common() if k != "null"))
    if kind in {"object", "array"} or count < seen.filled * _AGREED:
        mixed = ", ".join(f"{k} {n}" for k, n in seen.kinds.most_common())
        return "jsonb", "", [f"of several kinds: {mixed}"] if count < seen.filled else []
    remarks = []
    if others := {k: n for k, n in seen.kinds.items() if k not in {kind, "null"}}:
        found = ", ".join(f"{k} {n}" for k, n in others.items())
        remarks.append(f"dirty, and rejected unless lenient: {found}")
    if seen.kinds["null"]:
        remarks.append(f"null in {seen.kinds['null']}")
    match kind:
        case "boolean":
            return "boolean", "", remarks
        case "number":
            return (*_number_type(seen), remarks)
        case _:
            column, representation, more = _text_type(seen, count)
            return column, representation, remarks + more


def _number_type(seen: _Field) -> tuple[str, str]:
    name = seen.path[-1]
    if seen.whole:
        for form, unit in (("epoch_ms", 1000), ("epoch_s", 1)):
            # From 2001 to 2096, by a name that says so.
            if _TIME_NAME.search(name) and 10**9 * unit <= seen.largest <= 4 * 10**9 * unit:
                return "timestamptz", form
        if seen.largest < 2**31:
            return "integer", ""
        return ("bigint" if seen.largest < 2**63 else "numeric"), ""
    if seen.decimals <= 2 and seen.largest < 10**9:
        return "numeric(12,2)", ""
    return "numeric", ""


def _text_type(seen: _Field, count: int) -> tuple[str, str, list[str]]:
    remarks = []
    spellings = Counter({k: n for k, n in seen.spellings.items() if k != "untrimmed"})
    spelling, times = spellings.most_common(1)[0]
    special = spelling in {"date", "uuid", "iso8601", "iso8601_ms", "iso8601_us"}
    if special and times >= count * _AGREED:
        if others := {k: n for k, n in spellings.items() if k != spelling}:
            found = ", ".join(f"{k} {n}" for k, n in others.items())
            remarks.append(f"dirty, and rejected unless lenient: {found}")
        if spelling in {"date", "uuid"}:
            return spelling, "", remarks
        return "timestamptz", spelling, remarks
    if spelling == "number" and times >= count * _AGREED:
        remarks.append("a number in a text: numeric, as: string, if it always is")
    elif special or spellings["another date"] > count / 2:
        remarks.append("dates in several spellings: date or timestamptz, lenient, if they may be unified")
    if blank := spellings["blank"]:
        remarks.append(f"blank in {blank}: clean: [trim, empty_as_null], if that means nothing")
    if untrimmed := seen.spellings["untrimmed"] - blank:
        remarks.append(f"blanks around it in {untrimmed}: clean: [trim], if they mean nothing")
    return "text", "", remarks


def _flat(root: _Object) -> Iterator[_Field]:
    for seen in root.fields.values():
        yield seen
        for inner in (seen.members, seen.elements):
            if inner is not None:
                yield from _flat(inner)


def _refers_by_name(field_name: str, entity: str) -> bool:
    """clientId, client_id, client, clientRef … for the entity client."""
    words = _snake(field_name).split("_")
    return "_".join(words[: len(entity.split("_"))]) == entity and len(words) > len(entity.split("_")) - 1


def _snake(text: str) -> str:
    """A name as columns have them."""
    words = re.sub(r"([a-z0-9])([A-Z])|([A-Z]+)(?=[A-Z][a-z])", r"\1\3_\2", text)
    plain = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    return (plain if plain[:1].isalpha() else f"f_{plain}".rstrip("_"))[:40].removeprefix("replank_")


def _plural(name: str) -> str:
    if re.search(r"[^aeiou]y$", name):
        return name[:-1] + "ies"
    return name + ("es" if re.search(r"(s|x|z|ch|sh)$", name) else "s")


def _unused(name: str, used: set[str]) -> str:
    """A name that is not taken yet; and take it."""
    free, number = name, 2
    while free in used:
        free, number = f"{name[:36]}_{number}", number + 1
    used.add(free)
    return free


def _path(path: tuple[str, ...]) -> str | list[str]:
    """A path as the mapping has it: as a list where the short form would be another one's."""
    return ".".join(path) if all(re.fullmatch(r"[A-Za-z0-9_-]+", step) for step in path) else list(path)


def _plain(text: str) -> str:
    return (
        text if re.fullmatch(r"[a-z_][a-z0-9_]*", text) and text not in {"null", "true", "false"} else json.dumps(text)
    )


def _flow(value: Any) -> str:
    """A value in YAML's short form."""
    match value:
        case dict():
            return "{" + ", ".join(f"{name}: {_flow(inner)}" for name, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(_flow(inner) for inner in value) + "]"
        case bool():
            return json.dumps(value)
        case str() if re.fullmatch(r"[A-Za-z_][\w. -]*\w|[A-Za-z_]", value) and value not in {"null", "true", "false"}:
            return value
        case _:
            return json.dumps(value)
