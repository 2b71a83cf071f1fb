"""Sending files: many at once, each in constant memory, and none whose content the vault has already."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import httpx
import stamina

from replank.contracts.schema import VaultMode
from replank.errors import DependencyUnavailable, ReplankError
from replank_cli.asking import Refused, TryAgain, away, content_of, require_success, segment
from replank_cli.vault.files import Content, File, FileChanged, read, require_schema
from replank_cli.vault.service import PREFIXES, requiring_vault
from replank_cli.vault.views import Job, Schema

_ATTEMPTS: Final = 5
_CHUNK: Final = 256 * 1024
_DIGESTS_AT_ONCE: Final = 10_000
_LOOK_EVERY: Final = 0.5

Outcome = Literal["new", "version", "unchanged", "failed"]


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of what is sent. ``owner``, ``tags`` and ``metadata`` are for new schemas; others keep theirs."""

    owner: str | None = None
    description: str = ""
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    note: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a file. ``sent``: its content went over the wire, for the vault did not have it."""

    file: File
    outcome: Outcome
    version: int | None = None
    size: int = 0
    sent: bool = False
    problem: str = ""
    fix: str = ""


class Progress(Protocol):
    """Is told of what is sent, in bytes."""

    def reading(self, files: int) -> None:
        """So many files are read, to know what has to be sent."""

    def begin(self, files: int, size: int) -> None:
        """So many files of so many bytes are to be published."""

    def advance(self, size: int) -> None:
        """So many bytes are done, by being sent or by not having to be. Less than none: they are sent again."""

    def processing(self, name: str, job: Job) -> None:
        """The service works on a large one."""

    def end(self, sent: Sent) -> None:
        """This is what became of a file."""


class _Broken(Exception):
    """There is no sense in going on: ``error`` says why."""

    def __init__(self, error: ReplankError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass
class Pusher:
    """Publishes files. ``done`` is what became of each so far, also when it is interrupted.

    It may be interrupted anywhere: a content or a version is there wholly or not at all, and doing it again goes on.
    """

    client: httpx.AsyncClient
    mode: VaultMode
    said: Said
    progress: Progress
    create_only: bool = False
    validate: bool = False
    resend: bool = False
    """Send every content, also those that the vault says it has: one that it has lost is there again then."""
    done: list[Sent] = field(default_factory=list)
    _missing: set[str] = field(default_factory=set)
    _sending: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    _broken: ReplankError | None = None

    async def push(self, files: Sequence[File], *, parallel: int) -> None:
        """Publish all of them, ``parallel`` at a time. A file that fails does not keep the others from being published.

        Raises `DependencyUnavailable` when the service is away for longer, and `Refused` where nothing may be sent.
        """
        self.progress.reading(len(files))
        contents = await self._read(files, parallel)
        await self._ask_for_missing(contents)
        self.progress.begin(len(contents), sum(content.size for content in contents))
        waiting = iter(contents)
        await asyncio.gather(*(self._work(waiting) for _ in range(parallel)))
        if self._broken is not None:
            raise self._broken

    async def _work(self, waiting: Iterator[Content]) -> None:
        for content in waiting:
            if self._broken is not None:
                return
            try:
                sent = await self._publish(content)
            except _Broken as broken:
                self._broken = broken.error
                return
            self._end(sent)

    def _end(self, sent: Sent) -> None:
        self.done.append(sent)
        self.progress.end(sent)

    # --- what there is to send ---

    async def _read(self, files: Sequence[File], parallel: int) -> list[Content]:
        """What the files hold. Those that cannot be read, or are no schemas where they have to be, have failed."""
        contents: list[Content] = []
        waiting = iter(files)

        async def work() -> None:
            for file in waiting:
                try:
                    content = await asyncio.to_thread(read, file)
                    if self.validate:
                        await asyncio.to_thread(require_schema, content)
                except (OSError, ReplankError) as error:
                    self._end(_failed(file, error))
                else:
                    contents.append(content)

        await asyncio.gather(*(work() for _ in range(parallel)))
        return sorted(contents, key=lambda content: content.file.name)

    async def _ask_for_missing(self, contents: Sequence[Content]) -> None:
        digests = sorted({content.sha256 for content in contents})
        if self.resend:
            self._missing.update(digests)
            return
        for first in range(0, len(digests), _DIGESTS_AT_ONCE):
            asked = digests[first : first + _DIGESTS_AT_ONCE]
            self._missing.update(await self._missing_of(asked))

    async def _missing_of(self, digests: Sequence[str]) -> Sequence[str]:
        try:
            async for attempt in stamina.retry_context(on=TryAgain, attempts=_ATTEMPTS, wait_max=4.0):
                with attempt:
                    answer = await self._ask("POST", "/blobs/missing", json={"sha256": digests})
                    missing: list[str] = answer["missing"]
                    return missing
        except TryAgain as error:
            raise error.error from error
        except Refused as refused:
            # Who owns a schema may publish versions of it, and may not ask what else there is.
            if refused.slug == "forbidden":
                return digests
            raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    # --- one file ---

    async def _publish(self, content: Content) -> Sent:
        seen: list[int] = []
        try:
            async for attempt in stamina.retry_context(on=TryAgain, attempts=_ATTEMPTS, timeout=60.0, wait_max=8.0):
                with attempt:
                    return await self._once(content, seen)
        except TryAgain as error:
            if isinstance(error.error, DependencyUnavailable):
                raise _Broken(error.error) from error
            return _failed(content.file, error.error)
        except (OSError, ReplankError) as error:
            return _failed(content.file, error)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _once(self, content: Content, seen: list[int]) -> Sent:
        """Publish a file as what its name needs. ``seen`` keeps the version that was there at the first attempt: if the
        answer to that was lost, what it did is no surprise to the next one."""
        file = content.file
        there = await self._active(file.name)
        seen.append(there.version if there is not None else 0)
        same = there is not None and there.sha256 == content.sha256
        if there is not None and same and not (self.resend and content.sha256 in self._missing):
            self.progress.advance(content.size)
            return Sent(file, _outcome(seen[0], there.version), there.version, content.size)
        if there is not None and self.create_only and not same:
            raise ReplankError(
                f"{file.name} is there already, with another content",
                fix="leave out --create-only to publish a version of it",
            )
        # The same content under several names is sent once.
        async with self._sending[content.sha256]:
            answer, sent = await self._refer_or_send(content, there)
            if "state" in answer:
                answer = await self._processed(file.name, answer)
            self._missing.discard(content.sha256)
        return Sent(file, _outcome(seen[0], answer["version"]), answer["version"], content.size, sent=sent)

    async def _active(self, name: str) -> Schema | None:
        """What is published under a name. See `replank_cli.vault.service.Vault.found`."""
        if name.endswith("/content"):
            items = (await self._ask("GET", "", params={"name": name, "limit": 1}))["items"]
            return Schema.model_validate(items[0]) if items and items[0]["name"] == name else None
        try:
            return Schema.model_validate(await self._ask("GET", f"/by-name/{segment(name)}"))
        except Refused as refused:
            if refused.slug != "schema-not-found":
                raise
            return None

    async def _refer_or_send(self, content: Content, there: Schema | None) -> tuple[Any, bool]:
        if content.sha256 not in self._missing:
            try:
                answer = await self._refer(content, there)
            except Refused as refused:
                # It was collected just now: nobody has referred to it for long.
                if refused.slug != "content-unknown":
                    raise
            else:
                self.progress.advance(content.size)
                return answer, False
        return await self._send(content, there), True

    async def _refer(self, content: Content, there: Schema | None) -> Any:
        """Publish a content that the vault has: only its digest is sent."""
        if there is not None:
            query = {**self._of_version(), "sha256": content.sha256}
            return await self._ask("POST", f"/{there.id}/versions", params=query, headers=_only_if(there))
        body: dict[str, Any] = {"name": content.file.name, "sha256": content.sha256, "note": self.said.note}
        body |= {"description": self.said.description, "tags": list(self.said.tags)}
        if self.said.metadata is not None:
            body["metadata"] = self.said.metadata
        if self.said.owner is not None:
            body["owner"] = self.said.owner
        return await self._ask("POST", "", json=body)

    async def _send(self, content: Content, there: Schema | None) -> Any:
        headers = {
            "content-type": "application/json",
            "content-length": str(content.size),
            "content-digest": content.digest,
        }
        path, query = "/upload", self._of_new(content.file.name)
        if there is not None:
            path, query, headers = f"/{there.id}/versions", self._of_version(), headers | _only_if(there)
        went = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal went
            async for chunk in _chunks(content):
                yield chunk
                went += len(chunk)
                self.progress.advance(len(chunk))

        try:
            return await self._ask("POST", path, params=query, headers=headers, content=body())
        except BaseException:
            self.progress.advance(-went)
            raise

    async def _processed(self, name: str, answer: Any) -> Any:
        """Wait for the job of a large one. What it was, once it is done."""
        job = Job.model_validate(answer)
        while not job.ended:
            self.progress.processing(name, job)
            await asyncio.sleep(_LOOK_EVERY)
            async for attempt in stamina.retry_context(on=TryAgain, attempts=_ATTEMPTS, timeout=60.0, wait_max=8.0):
                with attempt:
                    job = Job.model_validate(await self._ask("GET", f"/jobs/{job.id}"))
        self.progress.processing(name, job)
        if job.state != "done" or job.result is None:
            raise ReplankError(
                f"the service has {'cancelled' if job.state == 'cancelled' else 'not been able to publish'} it"
                + (f": {job.problem}" if job.problem else ""),
                fix=f"`replank vault job {job.id}` shows it; push it again once that is mended",
            )
        return job.result

    def _of_version(self) -> dict[str, str | list[str]]:
        return {"note": self.said.note, **({"force": "true"} if self.said.force else {})}

    def _of_new(self, name: str) -> dict[str, str | list[str]]:
        said: dict[str, str | list[str]] = {"name": name, "tag": list(self.said.tags)}
        given = {"owner": self.said.owner, "description": self.said.description, "note": self.said.note}
        said |= {key: value for key, value in given.items() if value}
        if self.said.metadata is not None:
            said["metadata"] = json.dumps(self.said.metadata)
        return said

    async def _ask(self, method: str, path: str, **more: Any) -> Any:
        try:
            response = await self.client.request(method, PREFIXES[self.mode] + path, **more)
        except httpx.HTTPError as error:
            raise TryAgain(away(self.client.base_url, error)) from error
        with requiring_vault():
            require_success(response)
        return content_of(response)


async def _chunks(content: Content) -> AsyncIterator[bytes]:
    """The file as it was read before. Raises `FileChanged` where it became longer or shorter."""
    left = content.size
    with content.file.path.open("rb") as opened:
        while chunk := await asyncio.to_thread(opened.read, _CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
    if left:
        raise FileChanged(f"{content.file.path} was changed while it was sent", fix="push it again")


def _outcome(before: int, after: int) -> Outcome:
    """What became of a name that had this version, none being 0."""
    return "unchanged" if after == before else "version" if before else "new"


def _only_if(there: Schema) -> dict[str, str]:
    return {"if-match": f'"{there.revision}"'}


def _failed(file: File, error: OSError | ReplankError) -> Sent:
    if isinstance(error, ReplankError):
        return Sent(file, "failed", problem=error.message, fix=error.fix)
    return Sent(file, "failed", problem=f"it cannot be read: {error.strerror or error}")
