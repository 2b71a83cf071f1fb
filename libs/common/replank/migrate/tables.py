"""The tables of the target, their constraints and their indexes, each statement by itself."""

# ruff: noqa: S608 - this module writes SQL: names and texts go through replank.migrate.sql

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from replank.migrate import conversion
from replank.migrate.mapping import Entity, Index, Mapping
from replank.migrate.parts import ChildPart, Part, listed, record_key
from replank.migrate.sql import identifier, relation


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the target."""

    name: str
    """As the mapping has it."""
    entity: str
    child: str | None
    create: str
    """``create table``, with its primary key and the checks without which a row could not be a record again."""
    drop: str
    columns: tuple[tuple[str, str], ...]
    """(name, type) in their order."""
    primary_key: tuple[str, ...]

    @property
    def sql(self) -> str:
        """Its name as SQL reads it."""
        return relation(self.name)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint that is added to a table with rows, in steps that lock it for moments only."""

    name: str
    table: str
    """As the mapping has it."""
    kind: Literal["not null", "foreign key"]
    columns: tuple[str, ...]
    """Those that it is about."""
    add: str
    """``alter table … add constraint … not valid``."""
    validate: str
    """``alter table … validate constraint``: reads the whole table, and lets everybody write."""
    finish: tuple[str, ...]
    """What makes of a validated check a NOT NULL column, in order; empty for a foreign key."""
    drop: tuple[str, ...]
    """What takes it away again, whichever steps were done; each may find nothing."""
    violated: str
    """A select of the keys of the records whose rows do not satisfy it, one for each row."""
    refers_to: str | None = None
    """The table that a foreign key refers to, as the mapping has it."""


@dataclass(frozen=True, slots=True)
class IndexBuild:
    """An index that is built while the table is written to."""

    name: str
    table: str
    """As the mapping has it."""
    create: str
    """``create index concurrently``: outside of a transaction. Fails when there is one of the name, good or invalid."""
    drop: str
    columns: tuple[str, ...]
    """Those that it is on, or the one expression."""
    violated: str | None
    """Of a unique one: a select of the keys of the records whose rows are alike in it, one for each row."""
    refers_to: None = None


def table_of(part: Part) -> Table:
    lines = []
    for name, kind, column in part.columns:
        quoted = identifier(name)
        pattern = part.entity.pattern
        check = conversion.check(column, quoted, pattern) if column is not None else None
        default = (
            f" default {conversion.constant(column)}" if column is not None and column.constant is not None else ""
        )
        lines.append(f"{quoted} {kind}{default}" + (f" check ({check})" if check else ""))
    lines.append(f"primary key ({listed(part.primary_key)})")
    return Table(
        name=part.table_name,
        entity=part.entity_name,
        child=part.child_name,
        create=f"create table {part.table} (\n    " + ",\n    ".join(lines) + "\n)",
        drop=f"drop table if exists {part.table}",
        columns=tuple((name, kind) for name, kind, _ in part.columns),
        primary_key=tuple(part.primary_key),
    )


def not_null(part: Part) -> Iterator[Constraint]:
    for name, column in part.mapped.items():
        if column.nullable and column.constant is None:
            continue
        if name in part.primary_key:
            continue
        quoted, table = identifier(name), part.table
        constraint = _name(part, name, "not_null")
        check = identifier(constraint)
        yield Constraint(
            name=constraint,
            table=part.table_name,
            kind="not null",
            columns=(name,),
            add=f"alter table {table} add constraint {check} check ({quoted} is not null) not valid",
            validate=f"alter table {table} validate constraint {check}",
            # Postgres takes the validated check for proof, and does not read the table again.
            finish=(
                f"alter table {table} alter column {quoted} set not null",
                f"alter table {table} drop constraint {check}",
            ),
            drop=(
                f"alter table {table} drop constraint if exists {check}",
                f"alter table {table} alter column {quoted} drop not null",
            ),
            violated=f"select {_key_of(part)} from {table} r where r.{quoted} is null",
        )


def foreign_keys(part: Part, mapping: Mapping) -> Iterator[Constraint]:
    if isinstance(part, ChildPart):
        # Rows that were an array inside of a record go when the record goes.
        yield _foreign_key(part, part.child.parent, part.entity, " on delete cascade")
    for name, column in part.mapped.items():
        if column.references is not None:
            yield _foreign_key(part, (name,), mapping.entities[column.references], "")


def _foreign_key(part: Part, columns: Sequence[str], other: Entity, action: str) -> Constraint:
    name = _name(part, "_".join(columns), "fkey")
    quoted, table = identifier(name), relation(other.table)
    pairs = [(identifier(here), identifier(there)) for here, there in zip(columns, other.primary_key, strict=True)]
    refers = " and ".join(f"r.{here} is not null" for here, _ in pairs)
    joined = " and ".join(f"o.{there} = r.{here}" for here, there in pairs)
    return Constraint(
        name=name,
        table=part.table_name,
        kind="foreign key",
        columns=tuple(columns),
        add=f"alter table {part.table} add constraint {quoted} foreign key ({listed(columns)})"
        f" references {table} ({listed(other.primary_key)}){action} not valid",
        validate=f"alter table {part.table} validate constraint {quoted}",
        finish=(),
        drop=(f"alter table {part.table} drop constraint if exists {quoted}",),
        violated=f"select {_key_of(part)} from {part.table} r"
        f" where {refers} and not exists (select from {table} o where {joined})",
        refers_to=other.table,
    )


def _key_of(part: Part) -> str:
    """The key of the record that a row ``r`` of the part's table belongs to."""
    return record_key(part.entity, part.child.parent if isinstance(part, ChildPart) else part.entity.primary_key)


def _name(part: Part, columns: str, suffix: str) -> str:
    """A constraint's name in Postgres's own style, cut where Postgres would cut it."""
    table = part.table_name.rpartition(".")[2]
    return f"{table}_{columns}"[: 62 - len(suffix)].encode()[: 62 - len(suffix)].decode(errors="ignore") + f"_{suffix}"


def index_of(part: Part, name: str, index: Index) -> IndexBuild:
    unique = "unique " if index.unique else ""
    on = index.on or listed(index.columns)
    where = f" where {index.where}" if index.where else ""
    key = _key_of(part)
    alike = f"num_nulls({on}) = 0" + (f" and ({index.where})" if index.where else "")
    schema = part.table.rpartition(".")[0] if "." not in part.table_name else identifier(part.table_name.split(".")[0])
    return IndexBuild(
        name=name,
        table=part.table_name,
        create=f"create {unique}index concurrently {identifier(name)} on {part.table}"
        f" using {index.method} ({on}){where}",
        drop=f"drop index concurrently if exists {schema}.{identifier(name)}",
        columns=index.columns or (index.on,),
        violated=f"select d.key from (select {key} as key, count(*) over alike as rows, min({key}) over alike as first"
        f" from {part.table} r where {alike} window alike as (partition by {on})"
        ") as d where d.rows > 1 order by d.first, d.key"
        if index.unique
        else None,
    )
