"""What a JSON text is, found while it streams by: schema or document, how many fields, which names.

The text is never held: memory is bounded by the constants below, whatever the text.

**What is refused** (:class:`NotJson`): everything that RFC 8259 does not allow, and of what it allows: a byte order
mark, escapes of lone surrogates (``"\\ud800"``: no Unicode text, so Postgres and most parsers cannot hold them),
nesting deeper than :data:`DEPTH_LIMIT`, integers of more than 4,300 digits and exponents of more than 18 (few readers
can read them), and a single value of more than about :data:`VALUE_LIMIT` bytes. A duplicate member is allowed, and
counts once.

**What a schema is.** A text is a schema if its top level is an object and one of these holds:

1. ``$schema`` names a dialect of JSON Schema: a URL of json-schema.org. (Another URL is not enough: many documents name
   with ``$schema`` the schema that they obey.)
2. ``type`` names types of JSON Schema, and one of the keywords of structure is there with a value of the right shape
   (``properties`` an object, ``items`` an object or an array …).
3. A keyword of structure other than ``items`` is there with a value of the right shape, and every member of the top
   level is a keyword of JSON Schema, or starts with ``$`` or ``x-``.

Everything else is a document: also ``true``, ``false`` and ``{}``, which are schemas that say nothing.

**What a field is.** Of a schema: a member of an object ``properties`` that stands where a schema may have one, however
deep, also below ``$defs``, ``items``, ``allOf`` …, but not inside ``enum``, ``const``, ``default`` or ``examples``.
Of a document: a path of members; the items of an array share one path (``orders[].lines[].sku``).
"""

from __future__ import annotations

import ast
import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ijson.backends import yajl2_c
from ijson.common import JSONError
from ijson.utils import sendable_list

from replank.errors import ReplankError

Kind = Literal["schema", "document"]

DEPTH_LIMIT: Final = 512
"""How deep objects and arrays may stand in each other."""

VALUE_LIMIT: Final = 16 * 1024 * 1024
"""Bytes after which a text must have come to the next member, value or bracket."""

FIELDS_LIMIT: Final = 50_000
"""Fields after which counting stops: ``fields_exact`` is then false."""

FIELDS_MEMORY: Final = 4 * 1024 * 1024
"""Characters of names (and arrays on paths) that counting may hold; beyond them it stops as well."""

NAMES_LIMIT: Final = 2_000
"""Searchable names of one text."""

NAMES_BYTES: Final = 64 * 1024
"""Bytes (UTF-8) that the searchable names of one text have together."""

NAME_BYTES: Final = 1024
"""Bytes (UTF-8) of the longest name that is searchable."""

# The text is parsed in pieces of this size, however it comes. It bounds the events in memory; and the parser reads a
# value that a piece leaves unfinished from its start again with the next one: small pieces would make that quadratic.
_WINDOW: Final = 256 * 1024
_TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})

_SCHEMA: Final = "schema"  # at this position stands a schema, or an array of them
_SCHEMAS: Final = "schemas"  # an object whose members are schemas
_PROPERTIES: Final = "properties"  # the same, and its members are fields
_ROOT: Final = "root"  # the top level
_Position = str | set[str] | None  # a set: inside `properties`, the names so far. None: nothing below is a schema.

_APPLICATORS: Final[dict[str, str]] = {
    "properties": _PROPERTIES,
    **dict.fromkeys(("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties"), _SCHEMAS),
    **dict.fromkeys(
        (
            *("additionalItems", "additionalProperties", "allOf", "anyOf", "contains", "contentSchema", "else"),
            *("extends", "if", "items", "not", "oneOf", "prefixItems", "propertyNames", "then"),
            *("unevaluatedItems", "unevaluatedProperties"),
        ),
        _SCHEMA,
    ),
}
# The keyword's value must be an object, or may be an object or an array, to make a schema of the text.
_STRUCTURE: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), ("start_map",)),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), ("start_array",)),
    "items": ("start_map", "start_array"),
}
_KEYWORDS: Final = frozenset(
    {
        *_APPLICATORS,
        *("const", "contentEncoding", "contentMediaType", "default", "dependentRequired", "deprecated", "description"),
        *("enum", "examples", "exclusiveMaximum", "exclusiveMinimum", "format", "id", "maxContains", "maxItems"),
        *("maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum"),
        *("multipleOf", "pattern", "readOnly", "required", "title", "type", "uniqueItems", "writeOnly"),
    }
)
_DIALECT: Final = re.compile(r"https?://json-schema\.org/")


