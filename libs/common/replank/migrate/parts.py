"""The parts of a mapping as SQL needs to know them: an entity with its own table, and each child with its own."""

from __future__ import annotations

from collections.abc import Sequence

from replank.migrate import conversion
from replank.migrate.mapping import Child, Column, Entity, Mapping
from replank.migrate.sql import identifier, relation, schema_of


class Part:
    """What an entity's own table and its children's have in common: one object of JSON, one row."""

    def __init__(self, mapping: Mapping, entity_name: str, entity: Entity, child_name: str | None = None) -> None:
        self.schema = schema_of(mapping.name)
        self.entity_name, self.entity, self.child_name = entity_name, entity, child_name
        described: Entity | Child = entity if child_name is None else entity.children[child_name]
        self.table_name, self.table = described.table, relation(described.table)
        self.indexes = described.indexes
        self.rest = described.rest
        self.mapped = described.columns
        function = f"up_{entity_name}" if child_name is None else f"up_{entity_name}_{child_name}"
        self.up = f"{self.schema}.{identifier(function)}"

    @property
    def columns(self) -> list[tuple[str, str, Column | None]]:
        """(name, type, what it comes from) in the order of the table."""
        rest: list[tuple[str, str, Column | None]] = [(self.rest, "jsonb", None)] if self.rest else []
        return [(name, conversion.sql_type(column), column) for name, column in self.mapped.items()] + rest

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [name for name, _, _ in self.columns]

    @property
    def primary_key(self) -> list[str]:
        """The names of its columns."""
        return list(self.entity.primary_key)

    def key_columns(self, key: str) -> list[tuple[str, str]]:
        """(column of the table, expression over a key) of what finds the rows of a key."""
        found = []
        for name in self.entity.primary_key:
            column = self.entity.columns[name]
            constant = column.key is None
            found.append(
                (
                    name,
                    conversion.constant(column) if constant else conversion.capture(column, self.entity.pattern, key),
                )
            )
        return found

    def of_key(self, key: str) -> str:
        """A select list of the columns that find rows, as ``k0``, ``k1``, … from the SQL expression of a key."""
        return ", ".join(f"{value} as k{n}" for n, (_, value) in enumerate(self.key_columns(key)))

    def found_by(self, row: str, keys: str) -> str:
        """The condition that a row of the table belongs to a row with ``k0``, ``k1``, …."""
        return " and ".join(
            f"{row}.{identifier(name)} = {keys}.k{n}" for n, (name, _) in enumerate(self.key_columns(""))
        )


class EntityPart(Part):
    """An entity with its own table."""

    def __init__(self, mapping: Mapping, name: str, entity: Entity) -> None:
        super().__init__(mapping, name, entity)
        self.name = name
        self.pattern = entity.pattern
        self.children = [ChildPart(mapping, name, entity, child) for child in entity.children]


class ChildPart(Part):
    """A child of an entity with its table: in front of its own columns those of the parent's key, and the position."""

    def __init__(self, mapping: Mapping, entity_name: str, entity: Entity, name: str) -> None:
        super().__init__(mapping, entity_name, entity, name)
        self.name = name
        self.child = entity.children[name]

    @property
    def columns(self) -> list[tuple[str, str, Column | None]]:
        parents: list[tuple[str, str, Column | None]] = [
            (name, conversion.sql_type(self.entity.columns[of]), None)
            for name, of in zip(self.child.parent, self.entity.primary_key, strict=True)
        ]
        return [*parents, (self.child.position, "integer", None), *super().columns]

    @property
    def primary_key(self) -> list[str]:
        return [*self.child.parent, self.child.position]

    def key_columns(self, key: str) -> list[tuple[str, str]]:
        return [(name, value) for name, (_, value) in zip(self.child.parent, super().key_columns(key), strict=True)]


def listed(names: Sequence[str], row: str = "") -> str:
    """Names of columns, quoted, with commas between; of a row when it is given."""
    return ", ".join(f"{row}.{identifier(name)}" if row else identifier(name) for name in names)


def elements_of(child: ChildPart, json: str) -> str:
    """The elements of a child's array; none when there is no array."""
    value = conversion.field_of(json, child.child.path)
    return f"jsonb_array_elements(case when jsonb_typeof({value}) = 'array' then {value} end) with ordinality"


def record_key(entity: Entity, columns: Sequence[str]) -> str:
    """The key of a record as SQL over the row ``r``, from the columns that hold its primary key, in its order."""
    captures = {}
    for place, name in enumerate(entity.primary_key):
        column = entity.columns[name]
        if column.key is not None:
            captures[column.key] = _text(column, f"r.{identifier(columns[place])}")
    return entity.pattern.build_sql(captures)


def _text(column: Column, expression: str) -> str:
    # A date as text depends on the session's settings, unless it is told how.
    return f"to_char({expression}, 'YYYY-MM-DD')" if column.column_type.base == "date" else f"{expression}::text"
