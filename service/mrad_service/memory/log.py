"""The write-ahead log: segments in a folder, replayed when it opens, appended with fsync."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mrad.files import atomic_write_bytes, fsync_folder
from mrad_service.memory.errors import BaseChangedError, LogCorruptError, LogWriteError
from mrad_service.memory.frames import (
    Frame,
    Segment,
    SegmentHeader,
    TornError,
    base_of,
    encode_frame,
)

logger = logging.getLogger(__name__)
SUFFIX = ".wal"


class Log:
    """The log of one memory. Not thread-safe: the store's committer is its only user.

    `sequence` counts operations over the memory's whole life; a segment is named by the first it
    may hold, so what a snapshot holds already can be dropped by name.
    """

    def __init__(
        self, folder: Path, base: str, applied: int, replay: Callable[[bytes], None]
    ) -> None:
        """Replay every operation after `applied`, cut a torn tail, be ready to append.

        Raises `LogCorruptError`, `BaseChangedError`.
        """
        self.folder, self.base, self.sequence = folder, base, applied
        self.bytes = 0
        """Of frames since the last rotation."""
        self._failed = ""
        self._descriptor = -1
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)
        self.drop_through(applied)  # a crash may have come between the snapshot and this
        paths = segment_paths(folder)
        for index, path in enumerate(paths):
            self._replay(path, applied, replay, index == len(paths) - 1)
        self._open(paths[-1] if paths else self._create())

    def append(self, operations: Sequence[bytes]) -> int:
        """Make one commit durable; returns the sequence of its last operation.

        Raises `LogWriteError`: nothing of it is in the log then. After a failed fsync nobody knows
        what the disk holds, so every later append is refused until the memory is opened anew.
        """
        if self._failed:
            raise LogWriteError(self._failed)
        data = encode_frame(self.sequence + 1, operations)
        try:
            self._write_all(data)
        except OSError as error:
            self._undo()
            raise LogWriteError(f"{self._path} cannot be written: {error}") from error
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._failed = f"{self._path} could not be made durable ({error}); restart the server"
            raise LogWriteError(self._failed) from error
        self._end += len(data)
        self.bytes += len(data)
        self.sequence += len(operations)
        return self.sequence

    def rotate(self) -> None:
        """Go on in a new segment; what stands so far may be dropped once a snapshot holds it."""
        if int(self._path.stem) <= self.sequence:
            path, old = self._create(), self._descriptor
            self._open(path)
            os.close(old)
        self.bytes = 0

    def drop_through(self, sequence: int) -> None:
        """Remove the segments that hold nothing after `sequence`."""
        paths = segment_paths(self.folder)
        for path, following in itertools.pairwise(paths):
            if int(following.stem) <= sequence + 1:
                path.unlink()
        fsync_folder(self.folder)

    def close(self) -> None:
        """Give the file back; everything acknowledged is durable already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _replay(
        self, path: Path, applied: int, replay: Callable[[bytes], None], last: bool
    ) -> None:
        segment = Segment(path)
        try:
            header, offset = segment.header()
            if header.base != self.base:
                raise BaseChangedError(base_changed(base_of(path)))
            for frame in segment.frames(offset):
                if frame.last <= applied:
                    continue
                self._check_sequence(path, frame)
                for operation in frame.operations:
                    replay(operation)
                self.sequence = frame.last
                self.bytes += frame.end - frame.offset
        except TornError as torn:
            if not last:
                raise LogCorruptError(
                    f"{path} ends at byte {torn.offset} in the middle of a record, yet the log "
                    f"goes on in the next file. `mrad memory repair {base_of(path)}` keeps every "
                    "record that is still whole"
                ) from None
            self._cut(path, torn.offset, len(segment.data))

    def _check_sequence(self, path: Path, frame: Frame) -> None:
        """Frames follow each other; only what the snapshot holds may be missing in front."""
        if frame.first != self.sequence + 1:
            raise LogCorruptError(
                f"{path} goes on with operation {frame.first} at byte {frame.offset}, but "
                f"{self.sequence + 1} should follow: a file of the log is gone or does not belong "
                f"here. Restore it, or accept the loss with `mrad memory repair {base_of(path)}`"
            )

    def _cut(self, path: Path, offset: int, size: int) -> None:
        logger.warning(
            "%s: cut %d bytes at byte %d, a write that never finished and was never acknowledged",
            path, size - offset, offset,
        )  # fmt: skip
        if offset == 0:  # the header itself: begin the segment anew
            atomic_write_bytes(path, SegmentHeader(self.base, int(path.stem)).encode())
            return
        with path.open("r+b") as file:
            file.truncate(offset)
            os.fsync(file.fileno())

    def _create(self) -> Path:
        """A segment appears with its header whole, or not at all."""
        path = self.folder / f"{self.sequence + 1:020d}{SUFFIX}"
        atomic_write_bytes(path, SegmentHeader(self.base, self.sequence + 1).encode())
        return path

    def _open(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._end = os.lseek(self._descriptor, 0, os.SEEK_END)

    def _write_all(self, data: bytes) -> None:
        view, offset = memoryview(data), self._end
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def _undo(self) -> None:
        """Cut what a failed write left, so that the next frame follows the last good one."""
        try:
            os.ftruncate(self._descriptor, self._end)
            os.fsync(self._descriptor)
        except OSError as error:
            self._failed = f"{self._path} cannot be written ({error}); restart the server"


def segment_paths(folder: Path) -> list[Path]:
    """The segments in order."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdigit())


def base_changed(bank: Path) -> str:
    """The message of `BaseChangedError`."""
    return (
        f"{bank} is not the bank that {bank.name}.live was taught on: it was rebuilt. Put the old "
        f"one back and export the memory, or move {bank.name}.live away to begin anew on this one"
    )
