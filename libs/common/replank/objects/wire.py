"""One blocking S3 request per method, through minio-py: what runs in the threads.

minio-py signs, sends and parses; it neither retries nor pools more than told here (both are decided by the caller,
which knows what is safe to repeat). Requests that its public methods cannot express (a conditional put, a conditional
completion, a page of a listing, checksums) go through `Minio._execute`, the one private name that this module uses.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final, NoReturn, cast
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import ENABLED
from minio.datatypes import ListMultipartUploadsResult, parse_list_objects
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.versioningconfig import VersioningConfig
from minio.xml import findtext
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from replank.errors import ConfigurationError, DependencyUnavailable
from replank.objects.errors import (
    AccessDenied,
    BucketMissing,
    ChecksumMismatch,
    InvalidObject,
    KeyConflict,
    ObjectExists,
    ObjectNotFound,
    ObjectStoreError,
    Unsupported,
)
from replank.objects.model import ObjectInfo
from replank.objects.settings import ObjectStoreSettings

LIST_PAGE: Final = 1000

_DENIED: Final = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "XAdminUserNotFound",  # versitygw's name for an unknown access key
    }
)
_CORRUPT: Final = frozenset({"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
_CONFLICT: Final = frozenset({"ObjectParentIsFile", "ExistingObjectIsDirectory", "XMinioParentIsObject"})
_BUSY: Final = frozenset(
    {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "SlowDownWrite"}
)


class UploadMissing(ObjectStoreError):
    """The store does not know this upload (any more): it was completed or aborted."""


@dataclass(frozen=True, slots=True)
class Part:
    """One uploaded part, as the completion must name it."""

    number: int
    etag: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts that was neither completed nor aborted."""

    key: str
    upload_id: str
    started_at: datetime