class NotJson(ReplankError):
    """A text that is not JSON, or not JSON that can be kept; the module says what is refused.

    ``byte`` counts from 0, ``line`` from 1. An error of syntax is near them; too deep a nesting and too long a number
    are within 256 KiB after them; others are exactly there.
    """

    def __init__(self, what: str, *, byte: int, line: int) -> None:
        super().__init__(f"not JSON at byte {byte} (line {line}): {what}", fix="send one JSON value, as RFC 8259 says")
        self.what = what
        self.byte = byte
        self.line = line


@dataclass(frozen=True, slots=True)
class Facts:
    """What a text is.

    ``fields`` are names worth a search (properties of a schema, members of a document), distinct, in the order in which
    they first appear, within the limits of this module; without empty ones and those that Postgres cannot hold (NUL).
    """

    kind: Kind
    field_count: int
    fields_exact: bool
    fields: Sequence[str]


class Scanner:
    """Finds the facts of one text. Not thread-safe; :meth:`feed` is CPU work: give large chunks to a thread."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = sendable_list()
        self._parser = yajl2_c.basic_parse_coro(self._events)
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._escapes = _Escapes()
        self._walk = _Walk()
        self._byte = 0
        self._line = 1
        self._quiet = 0  # bytes since a piece had an event
        self._waiting = bytearray()
        self._failed = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, however the text is cut; what is wrong in them is found within 256 KiB, or by `finish`.

        Raises:
            NotJson: the text so far cannot become JSON that can be kept. The scanner is of no more use.
        """
        self._require_unfailed()
        self._waiting += chunk
        if len(self._waiting) < _WINDOW:
            return
        text = bytes(self._waiting)
        whole = len(text) - len(text) % _WINDOW
        self._waiting = bytearray(text[whole:])
        for start in range(0, whole, _WINDOW):
            self._take(text[start : start + _WINDOW])

    def finish(self) -> Facts:
        """The facts of the whole text.

        Raises:
            NotJson: the text is no JSON that can be kept, ends early, or is empty.
        """
        self._require_unfailed()
        if self._waiting:
            self._take(bytes(self._waiting))
        if self._byte == 0:
            raise self._refuse("the text is empty")
        self._events.clear()
        try:
            self._utf8.decode(b"", final=True)
            self._parser.send(b" ")  # a number ends with what comes after it
        except (JSONError, UnicodeDecodeError) as error:
            raise self._refuse(_GARBAGE if _GARBAGE in str(error) else _EARLY_END) from error
        except (SystemError, ArithmeticError) as error:
            raise self._refuse(_UNREADABLE_NUMBER) from error
        self._walk.take(self._events)
        if not self._walk.complete or self._escapes.begun:
            raise self._refuse(_EARLY_END)
        try:
            self._parser.send(b'"')  # the parser forgives a second value that is unfinished, but not one that ends
        except JSONError as error:
            raise self._refuse(_GARBAGE) from error
        return self._walk.facts()

    def _require_unfailed(self) -> None:
        if self._failed:
            raise ValueError("this scanner has refused its text")

    def _take(self, piece: bytes) -> None:
        self._check_bytes(piece)
        self._events.clear()
        try:
            self._parser.send(piece)
        except JSONError as error:
            what, offset = _explain(error, piece)
            raise self._refuse(what, piece, offset) from error
        except (SystemError, ArithmeticError) as error:
            # The parser's numbers are Python's. The event of one that Python refuses has no value: it must not be read.
            raise self._refuse(_UNREADABLE_NUMBER, piece) from error
        if not self._walk.take(self._events):
            raise self._refuse(f"it is nested deeper than {DEPTH_LIMIT}", piece)
        self._byte += len(piece)
        self._line += piece.count(b"\n")
        self._quiet = 0 if self._events else self._quiet + len(piece)
        if self._quiet >= VALUE_LIMIT:
            raise self._refuse(f"a single value is longer than {VALUE_LIMIT} bytes")

    def _check_bytes(self, piece: bytes) -> None:
        """Refuse what the parser lets pass, or reads as something else."""
        if self._byte == 0 and piece.startswith(b"\xef"):
            raise self._refuse("it starts with a byte order mark, or with a character that is no JSON")
        try:
            self._utf8.decode(piece)
        except UnicodeDecodeError as error:
            # The decoder counts from what it kept of the piece before.
            offset = max(0, error.start - (len(error.object) - len(piece)))
            raise self._refuse("the text is not UTF-8", piece, offset) from error
        for blank in (b"\x0b", b"\x0c"):
            if (at := piece.find(blank)) >= 0:
                raise self._refuse(f"control character {blank[0]:#04x}", piece, at)
        if (lone := self._escapes.take(piece)) is not None:
            raise self._refuse("an escape of a lone surrogate", piece, max(0, lone))

    def _refuse(self, what: str, piece: bytes = b"", offset: int = 0) -> NotJson:
        self._failed = True
        return NotJson(what, byte=self._byte + offset, line=self._line + piece.count(b"\n", 0, offset))


