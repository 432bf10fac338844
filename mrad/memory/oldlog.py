"""What release 0.1 kept of a living memory, read once: a log in frames, snapshots, a pointer.

`BANK.live/` held `CURRENT` (JSON: which snapshot counts and up to which operation it reaches),
`generations/<n>/bank` and `ledger.json`, and `log/<first operation>.wal`. Nothing here is changed.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mrad.errors import BankCorruptError, LogCorruptError, MRADError
from mrad.files import sha256_file
from mrad.memory.contents import Contents
from mrad.memory.entry import Key
from mrad.memory.level import LEVELS, LevelMemory
from mrad.memory.operations import Add, Operation, Remove, Request, unpack_entry

MAGIC = b"MRADWAL\x01"
FRAME_MAGIC, FRAME_END = 0x4C41574D, 0xE5D0F00D
HEAD = struct.Struct("<IIQIII")
"""Frame magic, bytes of the body, first operation, operations, CRC-32 of the body, of the head."""
LENGTH = struct.Struct("<I")
SECTOR = 512
PARTS = ("CURRENT", "log", "generations")


@dataclass
class OldLog:
    """The same memory in today's terms."""

    base: str
    operations: list[Operation] = field(default_factory=list)
    requests: dict[str, Request] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    """What a salvage could not keep, for people."""


def parts(live: Path) -> list[Path]:
    """The files and folders of the old layout that are there."""
    return [live / name for name in PARTS if (live / name).exists()]


