"""How one JSON value becomes the value of a column, and how it becomes JSON again: SQL expressions, written once each.

A conversion is worked out in steps, each a level of a subquery, so that nothing is computed twice: the field (``x``),
what it is (``t``: its JSON type, ``s``: its text), what it reads as (``p``), what is wrong with it, its value.
Expressions are total: whatever the record, none of them raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from replank.migrate.mapping import Column
from replank.migrate.patterns import Pattern
from replank.migrate.sql import literal

_TRIMMED: Final = r"E' \t\n\r\f\x0b'"
# Digits by name: \d may be a digit of any script, which no cast takes.
_NUMBER: Final = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"
_LENIENT_NUMBER: Final = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*$"
_WHOLE: Final = r"^(0|-?[1-9][0-9]{0,18})$"
_UUID: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_LENIENT_UUID: Final = r"^[0-9a-fA-F]{4}(-?[0-9a-fA-F]{4}){7}$"
# The days that there are. Years divisible by 4 but not by 100, or by 400, have a 29th of February.
_DAY: Final = (
    r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
    r"|([0-9][0-9](0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_TIME: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_YES: Final = ("true", "t", "yes", "y", "on", "1")
_NO: Final = ("false", "f", "no", "n", "off", "0")

_RANGES: Final = {
    "smallint": (-(2**15), 2**15 - 1),
    "integer": (-(2**31), 2**31 - 1),
    "bigint": (-(2**63), 2**63 - 1),
}
# Digits behind the second, and how to_char writes them.
_ISO: Final[dict[str, tuple[int, str]]] = {"iso8601": (0, ""), "iso8601_ms": (3, ".MS"), "iso8601_us": (6, ".US")}
_EPOCH: Final[dict[str, tuple[int, int]]] = {"epoch_s": (0, 1), "epoch_ms": (3, 1000)}
_EPOCH_FIRST, _EPOCH_LAST = -62135596800, 253402300799  # of the years 0001 to 9999, in seconds
_FIRST: Final = "0001-01-01 00:00:00+00"
_BEYOND: Final = "10000-01-01 00:00:00+00"
_OUTSIDE: Final = literal("outside of the years 1 to 9999")

_Faults: TypeAlias = list[tuple[str, str]]
"""(condition, reason as an SQL text)"""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The expressions of one column. They read the columns ``t<n>``, ``s<n>``, ``x<n>`` and ``p<n>`` of ``r``."""

    taken: dict[str, str]
    """First step: alias -> expression over what the column comes from."""
    seen: dict[str, str]
    """Second step: alias -> expression over the first."""
    read: dict[str, str]
    """Third step: alias -> expression over the second."""
    faults: tuple[tuple[str, str], ...]
    """(condition, reason) in the order in which they are asked. The reason is an SQL text, without the path."""
    value: str
    """The value: not to be trusted where there is a fault, but it does not raise there either."""


def from_json(column: Column, n: int, json: str, schema: str) -> Conversion:
    """The conversion of a column with a path; ``json`` is the SQL expression of what the path starts from."""
    assert column.path is not None  # noqa: S101 - what tells the two kinds of column apart
    base, accepted = column.column_type.base, _accepted(column)
    t, s, x, p = f"r.t{n}", f"r.s{n}", f"r.x{n}", f"r.p{n}"
    taken = {f"x{n}": field_of(json, column.path)}
    kind, text = f"jsonb_typeof({x})", _cleaned(column, f"{x} #>> '{{}}'")
    if "empty_as_null" in column.clean:
        kind = f"case when {text} is null then 'null' else {kind} end"
    seen = {f"t{n}": kind}
    faults = _missing(column, t)
    if base == "jsonb":
        return Conversion(taken, seen, {}, tuple(faults), f"case when {t} <> 'null' then {x} end")
    if accepted not in {("number",), ("boolean",)}:
        seen[f"s{n}"] = text
    # The type that nearly every record has is asked for first.
    wrong = " and ".join(f"{t} <> {literal(name)}" for name in (*accepted, "null"))
    faults.append((wrong, f"{literal(f'expected {accepted[0]}, found ')} || {t}"))
    if base == "text":
        return Conversion(taken, seen, {}, tuple(faults), f"case when {t} <> 'null' then {s} end")
    read, unreadable = _read(column, n, schema)
    if unreadable:
        faults.append((f"{p} is null and {t} <> 'null'", literal(unreadable)))
    more, value = _fitting(column, p, s)
    value = f"case when r.problem is null then {value} end"
    return Conversion(taken, seen, {f"p{n}": read}, (*faults, *more), value)


