"""What is sent to a schema service with a vault, and by whom."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, Final

import httpx

ADA: Final = "user:ada"
BEN: Final = "user:ben"
EVERYTHING: Final = tuple(
    (ADA, relation, f"vault:{mode}") for mode in ("standard", "pro") for relation in ("admin", "publish", "view")
)

CUSTOMER: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "customerId": {"type": "string"},
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"type": "string"}}},
    },
    "required": ["customerId"],
}


def text_of(content: Any) -> bytes:
    return json.dumps(content).encode()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def content_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem document that an answer has to be."""
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:replank:problem:{slug}"
    assert document["detail"]
    return document


async def upload(
    client: httpx.AsyncClient, name: str, content: Any = CUSTOMER, *, at: str = "/schemavault", **query: Any
) -> httpx.Response:
    """Publish a schema; ``content`` is bytes as they are, or anything else as JSON."""
    body = content if isinstance(content, bytes) else text_of(content)
    return await client.post(
        f"{at}/upload", params={"name": name, **query}, content=body, headers={"content-type": "application/json"}
    )


async def publish(
    client: httpx.AsyncClient, schema: dict[str, Any], content: Any, *, at: str = "/schemavault", **query: Any
) -> httpx.Response:
    """Publish the next version of a schema as it was answered."""
    body = content if isinstance(content, bytes) else text_of(content)
    headers = {"content-type": "application/json", "if-match": f'"{schema["revision"]}"'}
    return await client.post(f"{at}/{schema['id']}/versions", params=query, content=body, headers=headers)
