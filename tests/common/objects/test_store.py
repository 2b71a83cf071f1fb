from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from replank.objects import (
    AccessDenied,
    BucketMissing,
    ChecksumMismatch,
    InvalidKey,
    InvalidObject,
    KeyConflict,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    SizeMismatch,
    Unsupported,
)
from replank.telemetry.registry import render_metrics
from tests.common.objects.conftest import SettingsFactory

MIB = 1024 * 1024


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def uploads_in_progress(store: ObjectStore) -> int:
    return len(await asyncio.to_thread(store._wire.uploads, "", ""))


async def keys(store: ObjectStore) -> list[str]:
    return [info.key async for info in store.list()]


@pytest.mark.parametrize("size", [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 16 * MIB + 7])
async def test_what_was_put_is_what_is_got(store: ObjectStore, size: int) -> None:
    content = os.urandom(size)
    put = await store.put("a/b", stream(content[: size // 3], b"", content[size // 3 :]), metadata={"origin": "test"})
    stat = await store.stat("a/b")
    async with store.get("a/b", sha256=put.sha256) as body:
        got = b"".join([chunk async for chunk in body])
    assert got == content
    assert put.sha256 == hashlib.sha256(content).hexdigest()
    assert (put.size, stat.size, body.length) == (size, size, size)
    assert put.etag == stat.etag == body.info.etag
    assert stat.metadata == {"origin": "test"}
    assert stat.sha256 == (put.sha256 if size <= 5 * MIB else None)
    assert await uploads_in_progress(store) == 0


async def test_a_file_is_put_with_its_type(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(6 * MIB)
    path = tmp_path / "file"
    path.write_bytes(content)
    put = await store.put("file", path, size=len(content), content_type="application/x-test")
    assert put.sha256 == hashlib.sha256(content).hexdigest()
    assert (await store.stat("file")).content_type == "application/x-test"


async def test_a_file_that_is_not_there_stores_nothing(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await store.put("file", tmp_path / "missing")
    assert await keys(store) == []


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 5), (3, 4), (9, 1), (5, None), (8, 100)])
async def test_a_range_is_exactly_those_bytes(store: ObjectStore, offset: int, length: int | None) -> None:
    await store.put("digits", b"0123456789")
    async with store.get("digits", offset=offset, length=length) as body:
        got = b"".join([chunk async for chunk in body])
    assert got == b"0123456789"[offset:][:length]
    assert body.info.size == 10
    assert body.length == len(got)


@pytest.mark.parametrize(("offset", "length"), [(10, None), (11, 5), (-1, None), (0, 0), (0, -3)])
async def test_a_range_without_bytes_is_refused(store: ObjectStore, offset: int, length: int | None) -> None:
    await store.put("digits", b"0123456789")
    with pytest.raises(InvalidObject):
        async with store.get("digits", offset=offset, length=length):
            pass


async def test_bytes_are_given_as_they_are_stored_whatever_their_encoding(store: ObjectStore) -> None:
    content = gzip.compress(b"x" * 10_000)
    await store.put("file.gz", content, content_type="application/gzip")
    assert await store.read("file.gz") == content


async def test_a_missing_object_is_named(store: ObjectStore) -> None:
    with pytest.raises(ObjectNotFound, match="nothing/here"):
        await store.stat("nothing/here")
    with pytest.raises(ObjectNotFound, match="nothing/here"):
        async with store.get("nothing/here"):
            pass
    assert not await store.exists("nothing/here")


async def test_a_missing_bucket_is_not_a_missing_object(settings_for: SettingsFactory) -> None:
    async with ObjectStore(settings_for(bucket="replank-there-is-none")) as store:
        with pytest.raises(BucketMissing):
            await store.exists("a")
        with pytest.raises(BucketMissing):
            await store.put("a", b"x")
        with pytest.raises(BucketMissing):
            async with store.get("a"):
                pass
        with pytest.raises(BucketMissing):
            await store.check()


@pytest.mark.parametrize("wrong", [{"secret_key": "wrong-secret"}, {"access_key": "nobody-we-know"}])
async def test_wrong_credentials_are_refused_and_not_repeated_in_errors(
    settings_for: SettingsFactory, store: ObjectStore, wrong: dict[str, str]
) -> None:
    await store.put("a", b"kept")
    async with ObjectStore(settings_for(**wrong)) as stranger:
        with pytest.raises(AccessDenied) as caught:
            await stranger.put("a", b"changed")
        with pytest.raises(AccessDenied):
            await stranger.exists("a")
        with pytest.raises(AccessDenied):
            async with stranger.get("a"):
                pass
    assert stranger.settings.url in str(caught.value)
    assert not set(wrong.values()) & set(str(caught.value).split())
    assert await store.read("a") == b"kept"


@pytest.mark.parametrize("size", [3, 6 * MIB])
async def test_a_conditional_put_never_replaces(store: ObjectStore, size: int) -> None:
    await store.put("once", b"first", if_none_match=True)
    with pytest.raises(ObjectExists, match="once"):
        await store.put("once", b"x" * size, if_none_match=True)
    assert await store.read("once") == b"first"
    assert await uploads_in_progress(store) == 0
    assert await keys(store) == ["once"]


async def test_of_many_conditional_puts_at_once_one_wins(store: ObjectStore) -> None:
    results = await asyncio.gather(
        *(store.put("race", str(number).encode(), if_none_match=True) for number in range(20)), return_exceptions=True
    )
    losers = [result for result in results if isinstance(result, ObjectExists)]
    assert len(losers) == 19
    winner = next(number for number, result in enumerate(results) if not isinstance(result, BaseException))
    assert await store.read("race") == str(winner).encode()


async def test_a_store_that_would_replace_refuses_a_conditional_put(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one thing changed is what the store answers: the header gets lost, as in stores that do not know it.
    send = store._wire._send

    def lose_condition(method: str, key: str | None = None, **options: object) -> object:
        headers = options.get("headers")
        if isinstance(headers, dict):
            headers.pop("If-None-Match", None)
        return send(method, key, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store._wire, "_send", lose_condition)
    assert not (await store.probe()).conditional_put
    with pytest.raises(Unsupported, match="cannot promise"):
        await store.put("once", b"x", if_none_match=True)
    assert await keys(store) == []


async def test_a_key_below_an_object_is_a_conflict_here(store: ObjectStore) -> None:
    await store.put("a", b"x")
    with pytest.raises(KeyConflict):
        await store.put("a/b", b"x")
    await store.put("p/q", b"x")
    with pytest.raises(KeyConflict):
        await store.put("p", b"x")


@pytest.mark.parametrize("content", [b"short", b"x" * (6 * MIB)])
@pytest.mark.parametrize("announced", [1, 7 * MIB])
async def test_a_source_of_another_size_than_announced_stores_nothing(
    store: ObjectStore, content: bytes, announced: int
) -> None:
    with pytest.raises(SizeMismatch):
        await store.put("a", stream(content), size=announced)
    assert await keys(store) == []
    assert await uploads_in_progress(store) == 0


@pytest.mark.parametrize("size", [5, 6 * MIB])
async def test_a_source_with_another_checksum_than_announced_stores_nothing(store: ObjectStore, size: int) -> None:
    with pytest.raises(ChecksumMismatch):
        await store.put("a", stream(b"x" * size), sha256=hashlib.sha256(b"other").hexdigest())
    assert await keys(store) == []
    assert await uploads_in_progress(store) == 0


async def test_an_object_with_another_checksum_than_expected_is_reported_after_its_bytes(store: ObjectStore) -> None:
    await store.put("a", b"tampered")
    with pytest.raises(ChecksumMismatch, match="do not use these bytes"):
        await store.read("a", sha256=hashlib.sha256(b"original").hexdigest())


async def test_bytes_damaged_on_the_way_are_refused_by_the_store(store: ObjectStore) -> None:
    with pytest.raises(ChecksumMismatch):
        await asyncio.to_thread(store._wire.put, "a", b"damaged", {}, hashlib.sha256(b"sent").digest())
    assert await keys(store) == []


async def test_a_source_that_fails_leaves_nothing_behind(store: ObjectStore) -> None:
    async def failing() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield bytes(MIB)
        raise LookupError("the source broke")

    with pytest.raises(LookupError):
        await store.put("a", failing())
    assert await keys(store) == []
    assert await uploads_in_progress(store) == 0


async def test_a_put_cancelled_in_the_middle_leaves_nothing_behind(store: ObjectStore) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for number in range(10_000):
            if number == 12:
                reached.set()
                await asyncio.Event().wait()
            yield bytes(MIB)

    put = asyncio.create_task(store.put("a", endless()))
    await reached.wait()
    assert await uploads_in_progress(store) == 1
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert await keys(store) == []
    assert await uploads_in_progress(store) == 0


async def test_uploads_of_killed_processes_are_swept_and_others_are_not(store: ObjectStore) -> None:
    for key in ("left/1", "left/2", "other"):
        await asyncio.to_thread(store._wire.create_upload, key, {})
    assert await store.abort_stale_uploads(older_than=timedelta(hours=1)) == 0
    assert await store.abort_stale_uploads(older_than=timedelta(seconds=-60), prefix="left/") == 2
    assert await uploads_in_progress(store) == 1


async def test_a_listing_is_in_order_by_pages_from_anywhere(store: ObjectStore) -> None:
    names = [f"list/{number:04}" for number in range(1105)]
    await asyncio.gather(*(store.put(name, b"x") for name in names), store.put("zz ü+", b"y"))
    assert await keys(store) == [*names, "zz ü+"]
    assert [info.key async for info in store.list("list/", after="list/1099")] == names[1100:]
    assert [info.key async for info in store.list("list/", limit=3)] == names[:3]
    assert [info.key async for info in store.list("list/", after="list/0004", limit=1001)] == names[5:1006]
    assert [info.size async for info in store.list("zz")] == [1]
    assert [info async for info in store.list("none/")] == []


async def test_deleting_twice_is_no_error(store: ObjectStore) -> None:
    await store.put("a", b"x")
    await store.delete("a")
    await store.delete("a")
    assert not await store.exists("a")


@pytest.mark.parametrize("key", ["", "/a", "a/../b"])
async def test_no_operation_takes_a_bad_key(store: ObjectStore, key: str) -> None:
    with pytest.raises(InvalidKey):
        await store.put(key, b"")
    with pytest.raises(InvalidKey):
        await store.stat(key)
    with pytest.raises(InvalidKey):
        await store.delete(key)
    with pytest.raises(InvalidKey):
        store.presign(key, expires=timedelta(minutes=1))


async def test_a_signed_url_works_for_those_without_credentials(store: ObjectStore) -> None:
    await store.put("a", b"shared")
    async with httpx.AsyncClient() as client:
        answer = await client.get(store.presign("a", expires=timedelta(minutes=1)))
        assert answer.content == b"shared"
        assert (await client.get(store.presign("a", expires=timedelta(minutes=1)) + "0")).status_code == 403
    with pytest.raises(InvalidObject):
        store.presign("a", expires=timedelta(days=8))


async def test_an_object_too_large_to_be_read_at_once_is_refused(store: ObjectStore) -> None:
    await store.put("a", b"x" * 101)
    with pytest.raises(InvalidObject, match="stream it"):
        await store.read("a", limit=100)


async def test_probing_tells_what_the_store_does_and_leaves_nothing(store: ObjectStore) -> None:
    found = await store.probe()
    assert found.conditional_put
    assert found.conditional_multipart
    assert found.checksums
    assert not found.versioning
    assert not found.object_lock
    assert await keys(store) == []
    assert await uploads_in_progress(store) == 0


async def test_a_bucket_is_made_once_and_keeps_versions_if_told(settings_for: SettingsFactory, s3: object) -> None:
    settings = settings_for()
    async with ObjectStore(settings) as store:
        await store.ensure_bucket()
        await store.ensure_bucket(versioning=True)
        assert (await store.probe()).versioning
        assert [item async for item in store.list(".replank-probe/")] == []
        first = await store.put("a", b"one")
        second = await store.put("a", b"two")
        assert first.version_id != second.version_id
        async with store.get("a", version_id=first.version_id) as body:
            assert [chunk async for chunk in body] == [b"one"]
        with pytest.raises(Unsupported):
            await store.ensure_bucket(object_lock=True)
        for info in (first, second):
            await store.delete("a", version_id=info.version_id)


async def test_leaving_a_get_early_closes_its_connection(store: ObjectStore) -> None:
    await store.put("a", bytes(8 * MIB))
    async with store.get("a") as body:
        async for chunk in body:
            assert chunk
            break
    assert body._response is None
    with pytest.raises(RuntimeError):
        [chunk async for chunk in body]


async def test_many_objects_go_in_and_out_at_once(store: ObjectStore) -> None:
    contents = {f"many/{number}": os.urandom(number * 997) for number in range(100)}
    await asyncio.gather(*(store.put(key, stream(content)) for key, content in contents.items()))
    assert dict(zip(contents, await asyncio.gather(*(store.read(key) for key in contents)), strict=True)) == contents


async def test_every_operation_is_a_span_below_the_current_one(store: ObjectStore) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    store._tracer = provider.get_tracer("test")
    with provider.get_tracer("test").start_as_current_span("caller") as caller:
        await store.put("a", b"x")
        async with store.get("a") as body:
            assert trace.get_current_span() is caller
            assert [chunk async for chunk in body] == [b"x"]
        with pytest.raises(ObjectNotFound):
            await store.stat("b")
    bucket = store.settings.bucket
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"caller", f"s3 put {bucket}", f"s3 get {bucket}", f"s3 stat {bucket}"}
    for name, span in spans.items():
        if name != "caller":
            assert span.parent is not None
            assert span.parent.span_id == caller.get_span_context().span_id
            assert span.attributes is not None
            assert span.attributes["rpc.system"] == "aws-api"
            assert span.attributes["aws.s3.bucket"] == bucket
            assert store.settings.secret_key.get_secret_value() not in str(dict(span.attributes))
    put = spans[f"s3 put {bucket}"]
    assert put.attributes is not None
    assert put.attributes["aws.s3.key"] == "a"


async def test_the_current_span_is_seen_in_the_threads(store: ObjectStore) -> None:
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(7, 9, is_remote=False))):
        inside = await store._threads.run(trace.get_current_span)
    assert inside.get_span_context().span_id == 9


async def test_bytes_and_errors_are_counted(store: ObjectStore) -> None:
    await store.put("a", b"12345")
    await store.read("a")
    with pytest.raises(ObjectNotFound):
        await store.stat("b")
    bucket = store.settings.bucket
    page = render_metrics()[0].decode()
    assert f'replank_objects_transferred_bytes_total{{bucket="{bucket}",direction="out"}} 5.0' in page
    assert f'replank_objects_transferred_bytes_total{{bucket="{bucket}",direction="in"}} 5.0' in page
    assert f'replank_objects_errors_total{{bucket="{bucket}",error="ObjectNotFound",operation="stat"}} 1.0' in page