_GARBAGE: Final = "trailing garbage"  # in the parser's words
_EARLY_END: Final = "the text ends early"
_UNREADABLE_NUMBER: Final = "a number has too many digits"
_CARET: Final = 40  # the column of the second line of the parser's message below which its caret stands


def _explain(error: JSONError, piece: bytes) -> tuple[str, int]:
    """What the parser says, and where in ``piece`` it says it.

    It knows the place, but tells only the text around it: 30 bytes on each side, line ends as blanks.
    """
    text = str(error)
    message = ast.literal_eval(text) if text.startswith(("b'", 'b"')) else text.encode()
    what, _, rest = message.partition(b"\n")
    excerpt, _, _ = rest.partition(b"\n")
    before = excerpt[:_CARET].lstrip(b" ")
    around = before + excerpt[_CARET:].rstrip(b" ")
    found = piece.translate(_LINE_ENDS_AS_BLANKS).find(around)
    return what.decode(errors="replace").removesuffix("."), max(0, found) + (len(before) if found >= 0 else 0)


_LINE_ENDS_AS_BLANKS: Final = bytes.maketrans(b"\r\n", b"  ")


class _Escapes:
    """Finds escapes of surrogates that are no pair, across pieces."""

    _ESCAPE: Final = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)

    def __init__(self) -> None:
        self.begun = b""  # an escape that has begun at the end of what was taken
        self._high = False  # what was taken, without that, ends with a high surrogate

    def take(self, piece: bytes) -> int | None:
        """Where in ``piece`` a lone surrogate is found; below 0: in the one before. None: nowhere."""
        if not self.begun and not self._high and b"\\" not in piece:
            return None
        text = self.begun + piece
        shift = len(self.begun)
        text, self.begun = _cut_begun(text)
        if not self._high and b"\\ud" not in text and b"\\uD" not in text:
            return None
        low_due = 0 if self._high else None  # where the second half of a pair must stand
        for escape in self._ESCAPE.finditer(text):
            unit = int(escape[1], 16) if escape[1] else 0
            is_low = 0xDC00 <= unit <= 0xDFFF
            if low_due is not None:
                if not is_low or escape.start() != low_due:
                    return low_due - shift
                low_due = None
            elif is_low:
                return escape.start() - shift
            elif 0xD800 <= unit <= 0xDBFF:
                low_due = escape.end()
        if low_due is not None and low_due != len(text):
            return low_due - shift
        self._high = low_due is not None
        return None


def _cut_begun(text: bytes) -> tuple[bytes, bytes]:
    """``text`` up to the escape that has begun at its end, if any, and that."""
    last = text.rfind(b"\\", max(0, len(text) - 5))
    if last < 0:
        return text, b""
    backslashes = last + 1 - len(text[: last + 1].rstrip(b"\\"))
    begun = backslashes % 2 == 1 and (last + 1 == len(text) or text[last + 1 : last + 2] == b"u")
    return (text[:last], text[last:]) if begun else (text, b"")