def from_key(column: Column, n: int, pattern: Pattern, key: str) -> Conversion:
    """The conversion of a column from a capture of the key; ``key`` is the SQL expression of the key."""
    assert column.key is not None  # noqa: S101 - what tells the two kinds of column apart
    s, base = f"r.s{n}", column.column_type.base
    taken = {f"s{n}": pattern.capture_sql(column.key, key)}
    condition = _key_condition(base, s)
    if condition is None:
        return Conversion(taken, {}, {}, (), s)
    value = f"case when {condition} then {s}::{base} end"
    return Conversion(taken, {}, {}, ((f"not {condition}", literal(f"{{{column.key}}} is not of type {base}")),), value)


def capture(column: Column, pattern: Pattern, key: str) -> str:
    """A column from the key as one expression; null where the key is not good for it."""
    assert column.key is not None  # noqa: S101
    text = pattern.capture_sql(column.key, key)
    condition = _key_condition(column.column_type.base, text)
    return text if condition is None else f"case when {condition} then ({text})::{column.column_type.base} end"


def constant(column: Column) -> str:
    """The constant of a column as SQL."""
    value = column.constant
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    return f"{literal(text)}::{sql_type(column)}"


def to_json(column: Column, ref: str) -> str:
    """What a column's value is in JSON: an SQL expression for an argument of ``jsonb_build_object``."""
    match column.column_type.base, column.represented:
        case _, "string":
            return f"{ref}::text"
        case "date", _:
            return f"to_char({ref}::timestamp, 'YYYY-MM-DD')"
        case "timestamptz", ("iso8601" | "iso8601_ms" | "iso8601_us") as form:
            return f"""to_char({ref} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS{_ISO[form][1]}"Z"')"""
        case "timestamptz", form:
            return f"(extract(epoch from {ref}) * {_EPOCH[form][1]})::bigint"
        case _:
            return ref


def sql_type(column: Column) -> str:
    """The type in the table. An instant has the digits that its form in JSON has: the rest could not travel back."""
    if column.column_type.base != "timestamptz" or column.path is None:
        return column.column_type.sql
    digits, _ = _ISO.get(column.represented) or _EPOCH[column.represented]
    return f"timestamptz({digits})"


def check(column: Column, name: str, pattern: Pattern) -> str | None:
    """What has to be so of a value for it to have a place in the key-value store; None when every value has one."""
    base = column.column_type.base
    if column.constant is not None:
        return f"{name} = {constant(column)}"
    if column.key is not None:
        return _key_check(column.key, base, name, pattern)
    match base:
        case "numeric" | "double precision":
            return f"{name} > '-Infinity' and {name} < 'Infinity'"  # NaN is above infinity
        case "date":
            return f"{name} between date '0001-01-01' and date '9999-12-31'"
        case "timestamptz":
            return f"{name} >= timestamptz '{_FIRST}' and {name} < timestamptz '{_BEYOND}'"
        case _:
            return None


def _key_check(capture: str, base: str, name: str, pattern: Pattern) -> str | None:
    stop = pattern.stop(capture)
    conditions = [f"{name} <> ''"] if base == "text" else []
    if stop and (base == "text" or stop in "-0123456789abcdef"):
        conditions.append(f"position({literal(stop)} in {name}::text) = 0")
    return " and ".join(conditions) or None


def helpers(schema: str) -> str:
    """The functions that conversions call. The only ones with an exception handler, asked only in lenient columns."""
    return "\n".join(
        f"""
create function {schema}.lenient_{name}(spelling text) returns {name}
language plpgsql immutable strict
set search_path = '' set datestyle = 'ISO, YMD' set timezone = 'UTC'
as $$
begin
    -- Only what begins with a digit: the words that Postgres knows (now, today, infinity) mean nothing in a record.
    return case when spelling ~ '^\\s*[0-9]' then spelling::{name} end;
exception when data_exception then
    return null;
end
$$;"""
        for name in ("date", "timestamptz")
    )


