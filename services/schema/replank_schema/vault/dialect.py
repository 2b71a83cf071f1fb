"""What a JSON Schema says, draft by draft: its keywords without annotations, its references, and what it lets pass.

Schemas come from others and may be malformed: a keyword whose value has not the shape that the draft asks for is kept
apart (:data:`MALFORMED`), so that nobody takes it for more than it is. Everything here may only err on one side:
:meth:`Document.types` and :meth:`Document.finite` name at least what a schema lets pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import unquote, urldefrag, urljoin

from replank_schema.vault.difference import identity

Schema = bool | dict[str, Any]
Conjunction = tuple[dict[str, Any], ...]
"""Schemas all of which an instance has to obey, without ``allOf`` and without references that can be followed."""

MALFORMED: Final = "\0malformed"
"""The keyword under which malformed keywords are kept, by name; or, as it is, what is no schema at all."""

LATEST: Final = 2020
_DRAFTS: Final = {
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "http://json-schema.org/draft/2019-09/schema": 2019,
    "http://json-schema.org/draft/2020-12/schema": 2020,
}

# The types, as a partition: `number` is an integer or a fraction.
ALL_TYPES: Final = frozenset({"array", "boolean", "fraction", "integer", "null", "object", "string"})
_TYPE_SETS: Final[dict[str, frozenset[str]]] = {
    **{name: frozenset({name}) for name in ALL_TYPES - {"fraction"}},
    "number": frozenset({"integer", "fraction"}),
}
_VALUE_TYPES: Final[dict[type, frozenset[str]]] = {
    type(None): frozenset({"null"}),
    bool: frozenset({"boolean"}),
    str: frozenset({"string"}),
    list: frozenset({"array"}),
    dict: frozenset({"object"}),
}


def _is_schema(value: Any) -> bool:
    return isinstance(value, (bool, dict))


def _is_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_named_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPE_SETS for name in names)


def _is_multiple(value: Any) -> bool:
    return _is_number(value) and value > 0


_SCHEMA_KEYWORDS: Final = frozenset(
    {
        *("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
_SCHEMAS_KEYWORDS: Final = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED_SCHEMAS_KEYWORDS: Final = frozenset({"dependentSchemas", "dependencies", "patternProperties", "properties"})

_SHAPES: Final[dict[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(_SCHEMA_KEYWORDS, _is_schema),
    **dict.fromkeys(_SCHEMAS_KEYWORDS, _is_schemas),
    **dict.fromkeys(_NAMED_SCHEMAS_KEYWORDS, _is_named_schemas),
    "items": lambda value: _is_schema(value) or value == [] or _is_schemas(value),
    "dependencies": lambda value: (
        isinstance(value, dict) and all(_is_schema(needed) or _is_names(needed) for needed in value.values())
    ),
    "dependentRequired": lambda value: isinstance(value, dict) and all(map(_is_names, value.values())),
    "type": _is_type,
    "enum": lambda value: isinstance(value, list),
    "const": lambda _: True,
    "required": _is_names,
    "uniqueItems": lambda value: isinstance(value, bool),
    "multipleOf": _is_multiple,
    **dict.fromkeys(("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"), _is_number),
    **dict.fromkeys(
        ("$dynamicRef", "$recursiveRef", "$ref", "format", "pattern"), lambda value: isinstance(value, str)
    ),
    **dict.fromkeys(("contentEncoding", "contentMediaType"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("maxContains", "minContains", "maxItems", "minItems"), _is_count),
    **dict.fromkeys(("maxLength", "minLength", "maxProperties", "minProperties"), _is_count),
}
_SINCE: Final[dict[str, int]] = {
    **dict.fromkeys(("const", "contains", "propertyNames"), 6),
    **dict.fromkeys(("if", "then", "else", "contentEncoding", "contentMediaType"), 7),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "maxContains", "minContains"), 2019),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties", "$recursiveRef"), 2019),
    **dict.fromkeys(("prefixItems", "$dynamicRef"), 2020),
}
_UNTIL: Final[dict[str, int]] = {"additionalItems": 2019, "$recursiveRef": 2019}


def draft_of(root: Any) -> int | None:
    """The draft that a schema names; the latest, if it names none; None: another dialect."""
    if not isinstance(root, dict) or "$schema" not in root:
        return LATEST
    named = root["$schema"]
    if not isinstance(named, str):
        return None
    return _DRAFTS.get(re.sub("^https:", "http:", named.removesuffix("#")))


class Document:
    """A schema with all that its references can reach in it, read as its draft says."""

    def __init__(self, root: Any, draft: int) -> None:
        self.draft = draft
        self._raw = root
        named = root.get("id" if draft == 4 else "$id") if isinstance(root, dict) else None
        self._base = urldefrag(named).url if isinstance(named, str) else ""
        # Where a schema below has an address of its own, references below it mean something else: none is followed.
        self._has_one_address = not any(self._addresses(root))
        self._bare: dict[int, Schema] = {}
        self._targets: dict[str, Schema | None] = {}
        self._owns: dict[int, dict[str, Any]] = {}
        self._types: dict[int, frozenset[str]] = {}
        self._finite: dict[tuple[int, ...], Sequence[Any] | None] = {}
        self._kept: list[Any] = []  # so that the identities above stay those of what they were taken of
        self.root = self.bare(root)

    def bare(self, raw: Any) -> Schema:
        """The schema, and those in it, with nothing but what its draft asserts."""
        if isinstance(raw, bool):
            return raw
        if not isinstance(raw, dict):
            return {MALFORMED: raw}
        if (known := self._bare.get(id(raw))) is not None:
            return known
        bare: dict[str, Any] = {}
        malformed: dict[str, Any] = {}
        overridden = "$ref" in raw and self.draft <= 7
        raw_keywords = {"$ref": raw["$ref"]} if overridden else raw
        for keyword, value in raw_keywords.items():
            if keyword not in _SHAPES or not _SINCE.get(keyword, 0) <= self.draft <= _UNTIL.get(keyword, LATEST):
                continue
            if self._is_well_formed(keyword, value):
                bare[keyword] = self._bare_value(keyword, value)
            else:
                malformed[keyword] = value
        if malformed:
            bare[MALFORMED] = malformed
        self._kept.append(raw)
        self._bare[id(raw)] = bare
        return bare

    def _is_well_formed(self, keyword: str, value: Any) -> bool:
        if self.draft == 4 and keyword in ("exclusiveMaximum", "exclusiveMinimum"):
            return isinstance(value, bool)
        if self.draft == LATEST and keyword == "items":
            return _is_schema(value)
        return _SHAPES[keyword](value)

    def _bare_value(self, keyword: str, value: Any) -> Any:
        if keyword in _NAMED_SCHEMAS_KEYWORDS:
            return {name: each if isinstance(each, list) else self.bare(each) for name, each in value.items()}
        if keyword in _SCHEMAS_KEYWORDS and isinstance(value, list):
            return [self.bare(each) for each in value]
        return self.bare(value) if keyword in _SCHEMA_KEYWORDS else value

    def _addresses(self, root: Any) -> Iterator[str]:
        """The addresses that schemas (or what looks like them) below the root have of their own."""
        keyword = "id" if self.draft == 4 else "$id"
        waiting = [root]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                named = value.get(keyword)
                if value is not root and isinstance(named, str):
                    yield named
                waiting.extend(value.values())
            elif isinstance(value, list):
                waiting.extend(value)

    # References

    def address(self, reference: str) -> tuple[str, str] | None:
        """The document (empty: this one) and the fragment that ``reference`` means; None: that is not decided."""
        if not self._has_one_address:
            return None
        try:
            address, fragment = urldefrag(urljoin(self._base, reference) if self._base else reference)
        except ValueError:  # no address at all
            return None
        if address != self._base:
            return address, fragment
        return ("", fragment) if not fragment or fragment.startswith("/") else None

    def target(self, reference: str) -> Schema | None:
        """The schema in this document that ``reference`` means, if it is one."""
        if reference not in self._targets:
            self._targets[reference] = self._find(reference)
        return self._targets[reference]

    def _find(self, reference: str) -> Schema | None:
        address = self.address(reference)
        if address is None or address[0]:
            return None
        value = self._raw
        for token in address[1].split("/")[1:]:
            member = unquote(token).replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and member in value:
                value = value[member]
            elif isinstance(value, list) and member.isdecimal() and int(member) < len(value):
                value = value[int(member)]
            else:
                return None
        return self.bare(value) if _is_schema(value) else None

    # What schemas let pass

    def conjunction(self, schemas: Iterable[Schema]) -> Conjunction | None:
        """``schemas`` taken apart into what must hold together; None: nothing can obey them."""
        parts: dict[int, dict[str, Any]] = {}
        seen: set[int] = set()
        waiting = [*schemas][::-1]
        while waiting:
            schema = waiting.pop()
            if schema is False:
                return None
            if schema is True or id(schema) in seen:
                continue
            seen.add(id(schema))
            reference = schema.get("$ref")
            target = self.target(reference) if reference is not None else None
            own = self._own(schema, follow=target is not None)
            if own:
                parts[id(own)] = own
            if target is not None:
                waiting.append(target)
            waiting.extend(schema.get("allOf", ())[::-1])
        return tuple(parts.values())

    def _own(self, schema: dict[str, Any], *, follow: bool) -> dict[str, Any]:
        if "allOf" not in schema and not follow:
            return schema
        if id(schema) not in self._owns:
            self._owns[id(schema)] = without(schema, "allOf", *(("$ref",) if follow else ()))
            self._kept.append(schema)
        return self._owns[id(schema)]

    def types(self, conjunction: Conjunction) -> frozenset[str]:
        """The types of which instances may be valid."""
        types = ALL_TYPES
        for part in conjunction:
            types &= self._types_of_part(part)
        return types

    def _types_of_part(self, part: dict[str, Any]) -> frozenset[str]:
        if (known := self._types.get(id(part))) is not None:
            return known
        self._kept.append(part)
        self._types[id(part)] = ALL_TYPES  # for a schema that comes back to itself: too much, never too little
        types = type_set(part["type"]) if "type" in part else ALL_TYPES
        if "const" in part:
            types &= self.types_of(part["const"])
        if "enum" in part:
            types &= frozenset().union(*map(self.types_of, part["enum"]))
        for keyword in ("anyOf", "oneOf"):
            if keyword in part:
                branches = [self.conjunction([branch]) for branch in part[keyword]]
                types &= frozenset().union(*(self.types(branch) for branch in branches if branch is not None))
        self._types[id(part)] = types
        return types

    def types_of(self, value: Any) -> frozenset[str]:
        """The types of the instances that are equal to ``value``: in draft 4, 1.0 equals 1, and is no integer."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return _VALUE_TYPES[type(value)]
        if isinstance(value, float) and not value.is_integer():
            return frozenset({"fraction"})
        return frozenset({"integer"} if self.draft > 4 else {"integer", "fraction"})

    def finite(self, conjunction: Conjunction) -> Sequence[Any] | None:
        """All instances that may be valid, where they can be counted; else None."""
        key = tuple(map(id, conjunction))
        if key not in self._finite:
            self._kept.append(conjunction)
            self._finite[key] = self._find_finite(conjunction)
        return self._finite[key]

    def _find_finite(self, conjunction: Conjunction) -> Sequence[Any] | None:
        types = self.types(conjunction)
        listed = [{identity(part["const"]): part["const"]} for part in conjunction if "const" in part]
        listed += [{identity(value): value for value in part["enum"]} for part in conjunction if "enum" in part]
        if listed:
            first, *others = sorted(listed, key=len)
            values = [value for key, value in first.items() if all(key in other for other in others)]
        elif types <= {"null", "boolean"}:
            values = [None, True, False]
        else:
            return None
        return [value for value in values if self.types_of(value) & types]


def type_set(names: str | list[str]) -> frozenset[str]:
    """The types that the keyword ``type`` names."""
    return frozenset().union(*(_TYPE_SETS[name] for name in ([names] if isinstance(names, str) else names)))


def without(schema: dict[str, Any], *keywords: str) -> dict[str, Any]:
    """A schema that says less: without ``keywords``, and without those that depend on what is beside them."""
    left_out = {*keywords, "unevaluatedItems", "unevaluatedProperties"}
    return {keyword: value for keyword, value in schema.items() if keyword not in left_out}


def references(schema: Schema) -> frozenset[str]:
    """The references in a bare schema, at any depth; ``""`` stands for those that are found only at run time."""
    found: set[str] = set()
    waiting: list[Any] = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str):
                found.add(reference)
            if "$dynamicRef" in value or "$recursiveRef" in value:
                found.add("")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return frozenset(found)
