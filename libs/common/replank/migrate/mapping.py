"""A mapping from keys and JSON values to tables, as data: what it may say, and the reading of it.

`load` reads YAML (or JSON) and refuses, with the path and the line of each fault, whatever could not be carried out
both ways. `replank.migrate.compile` turns a mapping into SQL.
"""

from __future__ import annotations

import re
import sys
from functools import cached_property
from typing import Annotated, Any, Final, Literal, cast, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from replank.contracts import documents
from replank.errors import ReplankError
from replank.migrate import patterns, yamltree
from replank.migrate.patterns import Pattern
from replank.migrate.sql import IDENTIFIER_BYTES

Representation = Literal["number", "string", "iso8601", "iso8601_ms", "iso8601_us", "epoch_s", "epoch_ms"]
Cleaning = Literal["trim", "lower", "upper", "empty_as_null"]
Base = Literal[
    "text", "boolean", "smallint", "integer", "bigint", "numeric", "double precision", "date", "timestamptz", "uuid",
    "jsonb",
]  # fmt: skip

_TYPE: Final = re.compile(
    r"(?P<base>[a-z]+(?: [a-z]+)?)(?:\(\s*(?P<precision>\d{1,4})\s*(?:,\s*(?P<scale>\d{1,4})\s*)?\))?"
)
_SEGMENT: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"|([^."\s](?:[^."]*[^."\s])?)')

#: How a value of each type stands in JSON: what may be said, the usual one first.
REPRESENTATIONS: Final[dict[str, tuple[Representation, ...]]] = {
    "smallint": ("number", "string"),
    "integer": ("number", "string"),
    "bigint": ("number", "string"),
    "numeric": ("number", "string"),
    "timestamptz": ("iso8601", "iso8601_ms", "iso8601_us", "epoch_s", "epoch_ms"),
}


class InvalidMapping(ReplankError):
    """A mapping that cannot be carried out. ``faults`` has all that is wrong with it, in the order of its lines."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: fault.line))
        super().__init__(
            "the mapping is refused: " + "; ".join(str(fault) for fault in self.faults),
            fix="docs/reference/mapping.md tells what a mapping may say",
        )


class Fault(BaseModel):
    """One thing that is wrong with a mapping."""

    model_config = ConfigDict(frozen=True)

    line: int
    path: str
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.path or 'the mapping'}: {self.problem}"


class ColumnType(BaseModel):
    """A type of Postgres's that a column may have."""

    model_config = ConfigDict(frozen=True)

    base: Base
    precision: int | None = None
    scale: int = 0

    @property
    def sql(self) -> str:
        """As SQL writes it."""
        return self.base if self.precision is None else f"{self.base}({self.precision},{self.scale})"


def column_type(text: str) -> ColumnType:
    """Read a type. Raises `ValueError` for one that a column may not have."""
    found = _TYPE.fullmatch(" ".join(text.split()))
    if found is None or found["base"] not in get_args(Base):
        raise ValueError(f"not a type that a column may have: {', '.join(get_args(Base))}")
    if found["precision"] is None:
        return ColumnType(base=cast("Base", found["base"]))
    precision, scale = int(found["precision"]), int(found["scale"] or 0)
    if found["base"] != "numeric":
        raise ValueError(f"{found['base']} takes nothing in brackets")
    if not 1 <= precision <= 1000 or scale > precision:
        raise ValueError("numeric(p,s) has 1 to 1000 digits, of which 0 to p behind the point")
    return ColumnType(base="numeric", precision=precision, scale=scale)


def path_text(path: tuple[str, ...]) -> str:
    """A path as people read it and as a mapping may write it."""
    return ".".join(step if _plain(step) else _quoted(step) for step in path) or "$"


def _plain(step: str) -> bool:
    found = _SEGMENT.fullmatch(step)
    return found is not None and found[2] is not None and ": " not in step and step != "$"


def _quoted(step: str) -> str:
    return '"' + step.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _path(value: Any) -> tuple[str, ...]:
    match value:
        case "$":
            return ()
        case list() if all(isinstance(step, str) for step in value):
            return tuple(value)
        case str():
            steps, at = [], 0
            while found := _SEGMENT.match(value, at):
                steps.append(re.sub(r"\\(.)", r"\1", found[1]) if found[1] is not None else found[2])
                at = found.end()
                if at == len(value):
                    return tuple(steps)
                if value[at] != ".":
                    break
                at += 1
    raise ValueError(
        'not a path: names joined by dots, such as address.city or "a.b".c (JSON\'s quotes around a name with a dot)'
    )


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", value):
        raise ValueError("a name is 1 to 40 lower-case letters, digits and _, and begins with a letter")
    return value


