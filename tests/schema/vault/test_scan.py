"""What a JSON text is is found while it streams by, however it is cut, and what cannot be kept is refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replank_schema.vault import scan
from replank_schema.vault.scan import Facts, NotJson, Scanner
from tests.schema.vault.real import REAL_SCHEMAS

KIB = 1024
MIB = 1024 * KIB


def facts_of(*chunks: bytes) -> Facts:
    scanner = Scanner()
    for chunk in chunks:
        scanner.feed(chunk)
    return scanner.finish()


def facts_of_value(value: object) -> Facts:
    return facts_of(json.dumps(value).encode())


def cut(text: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(at % (len(text) + 1) for at in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


# Fields of documents


def test_fields_of_a_document_are_its_member_paths_with_the_items_of_an_array_collapsed() -> None:
    facts = facts_of_value(
        {
            "orders": [{"lines": [{"sku": 1}, {"sku": 2, "price": 3}]}, {"id": 7}],
            "id": 1,
            "grid": [[{"x": 1}], [{"x": 2}]],
        }
    )

    assert facts == Facts("document", 8, True, ("orders", "lines", "sku", "price", "id", "grid", "x"))


def test_an_array_and_an_object_at_one_place_have_members_of_their_own() -> None:
    assert facts_of_value([{"a": {"b": 1}}, {"a": [{"b": 1}]}]).field_count == 3  # [].a, [].a.b, [].a[].b


@pytest.mark.parametrize("text", [b"1", b"true", b'"text"', b"null", b"[]", b"{}", b" [1, 2.5e3, -0]\n"])
def test_a_text_without_members_is_a_document_without_fields(text: bytes) -> None:
    assert facts_of(text) == Facts("document", 0, True, ())


def test_a_duplicate_member_counts_once() -> None:
    assert facts_of(b'{"a": 1, "a": {"b": 1}, "a": {"b": 2}}').field_count == 2
    assert facts_of(b'{"type": "object", "properties": {"a": {}, "a": {}}}').field_count == 1


def paths(value: Any, above: tuple[str | None, ...] = ()) -> Iterator[tuple[str | None, ...]]:
    if isinstance(value, dict):
        for name, member in value.items():
            yield (*above, name)
            yield from paths(member, (*above, name))
    elif isinstance(value, list):
        for item in value:
            yield from paths(item, (*above, None))


NAMES = st.sampled_from(["a", "b", "items", "properties", "type", "$schema", "é", "\N{GRINNING FACE}", "", "x\0y"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_fields_of_any_document_are_its_distinct_paths(value: Any, ascii_only: bool) -> None:
    facts = facts_of(json.dumps([value], ensure_ascii=ascii_only).encode())

    expected = set(paths([value]))
    assert facts.field_count == len(expected)
    assert facts.fields_exact
    names = {path[-1] for path in expected}
    assert set(facts.fields) == {name for name in names if name and "\0" not in name}


# Schemas


def test_fields_of_a_schema_are_the_properties_wherever_a_schema_may_have_them() -> None:
    facts = facts_of_value(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "properties": {
                "id": {"type": "integer"},
                "properties": {"properties": {"inner": True}},  # a field of that name
                "lines": {"items": [{"properties": {"sku": {}}}]},
                "either": {"anyOf": [{"properties": {"left": {}}}, {"properties": {"right": {}, "id": {}}}]},
            },
            "$defs": {"address": {"if": {"properties": {"zip": {}}}, "not": {"properties": {"town": {}}}}},
            "patternProperties": {"^x": {"additionalProperties": {"properties": {"deep": {}}}}},
            "dependencies": {"a": ["b"], "c": {"properties": {"needed": {}}}},
            "default": {"properties": {"no": {}}},
            "examples": [{"properties": {"no": {}}}],
            "enum": [{"properties": {"no": {}}}],
            "const": {"properties": {"no": {}}},
            "x-more": {"properties": {"no": {}}},
        }
    )

    assert facts.kind == "schema"
    assert facts.fields == (
        *("id", "properties", "inner", "lines", "sku", "either", "left", "right", "zip", "town", "deep", "needed"),
    )
    assert facts.field_count == 13  # `id` is there twice, in two places
    assert facts.fields_exact


SCHEMAS: list[object] = [
    {"$schema": "http://json-schema.org/draft-07/schema#"},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "anything": 1},
    {"$schema": "https://example.org/dialect", "type": "object", "properties": {}},
    {"type": "object", "properties": {"a": {"type": "string"}}},
    {"properties": {"a": {}}, "type": ["object", "null"], "order": 1},
    {"type": "array", "items": [{"type": "string"}]},
    {"type": "array", "items": {"type": "string"}},
    {"title": "t", "oneOf": [{"required": ["a"]}], "x-internal": True},
    {"$ref": "#/definitions/a", "definitions": {"a": {}}},
    {"$id": "https://example.org/a", "$defs": {}},
]
DOCUMENTS: list[object] = [
    {},
    True,
    [{"$schema": "http://json-schema.org/draft-07/schema#"}],
    {"$schema": "https://docs.renovatebot.com/renovate-schema.json", "extends": ["config:base"]},
    {"$schema": {"a": "http://json-schema.org/draft-07/schema#"}},
    {"schema": {"$schema": "http://json-schema.org/draft-07/schema#"}},
    {"type": "Feature", "properties": {"name": "x"}, "geometry": None},
    {"type": "FeatureCollection", "properties": {}},
    {"type": {"name": "object"}, "properties": {}},
    {"type": ["object", "other"], "properties": {}},
    {"type": [["object"]], "properties": {}},
    {"type": "object", "id": 7},
    {"type": "object", "properties": ["a"]},
    {"items": [{"id": 1}]},
    {"items": [{"id": 1}], "total": 1},
    {"swagger": "2.0", "definitions": {"a": {}}, "paths": {}},
    {"properties": {"a": 1}, "owner": "me"},
    {"anyOf": {"a": 1}},
]


@pytest.mark.parametrize("value", SCHEMAS, ids=json.dumps)
def test_a_schema_is_known_by_its_top_level(value: object) -> None:
    assert facts_of_value(value).kind == "schema"


@pytest.mark.parametrize("value", DOCUMENTS, ids=json.dumps)
def test_what_only_resembles_a_schema_is_a_document(value: object) -> None:
    assert facts_of_value(value).kind == "document"


APPLICATORS = {
    "items",
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "additionalItems",
}
LISTS = {"allOf", "anyOf", "oneOf", "items", "prefixItems"}
MAPS = {"properties", "patternProperties", "definitions", "$defs", "dependencies", "dependentSchemas"}


def property_names(schema: Any) -> Iterator[str]:
    """The members of every `properties`, found by a walk over the whole value."""
    if not isinstance(schema, dict):
        return
    yield from schema.get("properties", {})
    for keyword, value in schema.items():
        if keyword in APPLICATORS and isinstance(value, dict):
            yield from property_names(value)
        elif keyword in LISTS and isinstance(value, list):
            for item in value:
                yield from property_names(item)
        elif keyword in MAPS:
            for member in value.values():
                yield from property_names(member)


@pytest.mark.parametrize("name", REAL_SCHEMAS)
def test_real_schemas_are_schemas_with_the_properties_that_a_walk_over_them_finds(name: str) -> None:
    text = REAL_SCHEMAS[name]

    facts = facts_of(text)

    expected = list(property_names(json.loads(text)))
    assert facts.kind == "schema"
    assert (facts.field_count, facts.fields_exact) == (len(expected), True)
    assert set(facts.fields) == set(expected)


# Cutting


@given(VALUES, st.lists(st.integers(min_value=0), max_size=6), st.booleans())
def test_cutting_never_changes_the_facts(value: Any, cuts: list[int], ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()

    assert facts_of(*cut(text, cuts)) == facts_of(text)


@pytest.mark.parametrize("name", ["changie.json", "github-issue-forms.json"])
@pytest.mark.parametrize("size", [1, 7, 65_535, 65_537])
def test_cutting_never_changes_the_facts_of_real_schemas(name: str, size: int) -> None:
    text = REAL_SCHEMAS[name]

    assert facts_of(*(text[at : at + size] for at in range(0, len(text), size))) == facts_of(text)


def test_a_text_is_read_the_same_wherever_its_pieces_end() -> None:
    """Pairs of escaped surrogates, characters of several bytes and members lie across the ends of pieces."""
    unit = json.dumps({"n": "\N{GRINNING FACE}\\\\"}).encode() + ', {"é": "€"},'.encode()
    for shift in range(0, len(unit), 3):
        facts = facts_of(b" " * shift + b"[" + unit * 30_000 + b"1]")
        assert facts == Facts("document", 2, True, ("n", "é"))


# What is refused


def strict(text: bytes) -> bool:
    """Whether Python's decoder, without its liberties, takes the text."""

    def refuse(constant: str) -> object:
        raise ValueError(constant)

    try:
        value = json.loads(text.decode(), parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates
    except (ValueError, RecursionError):
        return False
    return True


def accepted(*chunks: bytes) -> bool:
    try:
        facts_of(*chunks)
    except NotJson:
        return False
    return True


PIECES = st.sampled_from(
    [
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b'"',
            b"\\",
            b"1",
            b"0",
            b"-",
            b".",
            b"e",
            b"+",
            b"true",
            b"null",
            b"nul",
        ),
        *(
            b"NaN",
            b"Infinity",
            b" ",
            b"\n",
            b"\t",
            b"\r",
            b"\x0b",
            b"\x0c",
            b"\x00",
            b"\x1f",
            b"\x7f",
            b"/",
            b"//",
            b"/*",
        ),
        *(
            b"\\u",
            b"\\ud83d",
            b"\\ude00",
            b"\\uD800",
            b"\\\\",
            b'\\"',
            b"\\n",
            b"\\x",
            b"\\u00",
            b"\\u0041",
            b"a",
            b"D8",
        ),
        *("é".encode(), b"\xc3", b"\xa9", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80"),
        *(b'"a":', b'"a"', b"[1,", b'{"a":1', b",2]", b"\xe2\x80\xa8", b"\xef\xbf\xbf"),
    ]
)
WRAPPED = st.tuples(
    st.sampled_from([(b"", b""), (b'"', b'"'), (b"[", b"]"), (b'{"a":', b"}"), (b'{"', b'":1}'), (b'["', b'"]')]),
    st.lists(PIECES, max_size=8).map(b"".join),
).map(lambda wrapped: wrapped[0][0] + wrapped[1] + wrapped[0][1])


@given(WRAPPED, st.lists(st.integers(min_value=0), max_size=4))
@example(b'"\\ud83d\\ude00"', [7])
@example(b'"\\ud83d\\\\ude00"', [])
@example(b'"" "', [])
@example(b'1 "\\', [])
@example(b"[] tru", [])
@example(b"{} -", [])
@example(b'"', [])
@example(b'"\\\\ud83d"', [2])
@example(b'"\\ud83d\\ud83d\\ude00"', [])
@example(b'"\\udbff\\udfff\\udc00"', [])
def test_it_takes_exactly_what_a_strict_decoder_takes(text: bytes, cuts: list[int]) -> None:
    assert accepted(*cut(text, cuts)) is strict(text)


@pytest.mark.parametrize(
    ("text", "what", "byte", "line"),
    [
        (b"", "the text is empty", 0, 1),
        (b" \n ", "the text ends early", 3, 2),
        (b'{"a": [1, 2', "the text ends early", 11, 1),
        (b'"\xe2\x82', "the text ends early", 3, 1),
        (b'{"a": 1,\n "b" 2}', "separated by a colon", 14, 2),
        (b'{"a": 1,}', "object key", 8, 1),
        (b"1 2", "trailing garbage", 2, 1),
        (b"{} {}", "trailing garbage", 3, 1),
        (b"[NaN]", "invalid char", 1, 1),
        (b"[1, // one\n 2]", "comment", 4, 1),
        (b'\n{"a": "\xff"}', "not UTF-8", 8, 2),
        (b'"\xed\xa0\x80"', "not UTF-8", 1, 1),
        (b"\xef\xbb\xbf{}", "byte order mark", 0, 1),
        (b"[\n\x0c1]", "control character 0x0c", 2, 2),
        (b'{"a": "\\ud800"}', "lone surrogate", 13, 1),
        (b'{"a": "\\udc00"}', "lone surrogate", 7, 1),
        (b"[" * 513, "nested deeper", 0, 1),
        (b'{"a":' * 513, "nested deeper", 0, 1),
        (b"[" + b"1" * 4301 + b"]", "too many digits", 0, 1),
        (b"1" * 4301, "too many digits", 4301, 1),
        (b"[1e" + b"9" * 30 + b"]", "too many digits", 0, 1),
        (b"1e" + b"9" * 30, "too many digits", 32, 1),
    ],
)
def test_a_refusal_says_what_and_where(text: bytes, what: str, byte: int, line: int) -> None:
    with pytest.raises(NotJson) as refused:
        facts_of(text)

    assert what in refused.value.what
    assert refused.value.line == line
    assert abs(refused.value.byte - byte) <= 1


def test_a_refusal_far_into_a_text_says_where() -> None:
    text = b"[\n" + b'  {"name": "x", "number": 17},\n' * 10_000 + b"  oops\n]"

    with pytest.raises(NotJson) as refused:
        facts_of(text)

    assert refused.value.line == 10_002
    assert abs(refused.value.byte - text.index(b"oops")) <= 1


def test_a_refusal_comes_before_the_text_ends() -> None:
    scanner = Scanner()
    scanner.feed(b'{"a": 1 oops')

    with pytest.raises(NotJson):
        scanner.feed(b" " * MIB)

    with pytest.raises(ValueError, match="has refused"):
        scanner.feed(b"}")


def test_the_deepest_nesting_allowed_is_read() -> None:
    assert facts_of(b'{"a":' * 512 + b"1" + b"}" * 512).field_count == 512


@pytest.mark.parametrize("number", [b"1" * 4300, b"0." + b"1" * 100_000, b"1e400", b"-1E-400", b"1" * 400 + b".5"])
def test_long_numbers_are_read(number: bytes) -> None:
    assert facts_of(b"[" + number + b"]").kind == "document"


# Bounds


def test_names_that_postgres_cannot_hold_count_but_are_not_searchable() -> None:
    assert facts_of(b'{"\\u0000": 1, "a\\u0000b": 2, "": 3, "c": 4}') == Facts("document", 4, True, ("c",))


def test_names_are_bounded_in_number_and_bytes_and_the_same_each_time() -> None:
    many = facts_of_value({f"name{number}": 1 for number in range(scan.NAMES_LIMIT + 10)})
    assert many.fields == tuple(f"name{number}" for number in range(scan.NAMES_LIMIT))
    assert (many.field_count, many.fields_exact) == (scan.NAMES_LIMIT + 10, True)

    long = facts_of_value({f"{'é' * 500}{number}": 1 for number in range(200)} | {"z" * 2_000: 1})
    assert 60 < len(long.fields) < 70
    assert sum(len(name.encode()) for name in long.fields) <= scan.NAMES_BYTES


@pytest.mark.parametrize("kind", ["document", "schema"])
def test_counting_stops_at_its_limit_and_says_so(kind: str) -> None:
    members: dict[str, object] = {f"m{number}": {} for number in range(scan.FIELDS_LIMIT + 1)}
    text = {"type": "object", "properties": members} if kind == "schema" else {"id": 1, "all": [members, members]}

    facts = facts_of_value(text)

    assert (facts.kind, facts.field_count, facts.fields_exact) == (kind, scan.FIELDS_LIMIT, False)


def hostile(shape: str) -> Iterator[bytes]:
    """Texts of many MiB, each made to make a reader remember."""
    match shape:
        case "distinct members":
            yield b"{"
            for start in range(0, 200_000, 1_000):
                yield b"".join(b'"%030d":{"%d":1},' % (number, number) for number in range(start, start + 1_000))
            yield b'"end":1}'
        case "long members":
            yield b"{"
            for number in range(200):
                yield b'"' + b"n" * 100_000 + b'%d":1,' % number
            yield b'"end":1}'
        case "deep arrays":
            yield b"{"
            for number in range(1_000):
                yield b'"%d":' % number + b"[" * 400 + b"]" * 400 + b","
            yield b'"end":1}'
        case "blanks":
            yield b"[1,"
            for _ in range(300):
                yield b" " * 50_000
            yield b"2]"


@pytest.mark.parametrize("shape", ["distinct members", "long members", "deep arrays", "blanks"])
def test_memory_is_bounded_whatever_the_text(shape: str) -> None:
    scanner = Scanner()
    tracemalloc.start()
    try:
        for chunk in hostile(shape):
            scanner.feed(chunk)
        scanner.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 32 * MIB


@pytest.mark.parametrize("step", [1_000, MIB, 100_003])
def test_a_value_that_does_not_end_is_refused_wherever_the_text_is_cut(step: int) -> None:
    scanner = Scanner()

    def feed_endless_string() -> None:
        scanner.feed(b'["')
        for _ in range(0, 2 * scan.VALUE_LIMIT, step):
            scanner.feed(b"x" * step)

    with pytest.raises(NotJson, match="a single value is longer") as refused:
        feed_endless_string()

    assert refused.value.byte == scan.VALUE_LIMIT + 256 * KIB  # pieces of 256 KiB, without that of the bracket
