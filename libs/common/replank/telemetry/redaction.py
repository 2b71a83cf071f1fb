"""Secrets and row data taken out of whatever is logged or traced.

Two rules: the value of a key that names a secret is never shown, and text loses the forms in which secrets and row
data are known to turn up in it: passwords in DSNs and DDL, bearer tokens, presigned URLs, and the values that database
drivers and validators quote in their error messages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

HIDDEN: Final = "[redacted]"

_SECRET_KEY: Final = re.compile(
    r"passw|passphrase|secret|token|authori[sz]ation$|cookie|credential|api_?key|access_?key|private_?key|signature",
    re.IGNORECASE,
)
# Names that match the above and are no secrets.
_PUBLIC_KEYS: Final = frozenset({"fencing_token", "lease_token", "token_count"})

_PATTERNS: Final = (
    # scheme://user:password@host
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/]*@", re.IGNORECASE), rf"\1:{HIDDEN}@"),
    # password=…, secret: …, PASSWORD '…', "token": "…"; also as a query parameter
    (
        re.compile(
            r"""((?:password|passwd|secret|secret_?key|access_?token|refresh_?token|api_?key|x-amz-[a-z-]*signature"""
            r"""|x-amz-credential|x-amz-security-token)["']?\s*[=:]?\s*)(?:E?'(?:[^']|'')*'|"[^"]*"|(?<=[=:])[^\s&,;)'"]+"""
            r"""|(?<=[=:]\s)[^\s&,;)'"]+)""",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"((?:^|[?&])(?:token|key|sig|signature|code)=)[^\s&#]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    # A JWT, wherever it stands.
    (re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), HIDDEN),
    # Postgres: Key (email)=(ann@example.org) already exists. / Failing row contains (…).
    (re.compile(r"(Key \([^)]*\)=)\(.*\)( already| is | conflicts)"), rf"\1({HIDDEN})\2"),
    (re.compile(r"(Failing row contains )\(.*\)", re.DOTALL), rf"\1({HIDDEN})"),
    (re.compile(r"(invalid input syntax for type [^:]+: )\".*?\"(?=$|\n|\s)", re.DOTALL), rf"\1{HIDDEN}"),
    # asyncpg: invalid input for query argument $1: 'value' (expected str, got int)
    (
        re.compile(r"(invalid input for query argument \$\d+(?: in element #\d+ of executemany\(\) sequence)?: ).*"),
        rf"\1{HIDDEN}",
    ),
    # pydantic: [type=int_type, input_value='value', input_type=str]
    (re.compile(r"input_value=.*?(, input_type=)", re.DOTALL), rf"input_value={HIDDEN}\1"),
)
# Text without any of these has nothing to hide: most text, and one search instead of nine.
_SUSPECT: Final = re.compile(
    r"://[^\s/]*@|passw|secret|token|api_?key|x-amz-|(?:^|[?&])(?:key|sig|code)|bearer|basic |eyJ"
    r"|\)=\(|failing row|invalid input|input_value=",
    re.IGNORECASE,
)


def redact_text(text: str) -> str:
    """The text without the secrets and row data that can be recognised in it."""
    if not _SUSPECT.search(text):
        return text
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def names_secret(key: str) -> bool:
    """Whether a value of that name is to be hidden, whatever it is."""
    return _SECRET_KEY.search(key) is not None and key not in _PUBLIC_KEYS


def redact(value: Any, *, depth: int = 6) -> Any:  # noqa: PLR0911 - one kind of value each
    """The value with secrets taken out of it, to a ``depth`` of nested mappings and sequences; deeper ones are hidden.

    Bytes are shown as their length: they are payloads more often than not.
    """
    if isinstance(value, str):
        return redact_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if depth == 0:
        return HIDDEN
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if names_secret(str(key)) else redact(inner, depth=depth - 1) for key, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(inner, depth=depth - 1) for inner in value]
    return redact_text(str(value))