def field_of(json: str, path: tuple[str, ...]) -> str:
    """The SQL expression of a field, as jsonb; null where there is none."""
    if not path:
        return json
    if len(path) == 1:
        return f"{json} -> {literal(path[0])}"
    return f"{json} #> array[{', '.join(map(literal, path))}]"


def _cleaned(column: Column, text: str) -> str:
    """In one order, whatever the order in the mapping: so that cleaning what is clean changes nothing."""
    text = f"({text})"
    if "trim" in column.clean:
        text = f"btrim({text}, {_TRIMMED})"
    for change in ("lower", "upper"):
        if change in column.clean:
            text = f"{change}({text})"
    return f"nullif({text}, '')" if "empty_as_null" in column.clean else text


def _accepted(column: Column) -> tuple[str, ...]:
    """The JSON types that are taken, the right one first."""
    base = column.column_type.base
    others: tuple[str, ...]
    if base == "boolean":
        right, others = "boolean", ("string", "number")
    elif base == "text":
        right, others = "string", ("number", "boolean")
    elif base == "double precision" or column.represented in {"number", *_EPOCH}:
        right, others = "number", ("string",)
    else:
        # A number in place of a date or of an identity says nothing.
        right, others = "string", ("number",) if column.represented == "string" else ()
    return (right, *others) if column.lenient else (right,)


def _missing(column: Column, t: str) -> _Faults:
    return [] if column.nullable else [(f"coalesce({t}, 'null') = 'null'", literal("missing"))]


def _read(column: Column, n: int, schema: str) -> tuple[str, str]:
    """The value as read, null where it cannot be; and the reason for that, empty where it always can be."""
    t, s, x = f"r.t{n}", f"r.s{n}", f"r.x{n}"
    match column.column_type.base, column.represented:
        case "boolean", _:
            return _read_boolean(column, t, s, x)
        case "uuid", _:
            spelling = _LENIENT_UUID if column.lenient else _UUID
            read = f"case when {t} = 'string' and {s} ~ {literal(spelling)} then {s}::uuid end"
            return read, "not a UUID as expected"
        case (("date" | "timestamptz"), form) if form not in _EPOCH:
            return _read_calendar(column, t, s, schema)
        case _:
            return _read_number(column, t, s, x)


def _read_boolean(column: Column, t: str, s: str, x: str) -> tuple[str, str]:
    if not column.lenient:
        return f"case when {t} = 'boolean' then {x}::boolean end", ""
    yes, no = (", ".join(map(literal, words)) for words in (_YES, _NO))
    word = f"lower(btrim({s}, {_TRIMMED}))"
    read = f"case when {word} in ({yes}) then true when {word} in ({no}) then false end"
    return f"case when {t} in ('boolean', 'string', 'number') then {read} end", "neither true nor false"


def _read_calendar(column: Column, t: str, s: str, schema: str) -> tuple[str, str]:
    base = column.column_type.base
    if base == "date":
        regex, reason = f"^{_DAY}$", "not a date as expected (2024-12-31)"
    else:
        digits = _ISO[column.represented][0]
        fraction = rf"\.[0-9]{{{digits}}}" if digits else ""
        regex = f"^{_DAY}T{_TIME}{fraction}Z$"
        reason = f"not an instant as expected (2024-12-31T23:59:59{'.' + '9' * digits if digits else ''}Z)"
    # There is no year 0.
    exact = f"{s} ~ {literal(regex)} and left({s}, 4) <> '0000'"
    otherwise = f" else {schema}.lenient_{base}({s})" if column.lenient else ""
    return f"case when {t} = 'string' then case when {exact} then {s}::{base}{otherwise} end end", reason


def _read_number(column: Column, t: str, s: str, x: str) -> tuple[str, str]:
    number = f"when {t} = 'number' then {x}::numeric"
    if not column.lenient and column.represented != "string":
        return f"case {number} end", ""
    spelling = _LENIENT_NUMBER if column.lenient else _NUMBER
    text = f"when {t} = 'string' and length({s}) <= 400 and {s} ~ {literal(spelling)} then {s}::numeric"
    return f"case {number + ' ' if column.lenient else ''}{text} end", "not a number"


