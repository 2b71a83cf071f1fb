"""What is sent: real schemas, schemas of so many fields, and a content of any size that takes no memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random
from typing import Any, Final

MIB: Final = 1 << 20

_TYPES: Final = ("string", "integer", "number", "boolean")
_FORMATS: Final = ("date-time", "uri", "email", "uuid")
_SEED: Final = 5


@cache
def real_schemas() -> Mapping[str, bytes]:
    """The schemas that the package check-jsonschema ships, by their names: 26 of 2 kB to 2.3 MB, 215 kB on average."""
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return {file.name.removesuffix(".json"): file.read_bytes() for file in files}


@cache
def field_names() -> Sequence[str]:
    """The names that the properties of the real schemas have."""
    names: dict[str, None] = {}

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            properties = value.get("properties")
            if isinstance(properties, dict):
                names.update(dict.fromkeys(name for name in properties if name.isascii() and name.isalnum()))
            for member in value.values():
                collect(member)
        elif isinstance(value, list):
            for item in value:
                collect(item)

    for text in real_schemas().values():
        collect(json.loads(text))
    return list(names)


def real(number: int, which: object) -> tuple[str, bytes]:
    """One of the real schemas, in turns: its name, and its text with a comment that makes it unlike every other one."""
    schemas = real_schemas()
    name = list(schemas)[number % len(schemas)]
    text = schemas[name].strip()
    return name, text[:-1] + f',"$comment":"bench {which}"}}'.encode()


def of_fields(count: int, which: object) -> bytes:
    """A schema of so many fields, with descriptions, as people write them; another one for each ``which``."""
    random = Random(f"{_SEED} {which}")
    properties: dict[str, Any] = {}
    for name in random.sample(field_names(), count):
        kind = random.choice(_TYPES)
        field: dict[str, Any] = {"type": kind, "description": " ".join(random.sample(field_names(), 6))}
        if kind == "string":
            field["format"] = random.choice(_FORMATS)
        properties[name] = field
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"https://schemas.example/bench/{count}/{which}",
        "type": "object",
        "properties": properties,
        "required": list(properties)[: count // 2],
    }
    return json.dumps(schema, indent=2).encode()


@dataclass(frozen=True, slots=True)
class Large:
    """An array of records, so many MiB of it: each block is made as it is sent, and can be made again by its number."""

    mib: int

    @property
    def size(self) -> int:
        return self.mib * MIB

    def block(self, number: int) -> bytes:
        """The ``number``-th MiB."""
        head = f'{"[" if number == 0 else ","}{{"block": {number}}}'.encode()
        end = b"]" if number == self.mib - 1 else b"\n"
        body = _records()
        return head + body + b" " * (MIB - len(head) - len(body) - len(end)) + end

    async def blocks(self) -> AsyncIterator[bytes]:
        for number in range(self.mib):
            yield self.block(number)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for number in range(self.mib):
            digest.update(self.block(number))
        return digest.hexdigest()


@cache
def _records() -> bytes:
    """Nearly a MiB of records. Frames are compressed one by one, so that the next one's being alike changes nothing."""
    random = Random(_SEED)
    records: list[bytes] = []
    size = 0
    while size < MIB - 1024:
        record = {
            "id": f"{random.getrandbits(128):032x}",
            "name": random.choice(field_names()),
            "amount": round(random.uniform(0, 10_000), 2),
            "paid": random.random() < 0.5,
            "tags": random.sample(field_names(), 3),
        }
        records.append(b"," + json.dumps(record).encode())
        size += len(records[-1])
    return b"".join(records)
