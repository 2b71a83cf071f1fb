"""Putting an object of any size from a stream, in constant memory, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from replank.errors import ReplankError
from replank.objects.errors import ChecksumMismatch, InvalidObject, ObjectNotFound, SizeMismatch
from replank.objects.model import ObjectInfo
from replank.objects.settings import MAX_PART_SIZE, MAX_PARTS
from replank.objects.threads import Threads, settled
from replank.objects.wire import S3, Part, UploadMissing

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Hashing less than this takes less time than a hop to a thread.
_HASH_INLINE: Final = 64 * 1024


class Request(Protocol):
    """Makes one blocking call in a thread, repeated on failure where ``repeatable``, its futures added to ``calls``."""

    async def __call__(
        self,
        call: Callable[..., Result],
        *args: Any,
        repeatable: bool,
        calls: set[Future[Any]] | None = None,
        **kwargs: Any,
    ) -> Result: ...


async def file_chunks(path: Path, chunk_size: int, threads: Threads) -> AsyncGenerator[bytes, None]:
    """The bytes of a file, read in threads."""
    file = await threads.run(path.open, "rb")
    try:
        while chunk := await threads.run(file.read, chunk_size):
            yield chunk
    finally:
        file.close()


async def in_parts(source: AsyncIterable[bytes], size: int) -> AsyncGenerator[bytearray, None]:
    """Regroup a stream into buffers of exactly ``size`` bytes, the last one shorter. The receiver owns each buffer."""
    buffer = bytearray()
    async for chunk in source:
        rest = memoryview(chunk)
        while rest:
            taken = rest[: size - len(buffer)]
            buffer += taken
            rest = rest[len(taken) :]
            if len(buffer) == size:
                yield buffer
                buffer = bytearray()
    if buffer:
        yield buffer


def part_size_for(size: int | None, part_size: int) -> int:
    """The part size with which an object of ``size`` bytes has at most 10,000 parts. Raises `InvalidObject`."""
    if size is None:
        return part_size
    needed = max(part_size, -(-size // MAX_PARTS))
    if needed > MAX_PART_SIZE:
        raise InvalidObject(f"an object of {size} bytes is larger than S3 allows", fix="split it")
    return needed


class Upload:
    """One put. Reads the source once, one part ahead, with ``parallel`` parts on the wire."""

    def __init__(
        self,
        wire: S3,
        threads: Threads,
        request: Request,
        *,
        key: str,
        headers: Mapping[str, str],
        size: int | None,
        sha256: str | None,
        if_none_match: bool,
        parallel: int,
        sent: Callable[[int], None],
    ) -> None:
        self._wire = wire
        self._threads = threads
        self._request = request
        self._key = key
        self._headers = headers
        self._expected_size = size
        self._expected_sha256 = sha256
        self._if_none_match = if_none_match
        self._parallel = parallel
        self._sent = sent
        self._digest = hashlib.sha256()
        self._size = 0
        self._calls: set[Future[Any]] = set()

    async def run(self, parts: AsyncIterator[bytearray]) -> ObjectInfo:
        """Store what ``parts`` yields: in one request if it is one part, else in as many as it takes."""
        # A queue, not names: a part must not be held here while it, and those after it, are sent.
        ahead: deque[bytearray] = deque()
        while len(ahead) < 2 and await self._read_ahead(parts, ahead):
            pass
        if len(ahead) < 2:
            return await self._put_whole(ahead.pop() if ahead else bytearray())
        return await self._put_in_parts(ahead, parts)

    async def _read_ahead(self, parts: AsyncIterator[bytearray], ahead: deque[bytearray]) -> bool:
        part = await anext(parts, None)
        if part is None:
            return False
        await self._count(part)
        ahead.append(part)
        return True

    async def _count(self, part: bytearray) -> None:
        self._size += len(part)
        if self._expected_size is not None and self._size > self._expected_size:
            raise SizeMismatch(
                f"the source of {self._key} has more than the announced {self._expected_size} bytes",
                fix="announce the right size, or none",
            )
        if len(part) < _HASH_INLINE:
            self._digest.update(part)
        else:
            await self._threads.run(self._digest.update, part)

    def _check(self) -> str:
        """Compare what came with what was announced, before anything becomes visible."""
        if self._expected_size is not None and self._size != self._expected_size:
            raise SizeMismatch(
                f"the source of {self._key} ended after {self._size} of the announced {self._expected_size} bytes",
                fix="look why the source was cut short, and put again",
            )
        sha256 = self._digest.hexdigest()
        if self._expected_sha256 is not None and sha256 != self._expected_sha256:
            raise ChecksumMismatch(
                f"the source of {self._key} has the SHA-256 {sha256}, not the announced {self._expected_sha256}",
                fix="look where the source was changed, and put again",
            )
        return sha256

    async def _put_whole(self, body: bytearray) -> ObjectInfo:
        self._check()
        headers = {**self._headers, "If-None-Match": "*"} if self._if_none_match else self._headers
        # A conditional put is not repeated: after a lost answer, our own object would look like somebody else's.
        info = await self._request(
            self._wire.put, self._key, body, headers, self._digest.digest(), repeatable=not self._if_none_match
        )
        self._sent(len(body))
        return info

    async def _put_in_parts(self, ahead: deque[bytearray], parts: AsyncIterator[bytearray]) -> ObjectInfo:
        create = self._threads.start(self._wire.create_upload, self._key, self._headers)
        self._calls.add(create)
        sending: set[asyncio.Task[Part]] = set()
        try:
            upload_id = await asyncio.wrap_future(create)
            sent = await self._send_parts(upload_id, ahead, parts, sending)
            sha256 = self._check()
            info = await self._complete(upload_id, sent)
        except BaseException:
            await self._give_up(create, sending)
            raise
        return replace(info, size=self._size, sha256=sha256)

    async def _send_parts(
        self,
        upload_id: str,
        ahead: deque[bytearray],
        parts: AsyncIterator[bytearray],
        sending: set[asyncio.Task[Part]],
    ) -> list[Part]:
        sent: list[Part] = []

        async def collect() -> None:
            finished, _ = await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
            sending.difference_update(finished)
            sent.extend([task.result() for task in finished])

        number = 0
        while ahead or await self._read_ahead(parts, ahead):
            number += 1
            if number > MAX_PARTS:
                raise InvalidObject(
                    f"{self._key} has more than {MAX_PARTS} parts", fix="put it with its size, or a larger part_size"
                )
            while len(sending) >= self._parallel:
                await collect()
            sending.add(asyncio.create_task(self._send_part(upload_id, number, ahead.popleft())))
        while sending:
            await collect()
        return sorted(sent, key=lambda part: part.number)

    async def _send_part(self, upload_id: str, number: int, body: bytearray) -> Part:
        part = await self._request(
            self._wire.upload_part, self._key, upload_id, number, body, repeatable=True, calls=self._calls
        )
        self._sent(len(body))
        return part

    async def _complete(self, upload_id: str, parts: list[Part]) -> ObjectInfo:
        try:
            return await self._request(
                self._wire.complete_upload,
                self._key,
                upload_id,
                parts,
                if_none_match=self._if_none_match,
                repeatable=not self._if_none_match,
                calls=self._calls,
            )
        except UploadMissing:
            # Either somebody aborted it, or it was completed and the answer got lost: the object's identity tells.
            found = await self._request(self._wire.stat, self._key, None, repeatable=True)
            if found.etag != _etag_of(parts):
                raise ObjectNotFound(
                    f"the upload of {self._key} was aborted by somebody else", fix="put it again"
                ) from None
            return found

    async def _give_up(self, create: Future[str], sending: set[asyncio.Task[Part]]) -> None:
        """Leave nothing behind, even if cancelled again meanwhile."""
        for task in sending:
            task.cancel()
        abort = asyncio.ensure_future(self._abort(create, sending))
        cancelled: asyncio.CancelledError | None = None
        while not abort.done():
            try:
                await asyncio.wait([abort])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _abort(self, create: Future[str], sending: set[asyncio.Task[Part]]) -> None:
        # A part that arrives after the abort would stay: every request on the wire has to end first.
        await asyncio.gather(*sending, return_exceptions=True)
        await settled(list(self._calls))
        if create.cancelled() or create.exception() is not None:
            return
        try:
            await self._request(self._wire.abort_upload, self._key, create.result(), repeatable=True)
        except ReplankError as error:
            # The error that made us give up is the one to raise. What stays is invisible, and is swept later.
            log.warning(
                "an upload could not be aborted: abort_stale_uploads() will",
                extra={"key": self._key, "cause": str(error)},
            )


def _etag_of(parts: list[Part]) -> str | None:
    """What S3 and its kin call an object that was put in parts: the MD5 of the parts' MD5s, and how many.

    None where the store names parts in another way, as with its own encryption.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    try:
        for part in parts:
            md5.update(bytes.fromhex(part.etag))
    except ValueError:
        return None
    return f"{md5.hexdigest()}-{len(parts)}"