class _Names:
    """Distinct names within the limits, in the order of their first appearance."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._room = NAMES_BYTES

    def add(self, name: str) -> None:
        if name in self._names or len(self._names) >= NAMES_LIMIT or len(name) > self._room or not name:
            return
        size = len(name.encode())
        if size > min(NAME_BYTES, self._room) or "\0" in name:
            return
        self._names[name] = None
        self._room -= size

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)


_Paths = dict[str | None, "_Paths"]  # the members below a path; None: the items of the array that stands there


class _Walk:
    """Follows the parser's events as a schema and as a document at once, for which one it is shows at the end only."""

    def __init__(self) -> None:
        # Where the walk is. In an array, `after` is what its items are, and stays so from one to the next; in an object
        # every member sets it anew: one assignment serves both when a container ends.
        self._here: _Paths = {}
        self._after: _Paths = self._here
        self._position: _Position = None
        self._position_after: _Position = _ROOT
        self._outer: list[_Paths] = []
        self._outer_positions: list[_Position] = []
        self._top = _Top()
        self._begun = False

        self._beyond: _Paths = {}  # stands for all paths that are not counted: stays empty
        self._path_count = 0
        self._path_room = FIELDS_MEMORY
        self._paths_exact = True
        self._path_names = _Names()

        self._property_count = 0
        self._property_room = FIELDS_MEMORY
        self._properties_exact = True
        self._property_names = _Names()

    def take(self, events: list[tuple[str, Any]]) -> bool:  # noqa: C901, PLR0912 - one loop, for its speed
        """Follow ``events``. False: they lead deeper than is allowed."""
        here, after, outer = self._here, self._after, self._outer
        position, position_after, outer_positions = self._position, self._position_after, self._outer_positions
        top = self._top
        self._begun = self._begun or bool(events)
        for event, value in events:
            if event == "map_key":
                if position is not None:
                    if position == _ROOT:
                        top.member(value)
                        position_after = _APPLICATORS.get(value)
                    elif position == _SCHEMA:
                        position_after = _APPLICATORS.get(value)
                    else:
                        position_after = _SCHEMA
                        if position.__class__ is set:
                            self._add_property(position, value)
                path = here.get(value)
                after = self._add_path(here, value) if path is None else path
            elif event == "string" or event == "number":  # noqa: PLR1714 - faster than a set
                if top.curious:
                    top.scalar(value)
            elif event == "start_map":
                outer.append(here)
                outer_positions.append(position)
                if len(outer) > DEPTH_LIMIT:
                    return False
                if top.curious:
                    top.container(event, len(outer))
                here = after
                position = set() if position_after == _PROPERTIES else position_after
            elif event == "end_map" or event == "end_array":  # noqa: PLR1714
                here = after = outer.pop()
                position = position_after = outer_positions.pop()
                if len(outer) == 1:
                    top.curious = False
            elif event == "start_array":
                outer.append(here)
                outer_positions.append(position)
                if len(outer) > DEPTH_LIMIT:
                    return False
                if top.curious:
                    top.container(event, len(outer))
                path = after.get(None)
                here = after = self._add_path(after, None) if path is None else path
                position = position_after = _SCHEMA if position_after == _SCHEMA else None
            elif top.curious:  # a boolean or null
                top.scalar(value)
        self._here, self._after = here, after
        self._position, self._position_after = position, position_after
        return True

    @property
    def complete(self) -> bool:
        """Whether one value has begun and ended."""
        return self._begun and not self._outer

    def facts(self) -> Facts:
        if self._top.is_schema():
            return Facts("schema", self._property_count, self._properties_exact, tuple(self._property_names))
        return Facts("document", self._path_count, self._paths_exact, tuple(self._path_names))

    def _add_path(self, parent: _Paths, member: str | None) -> _Paths:
        if not self._paths_exact:
            return self._beyond
        cost = 64 if member is None else len(member)
        if self._path_room < cost or (member is not None and self._path_count == FIELDS_LIMIT):
            self._paths_exact = False
            return self._beyond
        self._path_room -= cost
        if member is not None:
            self._path_count += 1
            self._path_names.add(member)
        added: _Paths = {}
        parent[member] = added
        return added

    def _add_property(self, names: set[str], name: str) -> None:
        if name in names or not self._properties_exact:
            return
        if self._property_room < len(name) or self._property_count == FIELDS_LIMIT:
            self._properties_exact = False
            return
        self._property_room -= len(name)
        self._property_count += 1
        self._property_names.add(name)
        names.add(name)


class _Top:
    """What the members of the top level say about what the text is."""

    def __init__(self) -> None:
        self.curious = False  # whether the value that comes matters
        self._member = ""
        self._dialect = False
        self._typed: bool | None = None  # `type` names types of JSON Schema; None: there is no `type`
        self._structures: set[str] = set()
        self._foreign = False

    def member(self, name: str) -> None:
        self._member = name
        self.curious = name in _STRUCTURE or name in ("$schema", "type")
        self._foreign = self._foreign or not (name in _KEYWORDS or name.startswith(("$", "x-")))

    def scalar(self, value: object) -> None:
        """A scalar that is the member's value, or stands in the array which is."""
        if self._member == "$schema":
            self._dialect = self._dialect or (isinstance(value, str) and _DIALECT.match(value) is not None)
        elif self._member == "type":
            self._typed = self._typed is not False and isinstance(value, str) and value in _TYPES

    def container(self, event: str, depth: int) -> None:
        if self._member in _STRUCTURE and depth == 2 and event in _STRUCTURE[self._member]:
            self._structures.add(self._member)
        elif self._member == "type" and (event == "start_map" or depth > 2):
            self._typed = False
        self.curious = self._member == "type" and event == "start_array"

    def is_schema(self) -> bool:
        if self._dialect:
            return True
        if self._typed:
            return bool(self._structures)
        return self._typed is None and not self._foreign and bool(self._structures - {"items"})
