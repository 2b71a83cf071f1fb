"""Compressed content of which any part can be read: the seekable format of Zstandard.

The content is cut into frames of :data:`FRAME` bytes, each compressed on its own with a checksum of its content, so
that a part needs no more than the frames that it lies in. A table at the end, in a skippable frame, says how long each
one is. Every Zstandard decoder (RFC 8878) reads the whole, and skips the table.

The format is that of ``contrib/seekable_format/zstd_seekable_compression_format.md`` (version 0.1.0) in Zstandard's
repository, without its optional checksums in the table: the frames have their own.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import zstandard

from replank.errors import ReplankError

FRAME: Final = 1024 * 1024
"""Bytes of content in a frame; only the last one may have less."""

_LONGEST_STORED_FRAME: Final = FRAME + FRAME // 256 + 1024  # what cannot be compressed is stored, in blocks
_MAGIC: Final = zstandard.FRAME_HEADER
_TABLE_MAGIC: Final = 0x184D2A5E
_TABLE_MAGIC_BYTES: Final = _TABLE_MAGIC.to_bytes(4, "little")
_FOOTER_MAGIC: Final = 0x8F92EAB1
_TABLE_HEADER: Final = struct.Struct("<II")  # magic number, bytes that follow
_TABLE_ENTRY: Final = struct.Struct("<II")  # stored length of a frame, length of its content
_TABLE_FOOTER: Final = struct.Struct("<IBI")  # frames, descriptor, magic number
_CHECKSUM: Final = 4


class CorruptContent(ReplankError):
    """What is stored is not what was stored: a frame or the table is damaged, or the end is missing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, fix="check the vault's consistency, and restore the object from a copy")