def _identifier(value: str) -> str:
    if not value or "\0" in value or len(value.encode()) > IDENTIFIER_BYTES:
        raise ValueError(f"not a name for Postgres: 1 to {IDENTIFIER_BYTES} bytes")
    return value


def _column_name(value: str) -> str:
    if value.startswith("replank_"):
        raise ValueError("names that begin with replank_ are the migration's own")
    return _identifier(value)


def _relation(value: str) -> str:
    parts = value.split(".")
    if len(parts) > 2:
        raise ValueError("not a table's name: table or schema.table")
    for part in parts:
        _identifier(part)
    return value


def _constant(value: Any) -> Any:
    if value is not None and not isinstance(value, str | int | float | bool):
        # Not a TypeError: pydantic makes a finding of a ValueError only.
        raise ValueError("a constant is a text, a number, true or false")
    return value


def _pattern(value: str) -> str:
    patterns.parse(value)
    return value


def _type(value: str) -> str:
    column_type(value)
    return value


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": "^[a-z][a-z0-9_]{0,39}$"})]
Identifier = Annotated[str, AfterValidator(_identifier), WithJsonSchema({"type": "string", "minLength": 1})]
ColumnName = Annotated[str, AfterValidator(_column_name), WithJsonSchema({"type": "string", "minLength": 1})]
Relation = Annotated[str, AfterValidator(_relation), WithJsonSchema({"type": "string", "minLength": 1})]
KeyPattern = Annotated[str, AfterValidator(_pattern)]
TypeName = Annotated[str, AfterValidator(_type), WithJsonSchema({"type": "string", "pattern": f"^{_TYPE.pattern}$"})]
Constant = Annotated[Any, AfterValidator(_constant), WithJsonSchema({"type": ["string", "number", "boolean", "null"]})]
Path = Annotated[
    tuple[str, ...],
    BeforeValidator(_path),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}]}),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Source(_Part):
    """The key-value table."""

    table: Relation = Field(description="Its name, with its schema if that is not on the search path.")
    key: Identifier = Field("key", description="The text column that is its primary key.")
    value: Identifier = Field("value", description="The jsonb column.")


class Column(_Part):
    """One column, and where it comes from: exactly one of key, path and constant."""

    key: str | None = Field(None, description="A capture of the key pattern.")
    path: Path | None = Field(None, description="A field of the value; $ is the whole of a scalar element.")
    constant: Constant = Field(None, description="The same in every row; it does not travel back.")
    type: TypeName = Field(description="The type of the column in Postgres.")
    nullable: bool = Field(True, alias="null", description="false: a record without the field is rejected.")
    references: Name | None = Field(None, description="The entity whose primary key this is.")
    representation: Representation | None = Field(None, alias="as", description="How the value stands in JSON.")
    clean: tuple[Cleaning, ...] = Field((), strict=False, description="What is done to a text before it is converted.")
    lenient: bool = Field(False, description="Other spellings and rounding are taken, and do not come back.")

    @cached_property
    def column_type(self) -> ColumnType:
        """The type, read."""
        return column_type(self.type)

    @property
    def represented(self) -> str:
        """How the value stands in JSON, said or usual; empty where there is only one way."""
        return self.representation or REPRESENTATIONS.get(self.column_type.base, ("",))[0]

    @property
    def lossy(self) -> bool:
        """Whether a value may come back other than it was."""
        return self.lenient or bool(self.clean)


class Index(_Part):
    """An index of a table: on columns, or on whatever ``create index … (on)`` takes."""

    columns: tuple[Identifier, ...] = Field((), strict=False)
    on: str = Field("", description="In place of columns: what stands between the brackets, e.g. name gin_trgm_ops.")
    method: Literal["btree", "hash", "gin", "gist", "brin", "spgist"] = "btree"
    unique: bool = False
    where: str = Field("", description="The condition of a partial index.")


class Child(_Part):
    """The rows that one array of a value becomes."""

    path: Path
    table: Relation
    parent: tuple[ColumnName, ...] = Field(
        strict=False, min_length=1, description="The columns that hold the parent's primary key, in its order."
    )
    position: ColumnName = Field("position", description="The integer column of the index in the array, from 0.")
    columns: dict[ColumnName, Column] = Field(min_length=1)
    rest: ColumnName | None = Field(None, description="The jsonb column for fields that have no column of their own.")
    empty: Literal["absent", "array"] = Field(
        "absent",
        description="What no rows at all come back as. absent: an empty array is remembered in the parent's rest; "
        "array: a record without the field is rejected.",
    )
    indexes: dict[Identifier, Index] = {}


