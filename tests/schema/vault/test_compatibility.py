"""A verdict on two schemas is never kinder than the truth, and says yes where people expect it."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from replank_schema.vault import compatibility
from replank_schema.vault.compatibility import Compatibility, judge
from tests.schema.vault.real import REAL_SCHEMAS

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_4 = "http://json-schema.org/draft-04/schema#"

STRING = {"type": "string"}
INTEGER = {"type": "integer"}
CLOSED: dict[str, Any] = {"additionalProperties": False}


def record(properties: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties or {}, **more}


def yes_no(verdict: Compatibility) -> str:
    return {(True, True): "full", (True, False): "backward", (False, True): "forward", (False, False): "none"}[
        verdict.backward, verdict.forward
    ]


TREE = {"$ref": "#/$defs/node", "$defs": {"node": record({"next": {"$ref": "#/$defs/node"}, "value": INTEGER})}}
WIDER_TREE = {
    "$ref": "#/$defs/node",
    "$defs": {"node": record({"next": {"$ref": "#/$defs/node"}, "value": {"type": "number"}})},
}
LIST = {"$ref": "#/$defs/a", "$defs": {"a": record({"next": {"$ref": "#/$defs/b"}}), "b": {"$ref": "#/$defs/a"}}}
SAME_LIST = {"$ref": "#/$defs/x", "$defs": {"x": record({"next": {"$ref": "#/$defs/x"}})}}

CHANGES: list[tuple[str, Any, Any, str]] = [
    ("nothing", record({"a": STRING}), record({"a": STRING}), "full"),
    ("annotations", record({"a": STRING}), record({"a": {**STRING, "title": "A", "default": ""}}, title="T"), "full"),
    ("the order of members", {"type": "string", "minLength": 1}, {"minLength": 1, "type": "string"}, "full"),
    ("an unknown keyword", STRING, {**STRING, "x-owner": {"type": "nonsense"}}, "full"),
    # What is not said in an open object may be there already, as anything.
    ("an optional field, open", record({"a": STRING}), record({"a": STRING, "b": INTEGER}), "forward"),
    (
        "an optional field, closed",
        record({"a": STRING}, **CLOSED),
        record({"a": STRING, "b": {}}, **CLOSED),
        "backward",
    ),
    ("an optional field of any type, open", record({"a": STRING}), record({"a": STRING, "b": True}), "full"),
    ("a required field", record({"a": STRING}), record({"a": STRING}, required=["a"]), "forward"),
    ("a field no longer required", record(required=["a", "b"]), record(required=["a"]), "backward"),
    ("a field removed, open", record({"a": STRING, "b": INTEGER}), record({"a": STRING}), "backward"),
    ("a field removed, closed", record({"a": STRING, "b": {}}, **CLOSED), record({"a": STRING}, **CLOSED), "forward"),
    ("a field renamed", record({"a": STRING}, **CLOSED), record({"b": STRING}, **CLOSED), "none"),
    ("closing", record({"a": STRING}), record({"a": STRING}, **CLOSED), "forward"),
    ("other fields have a type", record(additionalProperties=True), record(additionalProperties=STRING), "forward"),
    ("a field that other fields' type covers", record(additionalProperties=STRING), record({"a": STRING}), "backward"),
    (
        "a field within other fields' type",
        record(additionalProperties={"type": ["string", "null"]}),
        record({"a": STRING}, additionalProperties={"type": ["string", "null"]}),
        "forward",
    ),
    ("a type widened", record({"a": INTEGER}), record({"a": {"type": "number"}}), "backward"),
    ("a type added", STRING, {"type": ["string", "null"]}, "backward"),
    ("a type as a list", STRING, {"type": ["string"]}, "full"),
    ("a type changed", STRING, INTEGER, "none"),
    ("a type where there was none", {}, STRING, "forward"),
    (
        "all types where there was none",
        {},
        {"type": ["array", "boolean", "null", "number", "object", "string"]},
        "full",
    ),
    ("a value added to an enum", {"enum": ["a"]}, {"enum": ["a", "b"]}, "backward"),
    ("a value taken from an enum", {"enum": ["a", 1]}, {"enum": ["a"]}, "forward"),
    ("an enum reordered", {"enum": [1, "a"]}, {"enum": ["a", 1.0]}, "full"),
    ("an enum of a boolean is not one of a number", {"enum": [True]}, {"enum": [1]}, "none"),
    ("an enum that is a type", {"enum": ["a", "b"]}, STRING, "backward"),
    ("an enum with all values of a type", {"type": "boolean"}, {"enum": [False, True]}, "full"),
    ("an enum with values that the type excludes", {"type": "string", "enum": ["a", 1]}, {"const": "a"}, "full"),
    ("an enum of numbers within limits", {"enum": [1, 5]}, {"type": "integer", "minimum": 1, "maximum": 5}, "backward"),
    ("an enum of texts within lengths", {"enum": ["ab", "c"]}, {"minLength": 1, "maxLength": 2}, "backward"),
    ("a const instead of an enum of one", {"enum": ["a"]}, {"const": "a"}, "full"),
    ("a lower minimum", {"type": "number", "minimum": 1}, {"type": "number", "minimum": 0}, "backward"),
    # A limit of numbers says nothing of other types.
    ("a limit of numbers on strings", STRING, {**STRING, "minimum": 3, "multipleOf": 2, "maxItems": 1}, "full"),
    ("a limit of numbers on anything", {}, {"minimum": 3}, "forward"),
    ("a length of strings on anything", {"minLength": 2}, {"minLength": 1}, "backward"),
    ("an excluded limit", {"minimum": 1}, {"exclusiveMinimum": 1}, "forward"),
    ("an excluded limit of integers", {**INTEGER, "minimum": 1}, {**INTEGER, "exclusiveMinimum": 0}, "full"),
    ("both kinds of limits", {"minimum": 1, "exclusiveMinimum": 3}, {"exclusiveMinimum": 3}, "full"),
    ("a coarser multiple", {"multipleOf": 6}, {"multipleOf": 3}, "backward"),
    ("a multiple of one", INTEGER, {"type": "integer", "multipleOf": 1}, "full"),
    ("a pattern", STRING, {**STRING, "pattern": "^a"}, "forward"),
    ("a pattern changed", {"pattern": "^a"}, {"pattern": "^[a]"}, "none"),
    ("a format", STRING, {**STRING, "format": "date"}, "forward"),
    ("a longer array", {"maxItems": 3}, {"maxItems": 4}, "backward"),
    ("unique items", {"type": "array"}, {"type": "array", "uniqueItems": True}, "forward"),
    ("unique items of at most one", {"maxItems": 1}, {"maxItems": 1, "uniqueItems": True}, "full"),
    ("items widened", {"items": INTEGER}, {"items": {"type": "number"}}, "backward"),
    ("first items", {"items": STRING}, {"prefixItems": [STRING], "items": STRING}, "full"),
    ("a first item more", {"prefixItems": [STRING]}, {"prefixItems": [STRING, INTEGER]}, "forward"),
    (
        "a first item that cannot be there",
        {"prefixItems": [STRING], "maxItems": 1},
        {"prefixItems": [STRING, INTEGER], "maxItems": 1},
        "full",
    ),
    ("what an array contains", {"contains": STRING}, {"contains": STRING, "minContains": 2}, "forward"),
    ("a member of a union more", {"anyOf": [STRING]}, {"anyOf": [STRING, INTEGER]}, "backward"),
    ("a union as types", {"anyOf": [STRING, INTEGER]}, {"type": ["integer", "string"]}, "full"),
    (
        "a union reordered and widened",
        {"anyOf": [STRING, INTEGER]},
        {"anyOf": [{"type": "number"}, STRING]},
        "backward",
    ),
    ("a union of one", STRING, {"anyOf": [STRING]}, "full"),
    (
        "a union told apart by its types",
        {"oneOf": [STRING, INTEGER]},
        {"oneOf": [STRING, {"type": "number"}, {"type": "null"}]},
        "backward",
    ),
    ("a union that may overlap", {"oneOf": [STRING]}, {"oneOf": [STRING, {"minLength": 3}]}, "none"),
    (
        "a union told apart by a member",
        {"oneOf": [record({"kind": {"const": "a"}, "a": STRING}, required=["kind"])]},
        {
            "oneOf": [
                record({"kind": {"const": "a"}, "a": STRING}, required=["kind"]),
                record({"kind": {"const": "b"}, "b": STRING}, required=["kind"]),
            ]
        },
        "backward",
    ),
    (
        "taken apart",
        record({"a": STRING}, required=["a"]),
        {"allOf": [record({"a": STRING}), record(required=["a"])]},
        "full",
    ),
    ("a condition more", {"allOf": [STRING]}, {"allOf": [STRING, {"minLength": 1}]}, "forward"),
    ("not of another type", STRING, {**STRING, "not": {"type": "null"}}, "full"),
    ("not", {}, {"not": {"type": "null"}}, "forward"),
    ("names of members", record({"ab": {}}, **CLOSED), {"propertyNames": {"minLength": 2}}, "backward"),
    ("needed members", {"dependentRequired": {"a": ["b", "c"]}}, {"dependentRequired": {"a": ["b"]}}, "backward"),
    ("needed members that are required", record(required=["b"]), record(dependentRequired={"a": ["b"]}), "backward"),
    ("all allowed", {"type": "string"}, True, "backward"),
    ("nothing allowed", STRING, False, "forward"),
    ("a schema that says nothing", True, {}, "full"),
    (
        "patterns of names",
        {"patternProperties": {"^a": INTEGER}},
        {"patternProperties": {"^a": {"type": "number"}}},
        "backward",
    ),
    (
        "a declared member that a pattern covers",
        record(patternProperties={"^a": STRING}, **CLOSED),
        record({"ab": STRING}, patternProperties={"^a": STRING}, **CLOSED),
        "full",
    ),
    ("a recursive schema widened", TREE, WIDER_TREE, "backward"),
    ("a recursive schema by other names", LIST, SAME_LIST, "full"),
    (
        "a reference instead of what it refers to",
        record({"a": STRING}),
        {**record({"a": {"$ref": "#/$defs/a"}}), "$defs": {"a": STRING}},
        "full",
    ),
    (
        "a schema that is referred to",
        {"$ref": "#/$defs/a", "$defs": {"a": INTEGER}},
        {"$ref": "#/$defs/a", "$defs": {"a": STRING}},
        "none",
    ),
    (
        "a reference elsewhere",
        {"$ref": "https://example.org/a"},
        {"$ref": "https://example.org/a", "title": "A"},
        "full",
    ),
    ("a reference elsewhere else", {"$ref": "https://example.org/a"}, {"$ref": "https://example.org/b"}, "none"),
    ("a definition that nobody uses", {**STRING, "$defs": {"a": STRING}}, STRING, "full"),
    ("a draft", {"$schema": DRAFT_7, **STRING}, {"$schema": DRAFT_4, **STRING}, "none"),
    ("a draft by another spelling", {"$schema": DRAFT_7, **STRING}, {"$schema": DRAFT_7[:-1], **STRING}, "full"),
    (
        "a dialect that is not known",
        {"$schema": "urn:x", **STRING},
        {"$schema": "urn:x", **STRING, "title": ""},
        "none",
    ),
    (
        "beside a reference, draft 7",
        {"$schema": DRAFT_7, "$ref": "#/definitions/a", "definitions": {"a": STRING}},
        {"$schema": DRAFT_7, "$ref": "#/definitions/a", "definitions": {"a": STRING}, "minLength": 3},
        "full",
    ),
    (
        "beside a reference, 2020-12",
        {"$ref": "#/$defs/a", "$defs": {"a": STRING}},
        {"$ref": "#/$defs/a", "$defs": {"a": STRING}, "minLength": 3},
        "forward",
    ),
    (
        "an excluded limit, draft 4",
        {"$schema": DRAFT_4, "minimum": 1},
        {"$schema": DRAFT_4, "minimum": 1, "exclusiveMinimum": True},
        "forward",
    ),
    (
        "items one by one, draft 7",
        {"$schema": DRAFT_7, "items": [STRING], "additionalItems": False},
        {"$schema": DRAFT_7, "items": [STRING, INTEGER], "additionalItems": False},
        "backward",
    ),
    ("a const is nothing in draft 4", {"$schema": DRAFT_4, "const": 1}, {"$schema": DRAFT_4, "const": 2}, "full"),
    ("a malformed keyword", {"type": "strnig"}, {"type": "strnig", "title": "t"}, "full"),
    ("a malformed keyword more", STRING, {**STRING, "required": True}, "forward"),
]


@pytest.mark.parametrize(("old", "new", "expected"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_the_verdict_on_a_change_is_the_expected_one(old: Any, new: Any, expected: str) -> None:
    verdict = judge(old, new)

    assert yes_no(verdict) == expected, verdict.reasons
    assert verdict.full is (expected == "full")
    assert {reason.direction for reason in verdict.reasons} == {
        *(() if verdict.backward else ("backward",)),
        *(() if verdict.forward else ("forward",)),
    }
    back = judge(new, old)
    assert (back.backward, back.forward) == (verdict.forward, verdict.backward)


def test_a_reason_says_where_and_what() -> None:
    old = record({"lines": {"type": "array", "items": record({"a/b": INTEGER})}})
    new = record({"lines": {"type": "array", "items": record({"a/b": STRING}, required=["sku"])}})

    reasons = {(reason.direction, reason.path): reason.text for reason in judge(old, new).reasons}

    assert reasons == {
        ("backward", "/properties/lines/items/properties/a~1b/type"): "the type is not allowed: integer",
        ("backward", "/properties/lines/items/required"): "members may be missing: sku",
        ("forward", "/properties/lines/items/properties/a~1b/type"): "the type is not allowed: string",
    }


# The truth, as far as instances tell it

NAMES = ["a", "b", "ab"]
NUMBERS = [-1, 0, 1, 1.0, 2, 2.5, 3, 6]
SCALARS = [None, True, False, *NUMBERS, "", "a", "ab", "abc"]
INSTANCES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "c"]), inner, max_size=3),
    max_leaves=5,
)
PATTERNS = ["^a", "b$", "^ab?$"]
TYPES = ["array", "boolean", "integer", "null", "number", "object", "string"]
COUNT = st.integers(0, 3)


def named(values: st.SearchStrategy[Any], names: list[str] = NAMES) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), values, min_size=1, max_size=2)


def keywords(schemas: st.SearchStrategy[Any], draft: int) -> dict[str, st.SearchStrategy[Any]]:
    several = st.lists(schemas, min_size=1, max_size=3)
    name_lists = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True)
    definitions = "$defs" if draft == 2020 else "definitions"
    of_all = {
        "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True),
        "enum": st.lists(
            st.sampled_from([*SCALARS, [], ["a"], {}, {"a": 1}, {"a": "a", "b": 1}]), min_size=1, max_size=4
        ),
        "properties": named(schemas),
        "additionalProperties": schemas,
        "patternProperties": named(schemas, PATTERNS),
        "required": name_lists,
        "minimum": st.sampled_from(NUMBERS),
        "maximum": st.sampled_from(NUMBERS),
        "exclusiveMinimum": st.booleans() if draft == 4 else st.sampled_from(NUMBERS),
        "exclusiveMaximum": st.booleans() if draft == 4 else st.sampled_from(NUMBERS),
        "multipleOf": st.sampled_from([1, 2, 3, 0.5, 6]),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), COUNT),
        "pattern": st.sampled_from(PATTERNS),
        "uniqueItems": st.booleans(),
        "items": schemas if draft == 2020 else schemas | several,
        "allOf": several,
        "anyOf": several,
        "oneOf": several,
        "not": schemas,
        "$ref": st.sampled_from([f"#/{definitions}/a", f"#/{definitions}/b", "#"]),
        "title": st.just("t"),
    }
    since_6 = {
        "const": st.sampled_from([*SCALARS, [1], {"a": 1}]),
        "contains": schemas,
        "propertyNames": schemas,
    }
    of_4_and_7 = {"additionalItems": schemas, "dependencies": named(schemas | name_lists)}
    since_7 = {"if": schemas, "then": schemas, "else": schemas}
    of_2020 = {
        "prefixItems": several,
        "dependentRequired": named(name_lists),
        "dependentSchemas": named(schemas),
        "minContains": COUNT,
        "maxContains": COUNT,
        "unevaluatedProperties": schemas,
        "unevaluatedItems": schemas,
    }
    match draft:
        case 4:
            return {**of_all, **of_4_and_7}
        case 7:
            return {**of_all, **of_4_and_7, **since_6, **since_7}
        case _:
            return {**of_all, **since_6, **since_7, **of_2020}


def schemas_of(draft: int) -> st.SearchStrategy[Any]:
    def extend(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        each = keywords(inner, draft)
        pairs = st.sampled_from(sorted(each)).flatmap(lambda keyword: st.tuples(st.just(keyword), each[keyword]))
        return st.lists(pairs, max_size=4).map(dict)

    leaf = st.sampled_from([{}, *({"type": name} for name in TYPES)])
    return st.recursive(leaf if draft == 4 else leaf | st.booleans(), extend, max_leaves=6)


def places(schema: Any, draft: int) -> Iterator[dict[str, Any]]:
    """The objects in a schema that are schemas, roughly."""
    if isinstance(schema, dict):
        yield schema
        for keyword, value in schema.items():
            if keyword not in ("enum", "const"):
                for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
                    yield from places(each, draft)
                yield from places(value, draft) if isinstance(value, dict) else ()


@st.composite
def pairs(draw: st.DrawFn, draft: int) -> tuple[Any, Any]:
    """A schema, and one that was made of it by a change or two; often one that should be compatible."""
    schemas = schemas_of(draft)
    definitions = "$defs" if draft == 2020 else "definitions"
    old = draw(schemas.filter(lambda schema: isinstance(schema, dict)))
    old = {**old, definitions: {"a": draw(schemas), "b": draw(schemas)}}
    new = copy.deepcopy(old)
    each = keywords(schemas, draft)
    for _ in range(draw(st.integers(1, 2))):
        spots = [spot for spot in places(new, draft) if not spot.keys() & {*NAMES, *PATTERNS}]
        spot = draw(st.sampled_from(spots))
        changeable = sorted(set(spot) - {definitions})
        match draw(st.sampled_from(["remove", "change", "add", "wrap", "nudge"])):
            case "remove" if changeable:
                del spot[draw(st.sampled_from(changeable))]
            case "change" if changeable:
                keyword = draw(st.sampled_from(changeable))
                spot[keyword] = draw(each.get(keyword, st.just("t")))
            case "nudge" if changeable:
                keyword = draw(st.sampled_from(changeable))
                spot[keyword] = nudged(spot[keyword], draw)
            case "wrap":
                inner = {keyword: spot.pop(keyword) for keyword in changeable}
                spot[draw(st.sampled_from(["allOf", "anyOf", "oneOf"]))] = [inner, *draw(st.lists(schemas, max_size=1))]
            case _:
                keyword = draw(st.sampled_from(sorted(each)))
                spot[keyword] = draw(each[keyword])
    return old, new


def nudged(value: Any, draw: st.DrawFn) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return max(value + draw(st.sampled_from([-1, 1])), 1)
    if isinstance(value, list) and value:
        shorter = list(value)
        shorter.pop(draw(st.integers(0, len(value) - 1)))
        return shorter or value
    return value


URLS = {4: DRAFT_4, 7: DRAFT_7, 2020: "https://json-schema.org/draft/2020-12/schema"}
VALIDATORS: dict[int, Callable[..., Any]] = {
    4: jsonschema.Draft4Validator,
    7: jsonschema.Draft7Validator,
    2020: jsonschema.Draft202012Validator,
}


# Values more likely than others to tell two schemas apart.
WITNESSES = [
    *SCALARS,
    *({"a": value} for value in SCALARS),
    *({"a": value, "b": value} for value in ("a", 1, None)),
    *([value] for value in SCALARS),
    *([], {}, [1, "a"], [1, 1], ["a", "a", "a"], {"ab": 1}, {"c": 1}, {"b": 2.5}, {"b": "abc", "ab": []}),
]


def check_soundness(draft: int, old: Any, new: Any, instances: list[Any]) -> None:
    old, new = ({"$schema": URLS[draft], **schema} for schema in (old, new))
    verdict = judge(old, new)
    event(f"draft {draft}: {yes_no(verdict)}")
    before, after = VALIDATORS[draft](old), VALIDATORS[draft](new)
    for instance in [*instances, *WITNESSES]:
        try:
            was, is_now = before.is_valid(instance), after.is_valid(instance)
        except RecursionError:
            return  # a schema that leads back to itself without a step down in the instance means nothing
        assert not (verdict.backward and was) or is_now, ("backward", instance)
        assert not (verdict.forward and is_now) or was, ("forward", instance)


THOROUGH = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=150)


@THOROUGH
@given(pairs(4), st.lists(INSTANCES, min_size=5, max_size=25))
def test_yes_is_never_said_where_an_instance_says_no_in_draft_4(pair: tuple[Any, Any], instances: list[Any]) -> None:
    check_soundness(4, *pair, instances)


@THOROUGH
@given(pairs(7), st.lists(INSTANCES, min_size=5, max_size=25))
def test_yes_is_never_said_where_an_instance_says_no_in_draft_7(pair: tuple[Any, Any], instances: list[Any]) -> None:
    check_soundness(7, *pair, instances)


@THOROUGH
@given(pairs(2020), st.lists(INSTANCES, min_size=5, max_size=25))
def test_yes_is_never_said_where_an_instance_says_no_in_draft_2020(pair: tuple[Any, Any], instances: list[Any]) -> None:
    check_soundness(2020, *pair, instances)


@THOROUGH
@given(schemas_of(2020), schemas_of(2020), st.lists(INSTANCES, min_size=5, max_size=25))
def test_yes_is_never_said_of_unrelated_schemas_where_an_instance_says_no(
    old: Any, new: Any, instances: list[Any]
) -> None:
    wrapped = [{"allOf": [schema], "$defs": {"a": {}, "b": {}}} for schema in (old, new)]
    check_soundness(2020, wrapped[0], wrapped[1], instances)


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([*SCALARS, "#", "#/", "http://[", "object"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*sorted(keywords(st.none(), 7) | keywords(st.none(), 2020)), "$id", "id", "$dynamicRef"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@THOROUGH
@given(ANYTHING, ANYTHING, st.sampled_from([DRAFT_4, DRAFT_7, None]))
def test_nonsense_is_judged_without_an_error(old: Any, new: Any, dialect: str | None) -> None:
    if dialect is not None:
        old, new = ({"$schema": dialect, "allOf": [schema]} for schema in (old, new))

    verdict = judge(old, new)

    assert bool(verdict.reasons) is not verdict.full


# Real schemas


SCHEMA_KEYWORDS = {"additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "then"}
SCHEMAS_KEYWORDS = {"allOf", "anyOf", "items", "oneOf", "prefixItems"}
NAMED_KEYWORDS = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}


def annotated(schema: Any) -> Any:
    """The same schema, with a title and a comment at every place where they may be."""
    if not isinstance(schema, dict):
        return schema
    changed = dict(schema)
    for keyword, value in schema.items():
        if keyword in SCHEMA_KEYWORDS and isinstance(value, dict):
            changed[keyword] = annotated(value)
        elif keyword in SCHEMAS_KEYWORDS and isinstance(value, list):
            changed[keyword] = [annotated(each) for each in value]
        elif keyword in NAMED_KEYWORDS and isinstance(value, dict):
            changed[keyword] = {name: annotated(each) for name, each in value.items()}
    return {**changed, "title": "again", "$comment": "again"}


@pytest.mark.parametrize("name", REAL_SCHEMAS)
def test_a_real_schema_is_compatible_with_itself(name: str) -> None:
    schema = json.loads(REAL_SCHEMAS[name])

    assert judge(schema, json.loads(REAL_SCHEMAS[name])).full
    assert judge(schema, annotated(schema)).full


# What the rules leave undecided where they may not compare for being equal.
UNDECIDED = {
    *(f"whether `{keyword}` lets all pass is not decided" for keyword in ("if", "not", "unevaluatedProperties")),
    "whether exactly one branch accepts what may come is not decided",
    "no branch is shown to accept all that may come",
    "the schemas are too large to be judged in time",
}


@pytest.mark.parametrize("name", REAL_SCHEMAS)
def test_a_real_schema_is_shown_compatible_with_itself_keyword_by_keyword(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not shown is what the rules leave undecided, and they take no more than a second or two to say so."""

    def never(_proof: object, _wide: object, _narrow: object) -> bool:
        return False

    monkeypatch.setattr(compatibility._Proof, "same", never)
    schema = json.loads(REAL_SCHEMAS[name])

    started = time.perf_counter()
    verdict = judge(schema, annotated(schema))

    assert time.perf_counter() - started < 5
    assert {reason.text for reason in verdict.reasons} <= UNDECIDED


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("github-workflows.json", lambda schema: schema["properties"].update(more=INTEGER), "backward"),
        ("github-workflows.json", lambda schema: schema["required"].remove("jobs"), "backward"),
        ("dependabot.json", lambda schema: schema["properties"].pop("version"), "forward"),
        ("compose-spec.json", lambda schema: schema["properties"].pop("version"), "forward"),
        ("renovate.json", lambda schema: schema["properties"].update({"more-here": INTEGER}), "forward"),
        ("mergify.json", lambda schema: schema["properties"].update({"more-here": INTEGER}), "backward"),
    ],
)
def test_a_change_to_a_real_schema_has_the_expected_verdict(
    name: str, change: Callable[[Any], object], expected: str
) -> None:
    old, new = json.loads(REAL_SCHEMAS[name]), json.loads(REAL_SCHEMAS[name])
    change(new)

    verdict = judge(old, new)

    assert yes_no(verdict) == expected, verdict.reasons


