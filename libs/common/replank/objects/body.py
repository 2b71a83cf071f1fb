"""The bytes of an object, as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from replank.errors import DependencyUnavailable
from replank.objects.errors import ChecksumMismatch, ObjectChanged
from replank.objects.model import ObjectInfo
from replank.objects.threads import Threads, settled
from replank.telemetry import metrics

log = logging.getLogger(__name__)

Reopen = Callable[[int], Awaitable[tuple[ObjectInfo, BaseHTTPResponse]]]


class ObjectBody:
    """An open object. Iterate over it once, for chunks of bytes; memory stays at one chunk.

    A connection that breaks in the middle is opened again from the byte reached, so the reader sees nothing of it; if
    the object was replaced meanwhile, `ObjectChanged` is raised. ``info`` describes the whole object, ``length`` is how
    many bytes this body has.
    """

    def __init__(
        self,
        info: ObjectInfo,
        response: BaseHTTPResponse,
        *,
        first: int,
        length: int,
        chunk_size: int,
        attempts: int,
        sha256: str | None,
        bucket: str,
        threads: Threads,
        reopen: Reopen,
    ) -> None:
        self.info = info
        self.length = length
        self._response: BaseHTTPResponse | None = response
        self._position = first
        self._end = first + length
        self._chunk_size = chunk_size
        self._attempts = attempts
        self._sha256 = sha256
        self._bucket = bucket
        self._threads = threads
        self._reopen = reopen
        self._begun = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._begun:
            raise RuntimeError(f"the object {self.info.key} was iterated over before: get it again")
        self._begun = True
        received = metrics.OBJECTS_BYTES.labels(bucket=self._bucket, direction="in")
        digest = hashlib.sha256() if self._sha256 else None
        failures = 0
        while self._position < self._end:
            try:
                chunk = await self._read(min(self._chunk_size, self._end - self._position))
            except DependencyUnavailable as error:
                failures += 1
                if failures >= self._attempts:
                    raise
                log.warning("object read broke off, resuming", extra={"key": self.info.key, "cause": str(error)})
                await self._resume()
                continue
            failures = 0
            self._position += len(chunk)
            received.inc(len(chunk))
            if digest:
                await self._threads.run(digest.update, chunk)
            yield chunk
        self._release()
        if digest and digest.hexdigest() != self._sha256:
            raise ChecksumMismatch(
                f"the object {self._bucket}/{self.info.key} has the SHA-256 {digest.hexdigest()}, not {self._sha256}",
                fix="do not use these bytes; restore the object from another copy",
            )

    async def _read(self, amount: int) -> bytes:
        response = self._response
        if response is None:
            raise RuntimeError(f"the object {self.info.key} is closed: read it inside its `async with`")
        call = self._threads.start(_read, response, amount)
        try:
            chunk = await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            # Wakes the thread: its socket must not be closed under it. An answer that just ended has none any more.
            with contextlib.suppress(ValueError, RuntimeError):
                response.shutdown()
            await settled([call])
            self.close()
            raise
        except (HTTPError, OSError) as error:
            raise self._broken(type(error).__name__) from error
        if not chunk:
            raise self._broken("the answer ended early")
        return chunk

    async def _resume(self) -> None:
        self.close()
        info, self._response = await self._reopen(self._position)
        if info.etag != self.info.etag:
            self.close()
            raise ObjectChanged(
                f"the object {self._bucket}/{self.info.key} was replaced while it was read", fix="read it again"
            )

    def _broken(self, cause: str) -> DependencyUnavailable:
        missing = self._end - self._position
        return DependencyUnavailable(
            "object store",
            f"reading {self._bucket}/{self.info.key} broke off {missing} bytes before its end ({cause})",
            fix="check the network to the object store and read again",
        )

    def _release(self) -> None:
        """Give the connection back for reuse: the answer was read to its end."""
        if self._response is not None:
            self._response.release_conn()
            self._response = None

    def close(self) -> None:
        """Close the connection, whatever is still to come on it."""
        if self._response is not None:
            self._response.close()
            self._response = None


def _read(response: BaseHTTPResponse, amount: int) -> bytes:
    # As stored: an object with a Content-Encoding is not to be decoded on the way.
    return response.read(amount, decode_content=False)
