"""Reading a mapping: everything that is wrong with it is told at once, by path and line, before anything is touched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from replank.contracts import documents
from replank.migrate.compile import compile as compiled
from replank.migrate.mapping import Fault, InvalidMapping, Mapping, load
from tests.common.migrate.shop import MAPPING

ROOT = Path(__file__).parents[3]

SMALL = """\
mapping: 1
name: small
source: {table: kv_store}
entities:
  thing:
    key: "t:{id}"
    table: things
    columns:
      id: {key: id, type: text}
      note: {path: note, type: text}
    primary_key: [id]
    rest: rest
    children:
      items:
        path: items
        table: thing_items
        parent: [thing_id]
        columns: {sku: {path: sku, type: text}}
    indexes:
      things_note: {columns: [note]}
"""


def faults(text: str) -> list[str]:
    with pytest.raises(InvalidMapping) as caught:
        load(text)
    assert caught.value.fix
    return [str(fault) for fault in caught.value.faults]


def changed(old: str, new: str) -> str:
    assert SMALL.count(old) == 1
    return SMALL.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("mapping: 1", "mapping: 2", "line 1, mapping: Input should be 1"),
        ("name: small", "name: Small", "line 2, name: a name is 1 to 40 lower-case letters, digits and _"),
        ("    table: things\n", "", "line 5, entities.thing.table: is missing"),
        ("rest: rest", "rests: rest", "line 12, entities.thing.rests: is not part of the format here"),
        (
            "{path: note, type: text}",
            "{path: note, type: money}",
            "line 10, entities.thing.columns.note.type: not a type",
        ),
        ("{path: note, type: text}", "{path: note, type: 'numeric(2,3)'}", "line 10, entities.thing.columns.note.type"),
        ("{path: note, type: text}", "{path: note, type: 'text(3)'}", "text takes nothing in brackets"),
        (
            "{path: note, type: text}",
            "{path: a..b, type: text}",
            "line 10, entities.thing.columns.note.path: not a path",
        ),
        ("{path: note, type: text}", "{type: text}", "comes from exactly one of key, path and constant"),
        ("{path: note, type: text}", "{path: $, type: text}", "only a child's column has it"),
        (
            "{path: note, type: text}",
            "{path: items.a, type: text}",
            "entities.thing.children.items.path: overlaps with items.a",
        ),
        ("{path: note, type: text}", "{path: note, type: text, as: number}", "text can be said to stand in JSON as"),
        ("{path: note, type: text}", "{path: note, type: text, references: other}", "there is no entity 'other'"),
        ("{path: note, type: text}", "{path: note, type: text, references: thing}", "in a circle: thing -> thing"),
        (
            "{path: note, type: text}",
            "{path: note, type: text, null: 0}",
            "columns.note.null: Input should be a valid bo",
        ),
        ("{path: note, type: text}", "{path: note, type: text, clean: [lower, upper]}", "lower or upper, not both"),
        ("{path: note, type: text}", "{constant: x, type: date}", "columns.note.constant: is not of type date"),
        ("{path: note, type: text}", "{constant: 1, type: smallint, lenient: true}", "is for a column with a path"),
        (
            "{key: id, type: text}",
            "{key: nope, type: text}",
            "line 9, entities.thing.columns.id.key: there is no {nope}",
        ),
        ("{key: id, type: text}", "{key: id, type: date}", "a column from the key is one of"),
        ("primary_key: [id]", "primary_key: [note]", "line 11, entities.thing.primary_key: note is not from the key"),
        ("primary_key: [id]", "primary_key: [id, id]", "two columns are named 'id'"),
        ('"t:{id}"', '"t:{id}:{other}"', "two keys would be one row: {other} of the key is not in the primary key"),
        ('"t:{id}"', '"t:{id}{other}"', "line 6, entities.thing.key: {id} and {other} touch"),
        ("    rest: rest\n", "", "an empty array has no place: give thing a rest column, or say empty: array"),
        ("      note: {", "      rest: {", "line 5, entities.thing: two columns are named 'rest'"),
        ("      note: {", "      id: {", "line 10, entities.thing.columns.id: stands there twice"),
        ("      note: {", f"      {'n' * 64}: {{", "not a name for Postgres: 1 to 63 bytes"),
        ("      note: {", "      replank_x: {", "names that begin with replank_ are the migration's own"),
        (
            "parent: [thing_id]",
            "parent: [a, b]",
            "line 17, entities.thing.children.items.parent: needs a column for each",
        ),
        (
            "table: thing_items",
            "table: things",
            "line 16, entities.thing.children.items.table: things is the table of thing",
        ),
        ("table: thing_items", "table: a.b.c", "not a table's name"),
        ("{path: sku, type: text}", "{key: id, type: text}", "a child's columns come from its element"),
        (
            "{columns: [note]}",
            "{columns: [nope]}",
            "line 20, entities.thing.indexes.things_note.columns: there is no column",
        ),
        ("{columns: [note]}", "{columns: [note], on: note}", "is on exactly one of columns and on"),
        ("source: {table: kv_store}", "source: [kv_store]", "line 3, source: Input should be a valid dictionary"),
        (
            "source: {table: kv_store}",
            "source: &x {table: kv_store}\nignore: *x",
            "line 4, the mapping: not YAML: an alias (*name)",
        ),
        ("source: {table: kv_store}", "source: {table: !!binary kv_store}", "a tag (tag:yaml.org,2002:binary)"),
        ("source: {table: kv_store}", "source: {table: kv_store", "not YAML"),
    ],
    ids=lambda text: text[:60],
)
def test_a_fault_is_told_by_path_and_line(old: str, new: str, fault: str) -> None:
    found = faults(changed(old, new))
    assert any(fault in line for line in found), found
    assert all(re.match(r"line \d+, ", line) for line in found)


def test_all_faults_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = SMALL.replace("name: small", "name: Small").replace("type: text}", "type: varchar}")
    found = faults(text)
    assert [line.split(":")[0] for line in found] == [
        "line 2, name",
        "line 9, entities.thing.columns.id.type",
        "line 10, entities.thing.columns.note.type",
        "line 18, entities.thing.children.items.columns.sku.type",
    ]


def test_a_key_that_two_entities_match_is_refused_with_an_example() -> None:
    second = """
  other:
    key: "t:{a}:{b}"
    table: others
    columns: {a: {key: a, type: text}, b: {key: b, type: text}}
    primary_key: [a, b]