def test_schemas_nested_deeper_than_can_be_judged_are_not_decided() -> None:
    old: Any = {"type": "string"}
    new: Any = {"type": "integer"}
    for _ in range(500):
        old, new = {"items": old}, {"items": new}

    verdict = judge(old, new)

    assert yes_no(verdict) == "none"
    assert "deep" in verdict.reasons[0].text


def test_schemas_that_would_take_too_long_are_not_decided() -> None:
    """Unions of unions, which have to be taken apart branch by branch."""
    old: Any = {"allOf": [{"anyOf": [{"required": [f"{i}"]}, {"required": [f"{i}x"]}]} for i in range(40)]}
    new = {"anyOf": [{"required": [f"{i}", f"{i}y"]} for i in range(40)]}

    started = time.perf_counter()
    verdict = judge(old, new)

    assert time.perf_counter() - started < 30
    assert not verdict.backward


HOSTILE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "a pattern that backtracks for ever": lambda: (
        record({"a" * 40 + "!": STRING}),
        record(patternProperties={"^(a+)+$": STRING, "^(a|a)*$": STRING, "(a*)*b": STRING}),
    ),
    "patterns of many repetitions": lambda: (
        record({"a" * 60: STRING}),
        record(patternProperties={"a*" * 60 + "b": INTEGER}),
    ),
    "long lists of values": lambda: ({"enum": [*range(50_000)]}, {"enum": [*range(50_000, 0, -1)]}),
    "many branches": lambda: (
        {"oneOf": [{"const": number} for number in range(20_000)]},
        {"oneOf": [{"const": number} for number in range(20_000, 0, -1)]},
    ),
    "many patterns and members": lambda: (
        record({f"name{number}": STRING for number in range(5_000)}),
        record(patternProperties={f"name{number}$": STRING for number in range(5_000)}),
    ),
    "references in a circle": lambda: (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_schema_keeps_the_judge_busy_for_long(name: str) -> None:
    old, new = HOSTILE[name]()

    started = time.perf_counter()
    verdict = judge(old, new)

    assert time.perf_counter() - started < 10
    assert not verdict.backward
