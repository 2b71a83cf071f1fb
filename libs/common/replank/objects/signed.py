"""Single requests to an S3 store, signed by hand: for what is asked of it besides objects, and its exact answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree as ET

import urllib3
from minio.credentials.credentials import Credentials
from minio.error import S3Error
from minio.signer import sign_v4_s3
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from replank.errors import DependencyUnavailable

_REGION: Final = "us-east-1"
_TIMEOUT: Final = urllib3.Timeout(connect=5, read=30)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store said. ``code`` is S3's own word for an error (``AccessDenied``), and empty for a success."""

    status: int
    code: str
    headers: Mapping[str, str]
    body: bytes


class SignedRequests:
    """Requests of one account. Blocks; no request is repeated. Close it, or use it as ``with``."""

    def __init__(self, url: str, access_key: str, secret_key: str, *, region: str = _REGION) -> None:
        self.url = url.rstrip("/")
        self._credentials = Credentials(access_key, secret_key)
        self._region = region
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.clear()

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """One request; ``path`` begins with a slash. Raises `DependencyUnavailable` when there is no answer."""
        parameters = f"?{urlencode(query, quote_via=quote)}" if query else ""
        url = urlsplit(f"{self.url}{quote(path)}{parameters}")
        digest = hashlib.sha256(body).hexdigest()
        now = datetime.now(UTC)
        told = {
            **(headers or {}),
            "Host": url.netloc,
            "x-amz-content-sha256": digest,
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
        }
        signed = sign_v4_s3(
            method=method,
            url=url,
            region=self._region,
            headers={**told},
            credentials=self._credentials,
            content_sha256=digest,
            date=now,
        )
        try:
            response = self._pool.request(
                method, url.geturl(), body=body, headers={**told, "Authorization": str(signed["Authorization"])}
            )
        except (HTTPError, OSError) as error:
            raise DependencyUnavailable(
                "object store",
                f"the object store {self.url} does not answer ({type(error).__name__})",
                fix="check that it runs and that its URL is right",
            ) from error
        return Answer(response.status, _code(response), response.headers, response.data)


def _code(response: BaseHTTPResponse) -> str:
    if response.status < 300:
        return ""
    try:
        return S3Error.fromxml(response).code or f"HTTP {response.status}"
    except (ET.ParseError, UnicodeDecodeError):
        # Not S3's, or the answer to a HEAD, which has no body.
        return f"HTTP {response.status}"