class S3:
    """A bucket over the wire. Thread-safe. Every method blocks for one request and raises this package's errors."""

    def __init__(self, settings: ObjectStoreSettings) -> None:
        endpoint = urlsplit(settings.url)
        self.url = settings.url
        self.bucket = settings.bucket
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=settings.connect_timeout, read=settings.read_timeout),
            maxsize=settings.concurrency,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        )
        try:
            self._client = Minio(
                endpoint.netloc,
                access_key=settings.access_key.get_secret_value(),
                secret_key=settings.secret_key.get_secret_value(),
                secure=endpoint.scheme == "https",
                region=settings.region,
                http_client=self._pool,
            )
        except ValueError as error:
            raise ConfigurationError(f"the object store {settings.url} cannot be used: {error}") from error

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.clear()

    # --- objects ---

    def put(self, key: str, body: bytes | bytearray, headers: Mapping[str, str], sha256: bytes) -> ObjectInfo:
        """Store an object in one request; the store checks the digest."""
        response = self._send("PUT", key, body=body, headers={**headers, "x-amz-checksum-sha256": _base64(sha256)})
        return ObjectInfo(
            key=key,
            size=len(body),
            etag=_etag(response.headers),
            sha256=sha256.hex(),
            version_id=response.headers.get("x-amz-version-id"),
        )

    def open(
        self, key: str, *, first: int, last: int | None, version_id: str | None
    ) -> tuple[ObjectInfo, BaseHTTPResponse]:
        """Open an object for reading bytes ``first`` to ``last`` (inclusive; None: to the end).

        The caller owns the response: read it to the end and `release_conn`, or `close` it. ``ObjectInfo.size`` is that
        of the whole object.
        """
        ranged = first > 0 or last is not None
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if ranged:
            headers["Range"] = f"bytes={first}-{'' if last is None else last}"
        query = {"versionId": version_id} if version_id else {}
        response = self._send("GET", key, headers=headers, query=query, stream=True)
        if ranged and response.status != 206:
            response.close()
            raise Unsupported(f"the object store {self.url} ignores byte ranges")
        try:
            if ranged:
                size = int(response.headers["content-range"].rpartition("/")[2])
            else:
                size = int(response.headers["content-length"])
        except (KeyError, ValueError) as error:
            response.close()
            raise self._unavailable("answered without the object's size") from error
        return self._info(key, size, response.headers), response

    def stat(self, key: str, version_id: str | None) -> ObjectInfo:
        """What the store knows of an object."""
        query = {"versionId": version_id} if version_id else {}
        response = self._send("HEAD", key, headers={"x-amz-checksum-mode": "ENABLED"}, query=query)
        return self._info(key, int(response.headers.get("content-length", "0")), response.headers)

    def delete(self, key: str, version_id: str | None) -> None:
        """Delete an object; one that is not there is no error."""
        self._send("DELETE", key, query={"versionId": version_id} if version_id else {})

    def list(self, prefix: str, after: str, limit: int) -> Sequence[ObjectInfo]:
        """Up to ``limit`` objects (at most 1000) with keys that start with ``prefix`` and come after ``after``."""
        query = {
            "list-type": "2",
            "prefix": prefix,
            "max-keys": str(min(limit, LIST_PAGE)),
            "encoding-type": "url",
            "delimiter": "",
        }
        if after:
            query["start-after"] = after
        found, *_ = parse_list_objects(self._send("GET", query=query))
        return [
            ObjectInfo(
                key=item.object_name or "",
                size=item.size or 0,
                etag=item.etag or "",
                last_modified=item.last_modified,
            )
            for item in found
        ]

    def presign(self, method: str, key: str, expires: timedelta) -> str:
        """A signed URL. Computed here, without a request."""
        return str(self._client.get_presigned_url(method, self.bucket, key, expires=expires))

    # --- uploads in parts ---

    def create_upload(self, key: str, headers: Mapping[str, str]) -> str:
        """Begin an upload and return its id."""
        response = self._send(
            "POST", key, headers={**headers, "x-amz-checksum-algorithm": "SHA256"}, query={"uploads": ""}
        )
        upload_id = findtext(ET.fromstring(response.data), "UploadId")  # noqa: S314 - the store is trusted
        if not upload_id:
            raise self._unavailable("began an upload without naming it")
        return upload_id

    def upload_part(self, key: str, upload_id: str, number: int, body: bytes | bytearray) -> Part:
        """Store one part; the store checks the digest. Repeating it replaces the part."""
        digest = hashlib.sha256(body).digest()
        response = self._send(
            "PUT",
            key,
            body=body,
            headers={"x-amz-checksum-sha256": _base64(digest)},
            query={"partNumber": str(number), "uploadId": upload_id},
        )
        return Part(number, _etag(response.headers), digest)

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part], *, if_none_match: bool) -> ObjectInfo:
        """Make the parts an object, at once and whole. ``size`` of the answer is 0: the caller knows it."""
        root = ET.Element("CompleteMultipartUpload")
        for part in parts:
            element = ET.SubElement(root, "Part")
            ET.SubElement(element, "PartNumber").text = str(part.number)
            ET.SubElement(element, "ETag").text = f'"{part.etag}"'
            ET.SubElement(element, "ChecksumSHA256").text = _base64(part.sha256)
        headers = {"Content-Type": "application/xml"}
        if if_none_match:
            headers["If-None-Match"] = "*"
        response = self._send("POST", key, body=ET.tostring(root), headers=headers, query={"uploadId": upload_id})
        answer = ET.fromstring(response.data)  # noqa: S314 - the store is trusted
        # S3 may begin to answer 200 before it knows: then the error is in the body.
        if answer.tag.rpartition("}")[2] == "Error":
            self._raise(S3Error.fromxml(response), key)
        etag = findtext(answer, "ETag") or ""
        return ObjectInfo(key=key, size=0, etag=etag.strip('"'), version_id=response.headers.get("x-amz-version-id"))

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; one that is gone is no error."""
        try:
            self._send("DELETE", key, query={"uploadId": upload_id})
        except UploadMissing:
            return

    def uploads(self, prefix: str, after: str) -> Sequence[Upload]:
        """Up to 1000 uploads in progress with keys that start with ``prefix`` and come after ``after``."""
        query = {"uploads": "", "prefix": prefix, "max-uploads": "1000", "encoding-type": "url", "delimiter": ""}
        if after:
            query["key-marker"] = after
        found = ListMultipartUploadsResult(self._send("GET", query=query)).uploads
        return [
            Upload(upload.object_name, upload.upload_id, upload.initiated_time)
            for upload in found
            if upload.upload_id and upload.initiated_time
        ]

    # --- the bucket ---

    def bucket_exists(self) -> bool:
        """Whether the bucket is there and may be listed. A GET: only its errors say why."""
        try:
            self.list("", "", 1)
        except BucketMissing:
            return False
        return True

    def make_bucket(self, *, object_lock: bool) -> None:
        """Create the bucket; one that is already ours is no error."""
        try:
            self._client.make_bucket(self.bucket, object_lock=object_lock)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":
                self._raise(error)
        except (MinioException, HTTPError, OSError) as error:
            self._raise(error)

    def enable_versioning(self) -> None:
        """Keep every version of every object from now on."""
        try:
            self._client.set_bucket_versioning(self.bucket, VersioningConfig(ENABLED))
        except (MinioException, HTTPError, OSError) as error:
            self._raise(error)

    def versioning_enabled(self) -> bool:
        """Whether the bucket keeps versions; a store that has no such thing answers False."""
        try:
            return self._client.get_bucket_versioning(self.bucket).status == ENABLED
        except S3Error as error:
            if error.code in {"NotImplemented", "MethodNotAllowed"} or error.response.status == 501:
                return False
            self._raise(error)
        except (MinioException, HTTPError, OSError) as error:
            self._raise(error)

    def object_lock_enabled(self) -> bool:
        """Whether objects of the bucket can be locked against deletion."""
        try:
            self._client.get_object_lock_config(self.bucket)
        except S3Error as error:
            missing = {"ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed", "InvalidRequest"}
            if error.code in missing or error.response.status == 501:
                return False
            self._raise(error)
        except (MinioException, HTTPError, OSError) as error:
            self._raise(error)
        return True

    # --- one request ---

    def _send(
        self,
        method: str,
        key: str | None = None,
        *,
        body: bytes | bytearray | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        stream: bool = False,
    ) -> BaseHTTPResponse:
        try:
            response: BaseHTTPResponse = self._client._execute(
                method,
                self.bucket,
                key,
                # Typed as bytes, but anything with a buffer is hashed and sent alike: no copy of a part is made.
                body=cast("bytes | None", body),
                headers=dict(headers or {}),
                query_params=dict(query or {}),
                preload_content=not stream,
            )
        except (MinioException, HTTPError, OSError) as error:
            self._raise(error, key)
        return response

    def _raise(self, error: Exception, key: str | None = None) -> NoReturn:
        """Raise ours for theirs, with the cause's code or class: its text may quote bodies and signed headers."""
        where = f"{self.bucket}/{key}" if key else f"the bucket {self.bucket}"
        if isinstance(error, S3Error):
            raise self._of_code(error.code or "", error.response.status, where) from error
        if isinstance(error, ServerError):
            raise self._unavailable(f"answered with HTTP status {error.status_code}") from error
        if isinstance(error, InvalidResponseError):
            raise self._unavailable("answered with something that is not S3") from error
        raise self._unavailable(f"does not answer ({type(error).__name__})") from error

    def _of_code(self, code: str, status: int, where: str) -> ObjectStoreError | DependencyUnavailable:  # noqa: PLR0911
        if code in {"NoSuchKey", "NoSuchVersion"}:
            return ObjectNotFound(f"there is no object {where} at {self.url}")
        if code == "NoSuchBucket":
            return BucketMissing(
                f"there is no bucket {self.bucket} at {self.url}", fix="create it, or correct the bucket's setting"
            )
        if code == "NoSuchUpload":
            return UploadMissing(f"the upload of {where} at {self.url} is gone")
        if code in {"PreconditionFailed", "ConditionalRequestConflict"} or status == 412:
            return ObjectExists(f"{where} exists already at {self.url}")
        if code in _CORRUPT:
            return ChecksumMismatch(
                f"the bytes of {where} did not arrive at {self.url} as they were sent ({code})", fix="put it again"
            )
        if code in _CONFLICT:
            return KeyConflict(
                f"{where} cannot be stored at {self.url}: a part of the key is an object, or the key is a folder",
                fix="choose keys where no key continues another one with a slash",
            )
        if code == "InvalidRange":
            return InvalidObject(f"{where} at {self.url} ends before the requested range begins")
        if code in _DENIED or status in {401, 403}:
            return AccessDenied(
                f"the object store {self.url} refuses access to {where} ({code})",
                fix="check access key, secret key, clock and the policy of this account",
            )
        if code in _BUSY or status >= 500:
            return self._unavailable(f"answered {code or status}")
        return ObjectStoreError(f"the object store {self.url} refused the request for {where}: {code}")

    def _unavailable(self, what: str) -> DependencyUnavailable:
        return DependencyUnavailable(
            "object store", f"the object store {self.url} {what}", fix="check that it runs and that its URL is right"
        )

    def _info(self, key: str, size: int, headers: Mapping[str, str]) -> ObjectInfo:
        modified = headers.get("last-modified")
        return ObjectInfo(
            key=key,
            size=size,
            etag=_etag(headers),
            sha256=_whole_sha256(headers.get("x-amz-checksum-sha256")),
            version_id=headers.get("x-amz-version-id"),
            content_type=headers.get("content-type"),
            metadata={
                name.lower().removeprefix("x-amz-meta-"): value
                for name, value in headers.items()
                if name.lower().startswith("x-amz-meta-")
            },
            last_modified=parsedate_to_datetime(modified) if modified else None,
        )


def _etag(headers: Mapping[str, str]) -> str:
    return headers.get("etag", "").strip('"')


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _whole_sha256(header: str | None) -> str | None:
    # "digest-N" is the digest of the digests of N parts: it says nothing about the bytes as one.
    if not header or "-" in header:
        return None
    return base64.b64decode(header).hex()
