"""What is known of an object, and what a key and its metadata may be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from replank.objects.errors import InvalidKey, InvalidObject

# Longer names of one path segment are refused by stores that keep objects in a file system.
_MAX_SEGMENT_BYTES: Final = 255
_MAX_KEY_BYTES: Final = 1024
_UNSENDABLE: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_METADATA_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_METADATA_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
# S3 counts names and values together.
_MAX_METADATA_BYTES: Final = 2048


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One version of one object.

    ``size`` is in bytes. ``etag`` identifies the bytes of this version within the store; it is not a digest that means
    anything elsewhere. ``sha256`` (hexadecimal) is that of the whole object: always known after a put, and known from
    the store only for objects that fit into one request, since S3 keeps a digest of digests for the others.
    """

    key: str
    size: int
    etag: str
    sha256: str | None = None
    version_id: str | None = None
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    last_modified: datetime | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store was seen to do, by trying (`replank.objects.ObjectStore.probe`).

    ``conditional_put``: ``If-None-Match: *`` refuses to replace an object. ``conditional_multipart``: so it does when
    an upload in parts is completed. ``checksums``: a wrong SHA-256 is refused. ``versioning``, ``object_lock``:
    switched on for this bucket.
    """

    conditional_put: bool
    conditional_multipart: bool
    checksums: bool
    versioning: bool
    object_lock: bool


def check_key(key: str) -> str:
    """Return the key, or raise `InvalidKey`.

    Stricter than S3, so that a key means the same object in every store: no empty, ``.`` or ``..`` segment (so no
    leading, trailing or double slash), no control character, at most 1024 bytes of UTF-8, at most 255 a segment.
    """
    fault = _fault_of(key)
    if fault:
        raise InvalidKey(f"the object key {key[:80]!r} {fault}", fix="use names joined by single slashes")
    return key


def _fault_of(key: str) -> str | None:
    # `replace`, since lone surrogates (from a file name that is not UTF-8, for one) have no encoding.
    size = len(key.encode(errors="replace"))
    if not key:
        return "is empty"
    if _UNSENDABLE.search(key):
        return "has a control character or a lone surrogate"
    if size > _MAX_KEY_BYTES:
        return f"has {size} bytes, more than {_MAX_KEY_BYTES}"
    for segment in key.split("/"):
        if segment in {"", ".", ".."}:
            return "starts or ends with a slash, or has an empty, `.` or `..` segment"
        if len(segment.encode()) > _MAX_SEGMENT_BYTES:
            return f"has a segment of more than {_MAX_SEGMENT_BYTES} bytes"
    return None


def metadata_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    """The request headers of user metadata. Raises `InvalidObject`.

    Names are lower-case letters, digits and dashes, values printable ASCII: what HTTP carries unchanged everywhere.
    """
    size = 0
    for name, value in metadata.items():
        if not _METADATA_NAME.fullmatch(name):
            raise InvalidObject(
                f"the metadata name {name[:80]!r} is malformed", fix="use lower-case letters, digits and dashes"
            )
        if not _METADATA_VALUE.fullmatch(value):
            raise InvalidObject(
                f"the value of the metadata {name!r} is empty or not printable ASCII", fix="encode it, base64 for one"
            )
        size += len(name) + len(value)
    if size > _MAX_METADATA_BYTES:
        raise InvalidObject(
            f"the metadata has {size} bytes, more than {_MAX_METADATA_BYTES}",
            fix="keep it in an object beside this one",
        )
    return {f"x-amz-meta-{name}": value for name, value in metadata.items()}
