"""YAML as data, with the line of every place in it.

The subset that JSON has: keys are texts whatever they look like (``null:`` and ``on:`` are names in a mapping), of the
plain scalars only ``null``, ``true``, ``false`` and numbers are other than texts (``no`` and ``2024-01-01`` are texts),
a key may not occur twice, and there are neither aliases nor tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

Place = tuple[str | int, ...]
"""Where something is: keys, and indexes from 0."""

_NULL: Final = re.compile(r"(?:null|~)?\Z")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9]\d*)\Z")
_FLOAT: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?\Z")


@dataclass(slots=True)
class Document:
    """What was read."""

    data: Any
    lines: dict[Place, int] = field(default_factory=dict)
    """The line, from 1, at which each place begins."""
    faults: list[tuple[Place, str]] = field(default_factory=list)
    """What is wrong with it as a document, by place."""

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest one around it that is there."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read(text: str) -> Document:
    """Read one document. Raises `yaml.YAMLError` for what is not YAML at all."""
    document = Document(None)
    root = yaml.compose(text, Loader=_Loader)
    if root is not None:
        document.data = _value(root, (), document)
    return document


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="an alias (*name): write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


def _value(node: yaml.Node, place: Place, document: Document) -> Any:
    document.lines.setdefault(place, node.start_mark.line + 1)
    match node:
        case yaml.MappingNode():
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    document.faults.append((place, "a key must be a text"))
                    continue
                inner = (*place, key_node.value)
                document.lines[inner] = key_node.start_mark.line + 1
                if key_node.value in result:
                    document.faults.append((inner, "stands there twice"))
                result[key_node.value] = _value(value_node, inner, document)
            return result
        case yaml.SequenceNode():
            return [_value(item, (*place, index), document) for index, item in enumerate(node.value)]
        case yaml.ScalarNode():
            return _scalar(node, place, document)
        case _:
            raise AssertionError(node)


def _scalar(node: yaml.ScalarNode, place: Place, document: Document) -> Any:
    text: str = node.value
    if node.tag not in {"tag:yaml.org,2002:str", *_IMPLICIT_TAGS}:
        document.faults.append((place, f"a tag ({node.tag}): write a plain value"))
    if node.style is not None:
        return text
    if _NULL.match(text):
        return None
    if text in {"true", "false"}:
        return text == "true"
    if _INTEGER.match(text):
        return int(text)
    return float(text) if _FLOAT.match(text) else text


# What PyYAML makes of plain scalars by itself, which is more than is meant here.
_IMPLICIT_TAGS: Final = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "timestamp", "merge", "value")
)
