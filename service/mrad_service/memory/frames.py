"""The bytes of the log: segments of checksummed frames (docs/memory.md has the layout).

One frame is one commit: the operations of all writers that waited together, made durable by one
fsync. So a write that was cut short is always the last frame of the last segment.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrad_service.memory.errors import LogCorruptError

MAGIC = b"MRADWAL\x01"
FRAME_MAGIC = 0x4C41574D  # "MWAL"
FRAME_END = 0xE5D0F00D
FORMAT_VERSION = 1
SECTOR = 512
HEAD = struct.Struct("<IIQIII")
"""Frame magic, body bytes, first sequence, operations, CRC-32 of the body, CRC-32 of the head."""
TAIL = struct.Struct("<I")
LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment says about itself."""

    base: str
    """Content digest of the bank folder under the memory."""
    first: int
    """Sequence of the first operation that may stand here."""

    def encode(self) -> bytes:
        """Magic, length, JSON, CRC-32 of all of these."""
        facts = {"format_version": FORMAT_VERSION, "base": self.base, "first": self.first}
        text = json.dumps(facts).encode()
        data = MAGIC + LENGTH.pack(len(text)) + text
        return data + LENGTH.pack(zlib.crc32(data))


@dataclass(frozen=True)
class Frame:
    """One commit as it stands in a segment."""

    offset: int
    end: int
    first: int
    """Sequence of its first operation; the others follow without a gap."""
    operations: tuple[bytes, ...]

    @property
    def last(self) -> int:
        """Sequence of its last operation."""
        return self.first + len(self.operations) - 1


def encode_frame(first: int, operations: Sequence[bytes]) -> bytes:
    """The bytes of one commit."""
    body = b"".join(LENGTH.pack(len(item)) + item for item in operations)
    head = struct.pack("<IIQII", FRAME_MAGIC, len(body), first, len(operations), zlib.crc32(body))
    return head + LENGTH.pack(zlib.crc32(head)) + body + TAIL.pack(FRAME_END)


class TornError(Exception):
    """The bytes from `offset` on were never wholly written."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class Segment:
    """One file of the log, read whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()

    def header(self) -> tuple[SegmentHeader, int]:
        """The header and where frames begin. Raises `TornError`, `LogCorruptError`."""
        start = len(MAGIC) + LENGTH.size
        if len(self.data) < start:
            raise TornError(0)
        (length,) = LENGTH.unpack_from(self.data, len(MAGIC))
        end = start + length + LENGTH.size
        if self.data[: len(MAGIC)] != MAGIC or length > 1 << 16:
            raise self._corrupt(0, "its header is not that of a log")
        if len(self.data) < end:
            raise TornError(0)
        (crc,) = LENGTH.unpack_from(self.data, end - LENGTH.size)
        if crc != zlib.crc32(self.data[: end - LENGTH.size]):
            raise self._corrupt(0, "its header fails its checksum")
        facts = json.loads(self.data[start : end - LENGTH.size])
        if facts["format_version"] > FORMAT_VERSION:
            raise self._corrupt(0, f"it has format {facts['format_version']}; upgrade mrad")
        return SegmentHeader(facts["base"], facts["first"]), end

    def frames(self, offset: int) -> Iterator[Frame]:
        """Every frame from `offset` on, verified before it is handed out.

        Raises `TornError` where an unfinished write begins, `LogCorruptError` where a frame that
        was once whole no longer is.
        """
        while offset < len(self.data):
            frame = self.frame_at(offset)
            if frame is None:
                if self._never_finished(offset):
                    raise TornError(offset)
                raise self._corrupt(offset, "a record fails its checksum")
            yield frame
            offset = frame.end

    def frame_at(self, offset: int) -> Frame | None:
        """The whole, verified frame at `offset`, or None."""
        head = self.data[offset : offset + HEAD.size]
        if len(head) < HEAD.size:
            return None
        magic, length, first, count, body_crc, head_crc = HEAD.unpack(head)
        if magic != FRAME_MAGIC or head_crc != zlib.crc32(head[: -LENGTH.size]):
            return None
        start, stop = offset + HEAD.size, offset + HEAD.size + length
        body = self.data[start:stop]
        if len(body) < length or zlib.crc32(body) != body_crc:
            return None
        if self.data[stop : stop + TAIL.size] != TAIL.pack(FRAME_END):
            return None
        return Frame(offset, stop + TAIL.size, first, tuple(_split(body, count)))

    def salvage(self, offset: int = 0) -> Iterator[Frame]:
        """Every whole frame wherever it stands from `offset` on, also behind damage."""
        mark = LENGTH.pack(FRAME_MAGIC)
        while (offset := self.data.find(mark, offset)) >= 0:
            frame = self.frame_at(offset)
            if frame is not None:
                yield frame
            offset = frame.end if frame is not None else offset + 1

    def _never_finished(self, offset: int) -> bool:
        """Whether the bad frame at `offset` is a write that was cut short, not later damage.

        A killed process leaves a prefix. A power cut may leave sectors of zeros where the data
        never came. Anything else had its end mark on disk, so it may have been acknowledged, and
        cutting it would lose it silently; so would cutting in front of whole frames.
        """
        rest = self.data[offset:]
        if any(True for _ in self.salvage(offset + 1)):
            return False
        head = rest[: HEAD.size]
        if len(head) == HEAD.size and any(head):
            magic, length, *_, head_crc = HEAD.unpack(head)
            if magic == FRAME_MAGIC and head_crc == zlib.crc32(head[: -LENGTH.size]):
                whole = HEAD.size + length + TAIL.size
                return len(rest) < whole or _has_hole(self.data, offset, offset + whole)
            return _has_hole(self.data, offset, len(self.data))
        return len(head) < HEAD.size or not any(rest)

    def _corrupt(self, offset: int, what: str) -> LogCorruptError:
        return LogCorruptError(
            f"{self.path} is damaged at byte {offset}: {what}. What stands there may have been "
            f"acknowledged, so nothing was cut. `mrad memory repair {base_of(self.path)}` keeps "
            "every record that is still whole and sets the damaged log aside"
        )


def base_of(segment: Path) -> Path:
    """The bank folder that a segment (`<bank>.live/log/<first>.wal`) belongs to."""
    live = segment.parent.parent
    return live.with_name(live.name.removesuffix(".live"))


def _split(body: bytes, count: int) -> Iterator[bytes]:
    offset = 0
    for _ in range(count):
        (length,) = LENGTH.unpack_from(body, offset)
        offset += LENGTH.size
        yield body[offset : offset + length]
        offset += length


def _has_hole(data: bytes, start: int, end: int) -> bool:
    """Whether a sector in [start, end), or the part of one at its ends, is nothing but zeros."""
    while start < end:
        stop = min((start // SECTOR + 1) * SECTOR, end)
        if not any(data[start:stop]):
            return True
        start = stop
    return False