def read(
    live: Path, base: Contents, load: Callable[[Path], Contents], *, salvage: bool = False
) -> OldLog:
    """Everything since `base` was built. `load` reads a bank's folder.

    `salvage`: skip what is damaged, and say so in `lost`, instead of raising `LogCorruptError`.
    """
    current = live / "CURRENT"
    try:
        facts = json.loads(current.read_bytes())
        generation, applied = int(facts["generation"]), int(facts["applied"])
        found = OldLog(str(facts["base"]))
        digest = str(facts["ledger_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LogCorruptError(f"{current} cannot be read ({error!r}); restore it") from error
    segments = sorted(path for path in (live / "log").glob("*.wal") if path.stem.isdigit())
    _check_pointer(live, generation, applied, digest, segments)
    if generation:
        folder = live / "generations" / f"{generation:08d}"
        try:
            snapshot = load(folder / "bank")
        except MRADError as error:
            raise LogCorruptError(
                f"the snapshot that {current} names cannot be read: {error}"
            ) from error
        _read_snapshot(found, base, snapshot, folder / "ledger.json", digest)
    last = applied
    for path in segments:
        try:
            frames = list(_frames(path, found.base, newest=path == segments[-1]))
        except LogCorruptError as error:
            if not salvage:
                raise
            found.lost.append(str(error))
            frames = list(_whole_frames(path.read_bytes(), 0))
        for first, operations in frames:
            if first + len(operations) - 1 <= applied:
                continue
            if first != last + 1:
                gap = f"operations {last + 1} to {first - 1} of {path.parent} are gone"
                if not salvage:
                    raise LogCorruptError(f"{gap}: restore the file that held them")
                found.lost.append(gap)
            found.operations += [_decode(operation) for operation in operations]
            last = first + len(operations) - 1
    return found


def _check_pointer(
    live: Path, generation: int, applied: int, digest: str, segments: list[Path]
) -> None:
    """`CURRENT` had no checksum: what it says must fit the files."""
    begun = {int(path.stem) for path in segments}
    fits = applied + 1 in begun if generation else applied == 0 and begun <= {1} and not digest
    if not fits or generation < 0:
        raise LogCorruptError(
            f"{live / 'CURRENT'} names snapshot {generation} up to operation {applied}, which the files "
            "beside it do not fit: it is damaged, or a file of the log is gone. Restore it from a copy"
        )


def _read_snapshot(
    found: OldLog, base: Contents, snapshot: Contents, ledger: Path, digest: str
) -> None:
    if not ledger.is_file() or sha256_file(ledger) != digest:
        raise LogCorruptError(f"{ledger} is missing or fails its SHA-256; restore it")
    known = {entry.entry_id for entry in base.entries}
    kept = {entry.entry_id for entry in snapshot.entries}
    found.operations += [Remove(entry_id) for entry_id in known - kept]
    for row, entry in enumerate(snapshot.entries):
        if entry.entry_id not in known:
            keys: list[Key] = []
            for name in LEVELS:
                level: LevelMemory = getattr(snapshot, name)
                keys += level.take(level.entry == row).listed(name, entry.entry_id)
            thumbnail = snapshot.thumbnails.get(entry.entry_id)
            found.operations.append(Add(entry, tuple(keys), thumbnail))
    # Before contents were compared, a row had two values.
    for key, entry, *content in json.loads(ledger.read_bytes()):
        found.requests[key] = Request(unpack_entry(entry), *content)


def _frames(path: Path, base: str, *, newest: bool) -> Iterator[tuple[int, list[bytes]]]:
    """First operation and operations of each commit, verified. Raises `LogCorruptError`."""
    data = path.read_bytes()
    offset = _header(path, data, base)
    while offset < len(data):
        frame = _frame(data, offset)
        if frame is None:
            if newest and _never_finished(data, offset):
                return
            raise LogCorruptError(f"{path} is damaged at byte {offset}")
        first, operations, offset = frame
        yield first, operations


def _header(path: Path, data: bytes, base: str) -> int:
    """Where the frames begin. The header was written whole or not at all, so it is never torn."""
    start = len(MAGIC) + LENGTH.size
    length = LENGTH.unpack_from(data, len(MAGIC))[0] if len(data) >= start else 0
    end = start + length
    if len(data) < end + LENGTH.size or not data.startswith(MAGIC):
        raise LogCorruptError(f"{path} does not begin as a log does")
    if LENGTH.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        raise LogCorruptError(f"the header of {path} fails its checksum")
    facts = json.loads(data[start:end])
    if facts["base"] != base or facts["first"] != int(path.stem):
        raise LogCorruptError(f"{path} is the log of another memory")
    return end + LENGTH.size


def _frame(data: bytes, offset: int) -> tuple[int, list[bytes], int] | None:
    """First operation, operations and end of the whole, verified commit at `offset`."""
    start = offset + HEAD.size
    if len(data) < start:
        return None
    magic, length, first, count, crc, head_crc = HEAD.unpack_from(data, offset)
    if magic != FRAME_MAGIC or head_crc != zlib.crc32(data[offset : start - LENGTH.size]):
        return None
    stop = start + length
    body = data[start:stop]
    if len(body) < length or zlib.crc32(body) != crc:
        return None
    if data[stop : stop + LENGTH.size] != LENGTH.pack(FRAME_END):
        return None
    operations, at = [], 0
    for _ in range(count):
        (size,) = LENGTH.unpack_from(body, at)
        operations.append(body[at + LENGTH.size : at + LENGTH.size + size])
        at += LENGTH.size + size
    return first, operations, stop + LENGTH.size


def _whole_frames(data: bytes, offset: int) -> Iterator[tuple[int, list[bytes]]]:
    """Every whole commit wherever it stands, also behind damage."""
    while (offset := data.find(LENGTH.pack(FRAME_MAGIC), offset)) >= 0:
        frame = _frame(data, offset)
        if frame is None:
            offset += 1
        else:
            first, operations, offset = frame
            yield first, operations


def _never_finished(data: bytes, offset: int) -> bool:
    """Whether the bad commit at `offset` was cut short by a kill or a power cut (sectors of zeros).

    Anything else had its end on disk, so it may have been acknowledged.
    """
    if any(True for _ in _whole_frames(data, offset + 1)):
        return False
    head = data[offset : offset + HEAD.size]
    if len(head) < HEAD.size:
        return True
    magic, length, *_, head_crc = HEAD.unpack(head)
    if magic == FRAME_MAGIC and head_crc == zlib.crc32(head[: -LENGTH.size]):
        end = offset + HEAD.size + length + LENGTH.size
        return len(data) < end or _has_hole(data, offset, end)
    return not any(data[offset:]) if not any(head) else _has_hole(data, offset, len(data))


def _has_hole(data: bytes, start: int, end: int) -> bool:
    while start < end:
        stop = min((start // SECTOR + 1) * SECTOR, end)
        if not any(data[start:stop]):
            return True
        start = stop
    return False


def _decode(data: bytes) -> Operation:
    """JSON, a zero byte, the vectors (float32, little endian), the thumbnail."""
    try:
        text, _, blob = data.partition(b"\0")
        facts: dict[str, Any] = json.loads(text)
        if facts["op"] == "remove":
            return Remove(facts["entry_id"])
        entry = unpack_entry(facts["entry"])
        keys, offset = [], 0
        for key in facts["keys"]:
            vector = np.frombuffer(blob, "<f4", key["dim"], offset).astype(np.float32)
            offset += 4 * key["dim"]
            own = key["level"], key["label"], entry.entry_id, key["region"], key["size"]
            keys.append(Key(*own, vector, key.get("tile", 0)))
        thumbnail = blob[offset:] if facts["thumbnail"] else None
        content = facts.get("content", "")
        return Add(entry, tuple(keys), thumbnail, facts["idempotency_key"], content)
    except (ValueError, KeyError, TypeError) as error:
        raise BankCorruptError(
            f"the log holds an operation that this release cannot read ({error!r})"
        ) from error
