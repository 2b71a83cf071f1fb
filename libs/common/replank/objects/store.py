"""The door to an S3-compatible object store: asynchronous, streaming, whole objects or none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, MutableSequence
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256 as sha256_of
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import stamina
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from urllib3 import BaseHTTPResponse

from replank.errors import DependencyUnavailable
from replank.objects.body import ObjectBody
from replank.objects.errors import (
    BucketMissing,
    ChecksumMismatch,
    InvalidObject,
    ObjectExists,
    ObjectNotFound,
    ObjectStoreError,
    Unsupported,
)
from replank.objects.model import Capabilities, ObjectInfo, check_key, metadata_headers
from replank.objects.settings import MAX_PART_SIZE, MIB, MIN_PART_SIZE, ObjectStoreSettings
from replank.objects.threads import Threads
from replank.objects.upload import Upload, file_chunks, in_parts, part_size_for
from replank.objects.wire import LIST_PAGE, S3
from replank.telemetry import metrics

Result = TypeVar("Result")

_PROBE_PREFIX: Final = ".replank-probe"
_RETRY_FIRST_WAIT: Final = 0.1
_RETRY_LONGEST_WAIT: Final = 2.0
_EMPTY: Final = sha256_of(b"").digest()
# What S3 calls the operations, for spans.
_METHODS: Final = {
    "put": "PutObject",
    "get": "GetObject",
    "stat": "HeadObject",
    "delete": "DeleteObject",
    "list": "ListObjectsV2",
    "ensure_bucket": "CreateBucket",
}


class ObjectStore:
    """One bucket. Safe to share between tasks of one event loop; close it, or use it as ``async with``.

    Blocking requests run in ``settings.concurrency`` threads; more wait their turn. Requests that are safe to repeat
    are tried ``settings.attempts`` times when the store does not answer, then raise
    `replank.errors.DependencyUnavailable` (dependency ``object store``). All other errors derive from
    `replank.objects.ObjectStoreError`.
    """

    def __init__(self, settings: ObjectStoreSettings) -> None:
        self.settings = settings
        self._wire = S3(settings)
        self._threads = Threads(settings.concurrency, "replank-objects")
        self._tracer = trace.get_tracer("replank.objects")
        self._capabilities: Capabilities | None = None
        self._probing = asyncio.Lock()
        endpoint = urlsplit(settings.url)
        self._attributes: dict[str, str | int] = {
            "rpc.system": "aws-api",
            "rpc.service": "S3",
            "aws.s3.bucket": settings.bucket,
            "server.address": endpoint.hostname or "",
            "server.port": endpoint.port or (443 if endpoint.scheme == "https" else 80),
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more requests and close idle connections. Nothing is lost: end your puts and gets before."""
        self._threads.close()
        self._wire.close()

    # --- objects ---

    async def put(
        self,
        key: str,
        source: AsyncIterable[bytes] | Path | bytes,
        *,
        size: int | None = None,
        sha256: str | None = None,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        part_size: int | None = None,
    ) -> ObjectInfo:
        """Store an object from a stream, a file or some bytes, and return what was stored.

        The object appears whole at the end, or not at all. A stream is read no faster than it is sent. ``size``
        (bytes) and ``sha256`` (hexadecimal), where given, are compared before the object appears; give ``size`` for
        streams of more than 10,000 parts. ``if_none_match=True`` refuses to replace an object, and is refused itself
        by a store that would ignore it.

        Cancelled or failed while the source is read, it leaves nothing behind, not even invisible parts. Cancelled or
        cut off while the last request is on the wire, it may still take effect: whole, and putting again is safe. With
        ``if_none_match`` look with `stat` first, since the object that exists may be this one.

        Raises `InvalidKey`, `InvalidObject`, `ObjectExists`, `KeyConflict`, `SizeMismatch`, `ChecksumMismatch`,
        `BucketMissing`, `AccessDenied`, `Unsupported`, `DependencyUnavailable`, and whatever the source raises.
        """
        check_key(key)
        headers = {"Content-Type": content_type, **metadata_headers(metadata or {})}
        if size is not None and size < 0:
            raise InvalidObject(f"the size of {key} is announced as {size} bytes", fix="announce a size, or none")
        if part_size is not None and not MIN_PART_SIZE <= part_size <= MAX_PART_SIZE:
            raise InvalidObject(f"the part size {part_size} is outside S3's limits", fix="use 5 MiB to 5 GiB")
        length = part_size_for(size, part_size or self.settings.part_size)
        with self._operation("put", key) as span:
            if if_none_match:
                await self._require_conditional(key, several_parts=size is None or size > length)
            upload = Upload(
                self._wire,
                self._threads,
                self._request,
                key=key,
                headers=headers,
                size=size,
                sha256=sha256,
                if_none_match=if_none_match,
                parallel=self.settings.parallel_parts,
                sent=metrics.OBJECTS_BYTES.labels(bucket=self.settings.bucket, direction="out").inc,
            )
            async with aclosing(self._chunks(source)) as chunks, aclosing(in_parts(chunks, length)) as parts:
                info = await upload.run(parts)
            span.set_attribute("replank.object.size", info.size)
        return info

    async def _chunks(self, source: AsyncIterable[bytes] | Path | bytes) -> AsyncGenerator[bytes, None]:
        if isinstance(source, bytes):
            yield source
            return
        if isinstance(source, Path):
            source = file_chunks(source, self.settings.chunk_size, self._threads)
        async for chunk in source:
            yield chunk

    @asynccontextmanager
    async def get(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        sha256: str | None = None,
        version_id: str | None = None,
    ) -> AsyncIterator[ObjectBody]:
        """Open an object, or ``length`` bytes of it from ``offset``, for streaming::

            async with store.get(key) as body:
                async for chunk in body:
                    ...

        A connection that breaks is resumed. A range that reaches beyond the end is cut there. With ``sha256`` the bytes
        are compared after the last chunk (`ChecksumMismatch`): act on them only after the loop. Leaving early closes
        the connection. Raises `ObjectNotFound`, `ObjectChanged`, `InvalidObject` (range), `AccessDenied`,
        `BucketMissing`, `DependencyUnavailable`.
        """
        check_key(key)
        if offset < 0 or (length is not None and length < 1):
            raise InvalidObject(
                f"the range of {length} bytes from {offset} of {key} is empty or negative",
                fix="ask for at least a byte",
            )
        last = None if length is None else offset + length - 1
        # Not the current span while the caller works: what it does meanwhile is no part of reading.
        with self._operation("get", key, current=False):

            async def open_from(first: int) -> tuple[ObjectInfo, BaseHTTPResponse]:
                return await self._request(
                    self._wire.open, key, first=first, last=last, version_id=version_id, repeatable=True
                )

            info, response = await open_from(offset)
            end = info.size if last is None else min(last + 1, info.size)
            body = ObjectBody(
                info,
                response,
                first=offset,
                length=end - offset,
                chunk_size=self.settings.chunk_size,
                attempts=self.settings.attempts,
                sha256=sha256,
                bucket=self.settings.bucket,
                threads=self._threads,
                reopen=open_from,
            )
            try:
                yield body
            finally:
                body.close()

    async def read(self, key: str, *, limit: int = MIB, sha256: str | None = None) -> bytes:
        """A small object as bytes. Raises `InvalidObject` if it has more than ``limit`` bytes, and what `get` does."""
        async with self.get(key, sha256=sha256) as body:
            if body.length > limit:
                raise InvalidObject(
                    f"the object {key} has {body.length} bytes, more than the {limit} that may be read at once",
                    fix="stream it with get()",
                )
            return b"".join([chunk async for chunk in body])

    async def stat(self, key: str, *, version_id: str | None = None) -> ObjectInfo:
        """What the store knows of an object. Raises `ObjectNotFound` and what `get` does."""
        check_key(key)
        with self._operation("stat", key):
            try:
                return await self._request(self._wire.stat, key, version_id, repeatable=True)
            except ObjectNotFound:
                # The answer to a HEAD has no body, so "no such bucket" and "no such account" look the same.
                await self.check()
                raise

    async def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""
        try:
            await self.stat(key)
        except ObjectNotFound:
            return False
        return True

    async def delete(self, key: str, *, version_id: str | None = None) -> None:
        """Delete an object; one that is not there is no error. With versioning, older versions stay."""
        check_key(key)
        with self._operation("delete", key):
            await self._request(self._wire.delete, key, version_id, repeatable=True)

    async def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> AsyncIterator[ObjectInfo]:
        """The objects whose keys start with ``prefix``, in key order, from behind ``after``, at most ``limit``.

        Fetched by pages of 1000 as they are needed. Only key, size, etag and last_modified are known.
        """
        remaining = limit
        while remaining is None or remaining > 0:
            wanted = LIST_PAGE if remaining is None else min(remaining, LIST_PAGE)
            with self._operation("list", None):
                page = await self._request(self._wire.list, prefix, after, wanted, repeatable=True)
            for info in page:
                yield info
            if len(page) < wanted:
                return
            after = page[-1].key
            remaining = None if remaining is None else remaining - len(page)

    def presign(self, key: str, *, expires: timedelta, method: Literal["GET", "PUT"] = "GET") -> str:
        """A URL that lets whoever has it do this for a while (1 s to 7 days). It is a secret: do not log it."""
        check_key(key)
        if not timedelta(seconds=1) <= expires <= timedelta(days=7):
            raise InvalidObject(f"a signed URL cannot be valid for {expires}", fix="use 1 second to 7 days")
        return self._wire.presign(method, key, expires)

    # --- the bucket ---

    async def check(self) -> None:
        """Raise what stands between us and the bucket: `BucketMissing`, `AccessDenied`, `DependencyUnavailable`."""
        await self._request(self._wire.list, "", "", 1, repeatable=True)

    async def ensure_bucket(self, *, versioning: bool = False, object_lock: bool = False) -> None:
        """Create the bucket if it is missing, and switch versioning on if asked for.

        Object lock can only be had from the beginning: asking for it on a bucket without it raises `Unsupported`.
        """
        with self._operation("ensure_bucket", None):
            if not await self._request(self._wire.bucket_exists, repeatable=True):
                await self._request(self._wire.make_bucket, object_lock=object_lock, repeatable=True)
            if versioning:
                await self._request(self._wire.enable_versioning, repeatable=True)
            if object_lock and not await self._request(self._wire.object_lock_enabled, repeatable=True):
                raise Unsupported(
                    f"the bucket {self.settings.bucket} at {self.settings.url} has no object lock",
                    fix="create a new bucket with object lock, or do without it",
                )

    async def probe(self) -> Capabilities:
        """Find out what the store does, by trying it on objects below ``.replank-probe/`` that are removed again.

        Asked once and remembered. Call it at start: stores differ in just the features that protect data.
        """
        async with self._probing:
            if self._capabilities is None:
                self._capabilities = await self._try_out(f"{_PROBE_PREFIX}/{uuid4().hex}")
            return self._capabilities

    async def _try_out(self, key: str) -> Capabilities:
        written: MutableSequence[ObjectInfo] = []

        async def refuses(error: type[ObjectStoreError], headers: Mapping[str, str], sha256: bytes) -> bool:
            try:
                written.append(await self._request(self._wire.put, key, b"", headers, sha256, repeatable=False))
            except error:
                return True
            except ObjectStoreError:
                return False
            return False

        try:
            written.append(await self._request(self._wire.put, key, b"", {}, _EMPTY, repeatable=True))
            return Capabilities(
                conditional_put=await refuses(ObjectExists, {"If-None-Match": "*"}, _EMPTY),
                conditional_multipart=await self._refuses_completion(key, written),
                checksums=await refuses(ChecksumMismatch, {}, bytes(32)),
                versioning=await self._request(self._wire.versioning_enabled, repeatable=True),
                object_lock=await self._request(self._wire.object_lock_enabled, repeatable=True),
            )
        finally:
            for info in written:
                await self._request(self._wire.delete, key, info.version_id, repeatable=True)

    async def _refuses_completion(self, key: str, written: MutableSequence[ObjectInfo]) -> bool:
        upload_id = await self._request(self._wire.create_upload, key, {}, repeatable=False)
        try:
            part = await self._request(self._wire.upload_part, key, upload_id, 1, b"probe", repeatable=True)
            written.append(
                await self._request(
                    self._wire.complete_upload, key, upload_id, [part], if_none_match=True, repeatable=False
                )
            )
        except ObjectExists:
            return True
        except BucketMissing:
            raise
        except ObjectStoreError:
            return False
        finally:
            await self._request(self._wire.abort_upload, key, upload_id, repeatable=True)
        return False

    async def _require_conditional(self, key: str, *, several_parts: bool) -> None:
        can = await self.probe()
        if not can.conditional_put or (several_parts and not can.conditional_multipart):
            raise Unsupported(
                f"the object store {self.settings.url} cannot promise not to replace {key}",
                fix="use a store with conditional writes, or keys that are never used twice",
            )

    async def abort_stale_uploads(self, *, older_than: timedelta, prefix: str = "") -> int:
        """Abort uploads in parts that began longer ago than this and were never completed; how many there were.

        What a killed process leaves behind is invisible but is paid for. ``older_than`` must exceed the longest put.
        """
        before = datetime.now(UTC) - older_than
        aborted = 0
        after = ""
        while page := await self._request(self._wire.uploads, prefix, after, repeatable=True):
            for upload in page:
                if upload.started_at < before:
                    await self._request(self._wire.abort_upload, upload.key, upload.upload_id, repeatable=True)
                    aborted += 1
            after = page[-1].key
        return aborted

    # --- one request, one operation ---

    async def _request(
        self,
        call: Callable[..., Result],
        *args: Any,
        repeatable: bool,
        calls: set[Future[Any]] | None = None,
        **kwargs: Any,
    ) -> Result:
        async for attempt in stamina.retry_context(
            on=DependencyUnavailable,
            attempts=self.settings.attempts if repeatable else 1,
            timeout=None,
            wait_initial=_RETRY_FIRST_WAIT,
            wait_jitter=_RETRY_FIRST_WAIT,
            wait_max=_RETRY_LONGEST_WAIT,
        ):
            with attempt:
                if attempt.num > 1:
                    metrics.OBJECTS_RETRIES.labels(bucket=self.settings.bucket).inc()
                future = self._threads.start(call, *args, **kwargs)
                if calls is not None:
                    calls.add(future)
                    future.add_done_callback(calls.discard)
                return await asyncio.wrap_future(future)
        raise AssertionError("unreachable: the last attempt returns or raises")

    @contextmanager
    def _operation(self, operation: str, key: str | None, *, current: bool = True) -> Iterator[Span]:
        """Span, duration and outcome of one operation of the public interface."""
        attributes: dict[str, str | int] = {**self._attributes, "rpc.method": _METHODS[operation]}
        if key is not None:
            attributes["aws.s3.key"] = key
        span = self._tracer.start_span(
            f"s3 {operation} {self.settings.bucket}", kind=SpanKind.CLIENT, attributes=attributes
        )
        started = time.perf_counter()
        outcome = "ok"
        try:
            if current:
                with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                    yield span
            else:
                yield span
        except (ObjectNotFound, ObjectExists) as error:
            # Answers, not failures: who asked decides.
            outcome = type(error).__name__
            raise
        except (ObjectStoreError, DependencyUnavailable) as error:
            outcome = type(error).__name__
            span.set_status(StatusCode.ERROR, outcome)
            span.set_attribute("error.type", outcome)
            raise
        except BaseException:
            # The task was cancelled, the source of a put raised, or the reader of a get did.
            outcome = "caller"
            span.set_attribute("error.type", outcome)
            raise
        finally:
            span.end()
            metrics.OBJECTS_SECONDS.labels(bucket=self.settings.bucket, operation=operation).observe(
                time.perf_counter() - started
            )
            if outcome != "ok":
                metrics.OBJECTS_ERRORS.labels(bucket=self.settings.bucket, operation=operation, error=outcome).inc()