"""
    assert faults(SMALL.rstrip() + second) == [
        "line 22, entities.other.key: 't:{a}:{b}' and 't:{id}' both match the key 't:a:a'"
    ]
    assert faults(SMALL + "ignore: ['{any}']\n") == ["line 21, ignore.0: '{any}' and 't:{id}' both match the key 't:a'"]


def test_references_in_a_circle_are_refused() -> None:
    entity = """
  {name}:
    key: "{name}:{{id}}"
    table: {name}s
    columns: {{id: {{key: id, type: text}}, other: {{path: other, type: text, references: {other}}}}}
    primary_key: [id]
"""
    text = SMALL.rstrip() + entity.format(name="a", other="b") + entity.format(name="b", other="a").lstrip("\n")
    (found,) = faults(text)
    assert "reference each other in a circle" in found


def test_a_mapping_is_json_too_and_survives_being_written_out() -> None:
    mapping = load(MAPPING)
    again = load(json.dumps(mapping.model_dump(by_alias=True, mode="json", exclude_unset=True)))
    assert again == mapping
    assert compiled(again) == compiled(mapping)
    everything = load(json.dumps(mapping.model_dump(by_alias=True, mode="json")))
    assert compiled(everything).functions == compiled(mapping).functions


def test_words_that_yaml_takes_for_something_else_are_texts() -> None:
    text = changed("{path: note, type: text}", "{path: 'on', type: text, null: false}").replace(
        "{columns: [note]}", "{on: note, where: note <> 'no'}"
    )
    mapping = load(text)
    assert mapping.entities["thing"].columns["note"].path == ("on",)
    assert mapping.entities["thing"].columns["note"].nullable is False
    assert mapping.entities["thing"].indexes["things_note"].on == "note"
    assert (
        load(changed("{path: note, type: text}", "{constant: no, type: text}"))
        .entities["thing"]
        .columns["note"]
        .constant
        == "no"
    )


def test_a_field_with_a_dot_in_its_name_is_quoted_or_in_a_list() -> None:
    for path in ("'\"a.b\".c'", "['a.b', c]"):
        mapping = load(changed("{path: note, type: text}", f"{{path: {path}, type: text}}"))
        assert mapping.entities["thing"].columns["note"].path == ("a.b", "c")


def test_faults_can_be_taken_apart() -> None:
    with pytest.raises(InvalidMapping) as caught:
        load(changed("type: text}\n    primary", "type: nope}\n    primary"))
    (fault,) = caught.value.faults
    assert isinstance(fault, Fault)
    assert (fault.line, fault.path) == (10, "entities.thing.columns.note.type")


# What is published


def test_the_published_schema_is_up_to_date() -> None:
    committed = (ROOT / "docs/reference/mapping.schema.json").read_text()
    assert committed == documents.text(Mapping.json_schema()), "run `make docs`"


def _examples() -> list[str]:
    page = (ROOT / "docs/reference/mapping.md").read_text()
    return re.findall(r"^```yaml\n(mapping: 1\n.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_and_of_the_tests_are_good_by_the_schema_too() -> None:
    schema = Mapping.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    examples = [*_examples(), MAPPING, SMALL]
    assert len(examples) > 2
    for text in examples:
        validator.validate(_data(text))
        compiled(load(text))


def _data(text: str) -> Any:
    from replank.migrate import yamltree  # noqa: PLC0415

    return yamltree.read(text).data


def test_the_schema_refuses_what_is_not_of_the_format() -> None:
    validator = jsonschema.Draft202012Validator(Mapping.json_schema())
    for text in (SMALL.replace("rest: rest", "rests: rest"), SMALL.replace("    table: things\n", ""), "mapping: 2"):
        assert not validator.is_valid(_data(text))


def test_every_key_of_the_format_is_explained_on_the_page() -> None:
    page = (ROOT / "docs/reference/mapping.md").read_text()
    schema = Mapping.json_schema()
    parts = [schema, *schema["$defs"].values()]
    names = {name for part in parts for name in part.get("properties", {})}
    assert {name for name in names if f"`{name}`" not in page} == set()
