"""Compressed content is read back whole or in part, by any Zstandard decoder, and damage is noticed."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from replank_schema.vault.codec import (
    FRAME,
    Compressor,
    CorruptContent,
    Decompressor,
    SeekTable,
    seek_table_length,
)

MIB = 1024 * 1024


def stored(chunks: Iterable[bytes]) -> bytes:
    compressor = Compressor()
    return b"".join([*(compressor.feed(chunk) for chunk in chunks), compressor.finish()])


def content_of(chunks: Iterable[bytes], skip: int = 0, take: int | None = None) -> bytes:
    decompressor = Decompressor(skip, take)
    content = b"".join(piece for chunk in chunks for piece in decompressor.feed(chunk))
    decompressor.finish()
    return content


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(at % (len(data) + 1) for at in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@cache
def content(size: int) -> bytes:
    """Content of ``size`` bytes, of which some is repeated, some random."""
    chance = random.Random(size)
    return b"".join(
        chance.randbytes(16 * 1024) if chance.random() < 0.5 else b'{"sku": "A-1", "count": 7}, ' * 600
        for _ in range(size // (16 * 1024) + 1)
    )[:size]


@cache
def kept(size: int) -> bytes:
    return stored([content(size)])


SIZES = st.sampled_from(
    [0, 1, 2, 20, 1_000, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 2 * FRAME + 1, 3 * FRAME - 1, 3 * FRAME + 100_000]
)
CUTS = st.lists(st.integers(min_value=0), max_size=5)


@given(SIZES, CUTS, CUTS)
def test_what_was_compressed_is_what_comes_back_wherever_either_is_cut(
    size: int, cuts: list[int], stored_cuts: list[int]
) -> None:
    compressed = stored(cut(content(size), cuts))

    assert compressed == kept(size)
    assert content_of(cut(compressed, stored_cuts)) == content(size)


@given(SIZES.filter(bool), st.data())
def test_any_part_is_read_from_the_frames_that_hold_it(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size - 1) | st.sampled_from([0, size - 1]))
    length = data.draw(st.integers(1, size - first) | st.just(size - first))
    object_ = kept(size)

    span = SeekTable.parse(object_[-seek_table_length(size) :]).locate(first, length)

    assert span.take == length
    assert span.skip < FRAME
    held = object_[span.offset : span.offset + span.length]
    chunks = cut(held, data.draw(CUTS))
    assert content_of(chunks, span.skip, span.take) == content(size)[first : first + length]
    needed = (first + length - 1) // FRAME - first // FRAME + 1
    assert held.count(zstandard.FRAME_HEADER) == needed


@pytest.mark.parametrize("size", [0, 1, FRAME, 3 * FRAME + 100_000])
def test_any_zstandard_decoder_reads_the_whole(size: int) -> None:
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(kept(size)), read_across_frames=True)

    assert reader.read() == content(size)


@pytest.mark.parametrize(("size", "frames"), [(0, 0), (1, 1), (FRAME, 1), (FRAME + 1, 2), (3 * FRAME + 100_000, 4)])
def test_the_table_is_that_of_the_seekable_format(size: int, frames: int) -> None:
    """Read here as the format's document says, without the code under test."""
    object_ = kept(size)

    number, descriptor, magic = struct.unpack("<IBI", object_[-9:])
    assert (number, descriptor, magic) == (frames, 0, 0x8F92EAB1)
    table = object_[-(8 + 8 * number + 9) :]
    assert len(table) == seek_table_length(size)
    assert struct.unpack("<II", table[:8]) == (0x184D2A5E, len(table) - 8)
    at = 0
    read = b""
    for compressed, decompressed in struct.iter_unpack("<II", table[8:-9]):
        frame = object_[at : at + compressed]
        assert zstandard.frame_content_size(frame) == decompressed
        read += zstandard.ZstdDecompressor().decompress(frame)
        at += compressed
    assert at == len(object_) - len(table)
    assert read == content(size)


def test_a_part_that_is_none_is_an_error() -> None:
    table = SeekTable.parse(kept(1_000)[-seek_table_length(1_000) :])

    assert table.size == 1_000
    for first, length in [(0, 0), (-1, 2), (1_000, 1), (999, 2)]:
        with pytest.raises(ValueError, match="no part of a content of 1000 bytes"):
            table.locate(first, length)


# Damage


SMALL = [content(700), content(FRAME + 300)]


@given(st.sampled_from(SMALL), st.integers(min_value=0), st.integers(0, 7))
@example(SMALL[0], 4, 2)  # the flag of the checksum
@example(SMALL[0], -5, 0)  # the table's descriptor
def test_a_flipped_bit_is_noticed_if_it_matters(original: bytes, byte: int, bit: int) -> None:
    """It does not in a frame's descriptor, where a bit is unused, and in some fields that a decoder has no use for."""
    damaged = bytearray(stored([original]))
    damaged[byte % len(damaged)] ^= 1 << bit
    try:
        read = content_of([bytes(damaged)])
    except CorruptContent:
        return

    assert read == original


@pytest.mark.parametrize("original", SMALL, ids=["a frame", "two frames"])
def test_nearly_all_flipped_bits_matter(original: bytes) -> None:
    object_ = stored([original])
    unnoticed = []
    for byte in random.Random(7).sample(range(len(object_)), 60):
        for bit in range(8):
            damaged = bytearray(object_)
            damaged[byte] ^= 1 << bit
            try:
                content_of([bytes(damaged)])
            except CorruptContent:
                continue
            unnoticed.append((byte, bit))

    assert len(unnoticed) <= 1