def seek_table_length(size: int, frame: int = FRAME) -> int:
    """How many bytes at the end of what is stored are the table, for a content of ``size`` bytes."""
    return _table_length(-(-size // frame))


def _table_length(frames: int) -> int:
    return _TABLE_HEADER.size + frames * _TABLE_ENTRY.size + _TABLE_FOOTER.size


def _table(entries: bytes) -> bytes:
    frames = len(entries) // _TABLE_ENTRY.size
    header = _TABLE_HEADER.pack(_TABLE_MAGIC, _table_length(frames) - _TABLE_HEADER.size)
    return header + entries + _TABLE_FOOTER.pack(frames, 0, _FOOTER_MAGIC)


class Compressor:
    """Compresses one content. What it gives depends on the content, not on how that is cut.

    Holds one frame. Not thread-safe; `feed` is CPU work: give large chunks to a thread.
    """

    def __init__(self, level: int = 3) -> None:
        self._zstd = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        self._waiting = bytearray()
        self._entries = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """Take content; return the frames that it fills, if any."""
        missing = FRAME - len(self._waiting)
        if len(chunk) < missing:
            self._waiting += chunk
            return b""
        rest = memoryview(chunk)
        self._waiting += rest[:missing]
        frames = [self._frame(self._waiting)]
        end = missing
        while end + FRAME <= len(rest):
            frames.append(self._frame(rest[end : end + FRAME]))
            end += FRAME
        self._waiting = bytearray(rest[end:])
        return b"".join(frames)

    def finish(self) -> bytes:
        """The last frame and the table. The compressor is of no more use."""
        last = self._frame(self._waiting) if self._waiting else b""
        return last + _table(bytes(self._entries))

    def _frame(self, content: bytearray | memoryview) -> bytes:
        # What the library returns keeps the memory that it set aside, for the worst case: a copy does not.
        frame = bytes(memoryview(self._zstd.compress(content)))
        self._entries += _TABLE_ENTRY.pack(len(frame), len(content))
        return frame


@dataclass(frozen=True, slots=True)
class Span:
    """The stored bytes that hold a part of the content, and where in what they decompress to that part is."""

    offset: int
    length: int
    skip: int
    take: int


class SeekTable:
    """Where each frame is."""

    def __init__(self, entries: list[tuple[int, int]]) -> None:
        self._stored = [0, *accumulate(stored for stored, _ in entries)]
        self._content = [0, *accumulate(content for _, content in entries)]

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return self._content[-1]

    @classmethod
    def parse(cls, tail: bytes) -> SeekTable:
        """Read the table from the last `seek_table_length` bytes of what is stored.

        Raises:
            CorruptContent: they are no such table.
        """
        entries = tail[_TABLE_HEADER.size : -_TABLE_FOOTER.size]
        if len(tail) < _table_length(0) or len(entries) % _TABLE_ENTRY.size or _table(entries) != tail:
            raise CorruptContent("the table of the frames is damaged")
        lengths = list(_TABLE_ENTRY.iter_unpack(entries))
        if any(not stored or not 0 < content <= FRAME for stored, content in lengths):
            raise CorruptContent("the table of the frames has a frame of an impossible length")
        return cls(lengths)

    def locate(self, first: int, length: int) -> Span:
        """Where to find ``length`` bytes of the content from ``first``, counted from 0.

        Raises:
            ValueError: they are none, or not all within the content.
        """
        if first < 0 or length < 1 or first + length > self.size:
            raise ValueError(f"{length} bytes from {first} are no part of a content of {self.size} bytes")
        start = bisect_right(self._content, first) - 1
        last = bisect_right(self._content, first + length - 1) - 1
        offset = self._stored[start]
        return Span(offset, self._stored[last + 1] - offset, first - self._content[start], length)


class Decompressor:
    """Decompresses what is stored, or frames of it.

    ``take=None`` reads all that is stored, and checks its table; else the frames of a `Span` are read, of whose content
    ``skip`` bytes are left out and the next ``take`` returned. Holds one frame, compressed and not, whatever it is fed:
    a frame that says or has more is corrupt. Not thread-safe; taking the next piece is CPU work of about a millisecond.
    """

    def __init__(self, skip: int = 0, take: int | None = None) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=FRAME)
        self._waiting = bytearray()
        self._entries = bytearray()
        self._whole = take is None
        self._ended = False  # the table has been read
        self._skip = skip
        self._take = take

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take stored bytes; iterate over the pieces of content that they complete, at most a frame each.

        A piece is decompressed when it is asked for: one chunk may hold the frames of a content a thousand times its
        size. What was not asked for comes with the next call.

        Raises:
            CorruptContent: from the iterator.
        """
        self._waiting += chunk
        return self._pieces()

    def finish(self) -> None:
        """Say that there are no more stored bytes.

        Raises:
            CorruptContent: there should be more, or the iterator of `feed` was not exhausted.
        """
        if self._waiting or self._take or (self._whole and not self._ended):
            raise CorruptContent("the end of what is stored is missing")

    def _pieces(self) -> Iterator[bytes]:
        while self._waiting:
            if self._ended:
                raise CorruptContent("something follows the table of the frames")
            if self._whole and _starts_with(self._waiting, _TABLE_MAGIC_BYTES):
                if not self._read_table():
                    return
                continue
            length = _frame_length(self._waiting)
            if length is None:
                return
            content = self._content(bytes(self._waiting[:length]))
            self._entries += _TABLE_ENTRY.pack(length, len(content))
            del self._waiting[:length]
            if piece := self._part(content):
                yield piece

    def _read_table(self) -> bool:
        expected = _table(bytes(self._entries))
        if not _starts_with(self._waiting, expected):
            raise CorruptContent("the table of the frames is not that of these frames")
        self._ended = len(self._waiting) >= len(expected)
        if self._ended:
            del self._waiting[: len(expected)]
        return self._ended

    def _content(self, frame: bytes) -> bytes:
        try:
            return self._zstd.decompress(frame)
        except zstandard.ZstdError as error:
            raise CorruptContent(f"a frame cannot be decompressed: {error}") from error

    def _part(self, content: bytes) -> bytes:
        skipped = min(self._skip, len(content))
        self._skip -= skipped
        part = content[skipped:] if self._take is None else content[skipped : skipped + self._take]
        if self._take is not None:
            self._take -= len(part)
        return part


def _starts_with(data: bytearray, expected: bytes) -> bool:
    """Whether ``data``, as far as it goes, is how ``expected`` starts, or starts with it."""
    return data[: len(expected)] == expected[: len(data)]


def _frame_length(data: bytearray) -> int | None:
    """How many bytes the frame has that ``data`` starts with; None: it is not there to its end.

    Follows the headers of the blocks (RFC 8878, section 3.1.1) without decompressing any.
    """
    if not _starts_with(data, _MAGIC):
        raise CorruptContent("a frame does not start where one should")
    if len(data) <= len(_MAGIC):
        return None
    descriptor = data[len(_MAGIC)]
    in_one_segment = bool(descriptor & 0x20)
    dictionary_id = (0, 1, 2, 4)[descriptor & 3]
    content_size = (int(in_one_segment), 2, 4, 8)[descriptor >> 6]
    end = len(_MAGIC) + 1 + (not in_one_segment) + dictionary_id + content_size
    if end > len(data):
        return None
    try:
        header = zstandard.get_frame_parameters(bytes(data[:end]))
    except zstandard.ZstdError as error:
        raise CorruptContent(f"the header of a frame is damaged: {error}") from error
    if not 0 < header.content_size <= FRAME or not header.has_checksum or header.dict_id:
        raise CorruptContent("the header of a frame is not as it is written here")
    is_last = False
    while not is_last:
        if end > _LONGEST_STORED_FRAME:
            raise CorruptContent("a frame is longer than its content can make it")
        if end + 3 > len(data):
            return None
        block = int.from_bytes(data[end : end + 3], "little")
        is_last = bool(block & 1)
        is_repeated = (block >> 1) & 3 == 1  # one byte is stored, and how often it comes
        end += 3 + (1 if is_repeated else block >> 3)
    end += _CHECKSUM
    return end if end <= len(data) else None