class Entity(_Part):
    """The records whose keys match one pattern, and the tables they become."""

    key: KeyPattern
    table: Relation
    columns: dict[ColumnName, Column] = Field(min_length=1)
    primary_key: tuple[ColumnName, ...] = Field(strict=False, min_length=1)
    rest: ColumnName | None = Field(None, description="The jsonb column for fields that have no column of their own.")
    drop: tuple[Path, ...] = Field((), strict=False, description="Fields that are not kept, on purpose.")
    children: dict[Name, Child] = {}
    indexes: dict[Identifier, Index] = {}

    @cached_property
    def pattern(self) -> Pattern:
        """The key pattern, read."""
        return patterns.parse(self.key)

    @property
    def exact(self) -> bool:
        """Whether every record that is not rejected comes back as it was."""
        columns = [*self.columns.values(), *(c for child in self.children.values() for c in child.columns.values())]
        return not self.drop and not any(column.lossy for column in columns)


class Mapping(_Part):
    """A migration from a key-value table to tables."""

    mapping: Literal[1] = Field(description="The version of this format.")
    name: Name
    source: Source
    others: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="What becomes of a key that no entity and no ignore pattern matches: rejected, or ignored.",
    )
    ignore: tuple[KeyPattern, ...] = Field((), strict=False, description="Patterns of keys that stay where they are.")
    entities: dict[Name, Entity] = Field(min_length=1)

    @property
    def schema_name(self) -> str:
        """The schema that the migration owns in its source and in its target."""
        return f"replank_m_{self.name}"

    @property
    def change_topic(self) -> str:
        """The Kafka topic of captured changes, source to target."""
        return f"replank.migrate.{self.name}"

    @property
    def reverse_topic(self) -> str:
        """The Kafka topic of changes on the way back."""
        return f"replank.migrate.{self.name}.reverse"

    def entity_of(self, key: str) -> str | None:
        """The entity that a key belongs to; None when there is none."""
        return next((name for name, entity in self.entities.items() if entity.pattern.match(key)), None)

    @cached_property
    def ignored_patterns(self) -> tuple[Pattern, ...]:
        """The patterns of keys that stay where they are, read."""
        return tuple(patterns.parse(text) for text in self.ignore)

    def ignores(self, key: str) -> bool:
        """Whether a key that no entity matches stays where it is."""
        return self.others == "ignore" or any(pattern.match(key) for pattern in self.ignored_patterns)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The format as a JSON Schema (draft 2020-12)."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **cls.model_json_schema(by_alias=True),
            "title": "Replank mapping",
        }


def load(text: str) -> Mapping:
    """Read a mapping from YAML or JSON.

    Raises `InvalidMapping`, with everything that is wrong with it: what is not YAML, what is not of this format, and
    what cannot be carried out (`replank.migrate.rules`).
    """
    from replank.migrate import rules  # noqa: PLC0415 (rules are about mappings, and import them)

    try:
        document = yamltree.read(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        raise InvalidMapping([Fault(line=line, path="", problem=f"not YAML: {problem}")]) from None
    faults = document.faults
    mapping: Mapping | None = None
    try:
        mapping = Mapping.model_validate(document.data)
    except ValidationError as error:
        faults = [*faults, *((place, _wording(kind, text)) for place, kind, text in _errors(error))]
    if mapping is not None:
        faults = [*faults, *rules.broken(mapping)]
    if mapping is None or faults:
        raise InvalidMapping(
            [
                Fault(line=document.line(place), path=".".join(map(str, place)), problem=problem)
                for place, problem in faults
            ]
        )
    return mapping


def _errors(error: ValidationError) -> list[tuple[yamltree.Place, str, str]]:
    return [
        (tuple(step for step in found["loc"] if step != "[key]"), found["type"], found["msg"])
        for found in error.errors(include_input=False, include_url=False)
    ]


def _wording(kind: str, text: str) -> str:
    match kind:
        case "extra_forbidden":
            return "is not part of the format here"
        case "missing":
            return "is missing"
        case _:
            return text.removeprefix("Value error, ")


if __name__ == "__main__":
    sys.stdout.write(documents.text(Mapping.json_schema()))