@given(st.sampled_from(SMALL), st.integers(min_value=0), st.integers(0, 7))
def test_a_flipped_bit_never_makes_a_part_another(original: bytes, byte: int, bit: int) -> None:
    damaged = bytearray(stored([original]))
    damaged[byte % len(damaged)] ^= 1 << bit
    size = len(original)
    try:
        span = SeekTable.parse(bytes(damaged[-seek_table_length(size) :])).locate(size - 200, 100)
        read = content_of([bytes(damaged[span.offset : span.offset + span.length])], span.skip, span.take)
    except (CorruptContent, ValueError):
        return

    assert read == original[-200:-100]


@given(st.sampled_from(SMALL), st.integers(min_value=0))
@example(SMALL[0], 0)
@example(SMALL[0], -1)
def test_a_missing_end_is_noticed(original: bytes, end: int) -> None:
    object_ = stored([original])

    with pytest.raises(CorruptContent):
        content_of([object_[: end % len(object_)]])


def test_a_missing_end_of_a_part_is_noticed() -> None:
    object_ = kept(3 * FRAME)
    span = SeekTable.parse(object_[-seek_table_length(3 * FRAME) :]).locate(10, FRAME)
    held = object_[span.offset : span.offset + span.length]

    for end in (len(held) - 1, len(held) // 2, 3, 0):
        with pytest.raises(CorruptContent):
            content_of([held[:end]], span.skip, span.take)


def frame(data: bytes, *, checksum: bool = True, content_size: bool = True) -> bytes:
    compressor = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=content_size)
    return compressor.compress(data)


def table(*frames: tuple[int, int]) -> bytes:
    entries = b"".join(struct.pack("<II", *lengths) for lengths in frames)
    return struct.pack("<II", 0x184D2A5E, len(entries) + 9) + entries + struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)


GOOD = frame(b"good")

FOREIGN = {
    "nothing": b"",
    "other bytes": b"not zstandard at all",
    "no table": GOOD,
    "another's table": GOOD + table((len(GOOD), 5)),
    "a table of more frames": GOOD + table((len(GOOD), 4), (len(GOOD), 4)),
    "something after the table": GOOD + table((len(GOOD), 4)) + GOOD,
    "two tables": GOOD + table((len(GOOD), 4)) * 2,
    "a frame without a checksum": frame(b"good", checksum=False) + table((len(GOOD) - 4, 4)),
    "a frame that does not say its size": frame(b"good", content_size=False),
    "a frame of more than is allowed": frame(bytes(FRAME + 1)),
    "an empty frame": frame(b"") + table((len(frame(b"")), 0)),
    "a bomb": frame(bytes(64 * MIB)),
    "another skippable frame": struct.pack("<II", 0x184D2A50, 3) + b"abc" + table(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_was_not_written_here_is_refused(name: str) -> None:
    with pytest.raises(CorruptContent):
        content_of([FOREIGN[name]])


def test_what_is_built_by_hand_as_it_is_written_here_is_read() -> None:
    """So that what is refused above is refused for the damage."""
    assert content_of([GOOD + table((len(GOOD), 4))]) == b"good"


@pytest.mark.parametrize(
    "tail", [b"", b"short", table((0, 5)), table((5, 0)), table((5, FRAME + 1)), table()[:-1] + b"!"]
)
def test_a_damaged_table_is_refused(tail: bytes) -> None:
    with pytest.raises(CorruptContent):
        SeekTable.parse(tail)


def lying_frame() -> bytes:
    """A frame whose header promises 4 bytes, and whose blocks hold 12 MiB."""
    header = GOOD[: 4 + 1 + 1]
    repeated = (1 << 1 | 128 * 1024 << 3).to_bytes(3, "little") + b"x"
    last = (1 | 1 << 1 | 128 * 1024 << 3).to_bytes(3, "little") + b"x"
    return header + repeated * 95 + last + bytes(4)


def blocks_without_end() -> Iterator[bytes]:
    yield GOOD[: 4 + 1 + 1]
    raw = (1_000 << 3).to_bytes(3, "little") + bytes(1_000)
    for _ in range(100):
        yield raw * 1_000


def peak_while_refused(chunks: Iterable[bytes]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptContent):
            content_of(chunks)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_no_more_is_decompressed_than_a_frame_may_have() -> None:
    assert peak_while_refused([FOREIGN["a bomb"]]) < MIB
    assert peak_while_refused([lying_frame()]) < MIB
    assert peak_while_refused(blocks_without_end()) < 8 * MIB


def test_memory_is_bounded_by_a_frame_whatever_the_content() -> None:
    """Content that compresses ten thousandfold: one small chunk holds the frames of 256 MiB."""
    compressor = Compressor()
    blank = b" " * FRAME
    tracemalloc.start()
    try:
        object_ = b"".join([*(compressor.feed(blank) for _ in range(256)), compressor.finish()])
        decompressor = Decompressor()
        read = sum(len(piece) for piece in decompressor.feed(object_))
        decompressor.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert read == 256 * MIB
    assert len(object_) < 64 * 1024
    assert peak < 8 * MIB


def test_pieces_that_were_not_asked_for_come_with_the_next_call() -> None:
    decompressor = Decompressor()
    object_ = kept(2 * FRAME)
    decompressor.feed(object_[:-30])

    assert b"".join(decompressor.feed(object_[-30:])) == content(2 * FRAME)
    decompressor.finish()