def _fitting(column: Column, p: str, s: str) -> tuple[_Faults, str]:
    """What may be wrong with what was read, and the value."""
    kind = column.column_type
    match kind.base:
        case "smallint" | "integer" | "bigint":
            faults, value = _fitting_whole(column, p)
        case "numeric" if kind.precision is not None:
            faults, value = _fitting_decimals(column, p)
        case "double precision":
            faults, value = _fitting_double(column, p)
        case "timestamptz" if column.represented in _EPOCH:
            faults, value = _fitting_epoch(column, p)
        case "timestamptz" | "date":
            faults, value = _fitting_calendar(column, p)
        case _:
            faults, value = [], p
    if column.represented == "string" and not column.lenient:
        faults.append((f"{value}::text <> {s}", literal(f"not written as {kind.sql} is")))
    return faults, value


def _fitting_whole(column: Column, p: str) -> tuple[_Faults, str]:
    base = column.column_type.base
    least, most = _RANGES[base]
    return [*_broken_number(column, p), (f"round({p}) not between {least} and {most}", _no_fit(column))], f"{p}::{base}"


def _fitting_decimals(column: Column, p: str) -> tuple[_Faults, str]:
    kind = column.column_type
    assert kind.precision is not None  # noqa: S101 - what tells the two kinds of numeric apart
    too_large = (f"abs(round({p}, {kind.scale})) >= 1e{kind.precision - kind.scale}", _no_fit(column))
    too_fine = (f"{p} <> round({p}, {kind.scale})", literal(f"more than {kind.scale} decimals"))
    return [too_large] if column.lenient else [too_fine, too_large], f"{p}::{kind.sql}"


def _fitting_double(column: Column, p: str) -> tuple[_Faults, str]:
    value = f"{p}::double precision"
    # Past these a cast raises, or makes nothing of something.
    faults = [(f"abs({p}) > 1.797e308 or ({p} <> 0 and abs({p}) < 1e-307)", _no_fit(column))]
    if not column.lenient:
        # By way of text: the cast from double precision to numeric keeps 15 digits only.
        faults.append((f"{value}::text::numeric <> {p}", literal("not exact as double precision")))
    return faults, value


def _fitting_epoch(column: Column, p: str) -> tuple[_Faults, str]:
    unit = _EPOCH[column.represented][1]
    bounds = f"{_EPOCH_FIRST * unit} and {_EPOCH_LAST * unit + unit - 1}"
    # Of weeks and of what is left: in one product there would be more digits than a double has.
    week, part = 604_800 * unit, "1 second" if unit == 1 else "1 millisecond"
    value = (
        f"(timestamptz '1970-01-01 00:00:00+00' + div(round({p}), {week})::float8 * interval '168 hours'"
        f" + mod(round({p}), {week})::float8 * interval '{part}')::{sql_type(column)}"
    )
    return [*_broken_number(column, p), (f"round({p}) not between {bounds}", _OUTSIDE)], value


def _fitting_calendar(column: Column, p: str) -> tuple[_Faults, str]:
    base, value = column.column_type.base, f"{p}::{sql_type(column)}"
    if not column.lenient:
        return [], value
    # Compared as rounded: the last second of the year 9999 may be rounded out of it.
    first, beyond = (_FIRST, _BEYOND) if base == "timestamptz" else ("0001-01-01", "10000-01-01")
    inside = f"{value} >= {literal(first)}::{base} and {value} < {literal(beyond)}::{base}"
    return [(f"not ({inside})", _OUTSIDE)], value


def _broken_number(column: Column, p: str) -> _Faults:
    return [] if column.lenient else [(f"{p} <> trunc({p})", literal("not a whole number"))]


def _no_fit(column: Column) -> str:
    return literal(f"does not fit {column.column_type.sql}")


def _key_condition(base: str, text: str) -> str | None:
    """Whether a capture is of the type, written as the type is; None when every text is."""
    if base == "text":
        return None
    if base == "uuid":
        return f"({text} ~ {literal(_UUID)})"
    least, most = _RANGES[base]
    return f"(case when {text} ~ {literal(_WHOLE)} then ({text})::numeric between {least} and {most} else false end)"
