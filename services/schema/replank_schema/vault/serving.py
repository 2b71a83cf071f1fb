"""Answering with a content: ranges, entity tags, and as it is stored for who takes zstd (RFC 9110, RFC 9530)."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from replank.http import Problem
from replank.objects import AccessDenied, BucketMissing, ObjectNotFound
from replank_schema.vault import contents
from replank_schema.vault.model import Blob
from replank_schema.vault.reads import Held
from replank_schema.vault.vault import Vault

_MEDIA_TYPES: Final = {"schema": "application/schema+json", "document": "application/json"}
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_DIGEST: Final = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_ETAG: Final = re.compile(r'(?:W/)?"([^"]*)"')

#: How errors of the object store are answered: status, slug, what it is, what to do.
STORE_PROBLEMS: Final[dict[type[Exception], tuple[int, str, str, str]]] = {
    ObjectNotFound: (
        500,
        "content-missing",
        "the content is lost",
        "run a consistency check and repair it, or send the content again",
    ),
    AccessDenied: (
        503,
        "object-store-refuses",
        "the object store refuses the vault",
        "tell the operators: the vault's account may not do this in its bucket",
    ),
    BucketMissing: (
        503,
        "object-store-refuses",
        "the object store has no such bucket",
        "tell the operators: the vault's bucket is not there",
    ),
}


@dataclass(frozen=True, slots=True)
class Part:
    """``length`` bytes of a content from ``first``."""

    first: int
    length: int


class _Streaming(StreamingResponse):
    """Opens what it streams before it answers, so that what is not there is answered as an error, and closes it."""

    def __init__(
        self, opening: AbstractAsyncContextManager[AsyncIterator[bytes]], status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(iter(()), status_code=status, headers=headers)
        self._opening = opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._opening as chunks:
                self.body_iterator = chunks
                await super().__call__(scope, receive, send)
        except tuple(STORE_PROBLEMS) as error:
            # The route is over by now, and whoever turns its errors into problems.
            raise store_problem(error) from error


def store_problem(error: Exception) -> Problem:
    """The problem for one of the errors of the object store that `STORE_PROBLEMS` knows."""
    status, slug, what, fix = STORE_PROBLEMS[type(error)]
    return Problem(status, slug, what, fix=fix, headers={"retry-after": "2"} if status == 503 else {})


def content_response(request: Request, vault: Vault, found: Blob | Held) -> Response:
    """The content, or the part of it that the request asks for, or that it has not changed."""
    blob = found.blob if isinstance(found, Held) else found
    headers = {
        "etag": f'"{blob.sha256}"',
        "vary": "accept-encoding",
        "accept-ranges": "bytes",
        # Whatever a version is, it is for ever.
        "cache-control": "private, no-cache",
        "content-type": _MEDIA_TYPES[blob.kind],
        "repr-digest": f"sha-256=:{base64.b64encode(bytes.fromhex(blob.sha256)).decode()}:",
    }
    tags = _ETAG.findall(request.headers.get("if-none-match", ""))
    part = _part(request, blob)
    as_stored = part is None and _takes_zstd(request) and not isinstance(found, Held)
    if as_stored:
        # Other bytes, so another tag; and the digest is that of the bytes that are sent encoded.
        headers["etag"] = f'"{blob.sha256}-zstd"'
        headers["content-encoding"] = "zstd"
        del headers["repr-digest"]
    if headers["etag"].strip('"') in tags or request.headers.get("if-none-match", "").strip() == "*":
        return Response(status_code=304, headers={name: headers[name] for name in ("etag", "vary", "cache-control")})
    status = 200
    length = blob.stored_size if as_stored else blob.size
    if part is not None:
        status, length = 206, part.length
        headers["content-range"] = f"bytes {part.first}-{part.first + part.length - 1}/{blob.size}"
        del headers["repr-digest"]
    headers["content-length"] = str(length)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    if isinstance(found, Held):
        data = found.data if part is None else found.data[part.first : part.first + part.length]
        return Response(data, status_code=status, headers=headers)
    if as_stored:
        return _Streaming(contents.reading_stored(vault, blob), status, headers)
    if part is None:
        return _Streaming(contents.reading(vault, blob), status, headers)
    return _Streaming(contents.reading(vault, blob, first=part.first, length=part.length), status, headers)


def object_response(vault: Vault, key: str, media_type: str) -> Response:
    """An object as it is."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[AsyncIterator[bytes]]:
        async with vault.objects.get(key) as body:
            yield aiter(body)

    return _Streaming(opening(), 200, {"content-type": media_type})


def declared_digest(request: Request) -> str | None:
    """The SHA-256 that a request says its content has, as hexadecimal digits. Raises the 400 `Problem`."""
    for header in ("content-digest", "repr-digest"):
        if (text := request.headers.get(header)) is None:
            continue
        found = _DIGEST.search(text)
        if found is None:
            raise Problem(
                400,
                "digest-malformed",
                f"the header {header} has no SHA-256",
                fix="send sha-256=:<base64>: as in RFC 9530, or leave it out",
            )
        return base64.b64decode(found[1]).hex()
    return None


def expected_revision(request: Request) -> int:
    """The revision of ``If-Match``. Raises the 428 `Problem` where there is none, 400 for another tag."""
    revision = offered_revision(request)
    if revision is None:
        raise Problem(
            428,
            "precondition-required",
            "the request does not say which revision it is meant for",
            fix='send If-Match: "<revision>", as the etag of the schema has it',
        )
    return revision


def offered_revision(request: Request) -> int | None:
    """The revision of ``If-Match``, if there is one."""
    text = request.headers.get("if-match")
    if text is None:
        return None
    found = _ETAG.fullmatch(text.strip())
    if found is None or not found[1].isdecimal() or len(found[1]) > 9:
        raise Problem(
            400, "if-match-malformed", "If-Match is no revision of a schema", fix='send one, such as If-Match: "3"'
        )
    return int(found[1])


def _takes_zstd(request: Request) -> bool:
    for coding in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() == "zstd" and weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}:
            return True
    return False


def _part(request: Request, blob: Blob) -> Part | None:
    """The one range that is asked for; None where all of it is, as for more ranges than one."""
    text = request.headers.get("range")
    if text is None or request.headers.get("if-range", f'"{blob.sha256}"') != f'"{blob.sha256}"':
        return None
    found = _RANGE.fullmatch(text.strip().replace(" ", ""))
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":
        length = min(int(last), blob.size)
        part = Part(blob.size - length, length)
    else:
        end = blob.size - 1 if last == "" else min(int(last), blob.size - 1)
        if last != "" and int(last) < int(first):
            return None
        part = Part(int(first), end - int(first) + 1)
    if part.length <= 0 or part.first >= blob.size:
        raise Problem(
            416,
            "range-not-satisfiable",
            f"the content has {blob.size} bytes",
            fix="ask for a range within it",
            headers={"content-range": f"bytes */{blob.size}"},
        )
    return part
