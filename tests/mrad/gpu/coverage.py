"""Which graphics cards a compiled library has code for, read off the file itself.

A CUDA library carries a "fat binary": for each kernel, machine code of some architectures and perhaps
PTX, from which the driver makes machine code of newer ones. So the cards that docs/gpu-host.md promises
are held against the wheel itself.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Capability = tuple[int, int]
"""Major, minor, as `torch.cuda.get_device_capability` says it."""
SECTION = b".nv_fatbin"
MAGIC = 0xBA55ED50
PTX, MACHINE = 1, 2


@dataclass(frozen=True)
class Architectures:
    """What every kernel of a library has."""

    machine: frozenset[Capability]
    """Runs on cards of the same major capability and at least this minor one."""
    ptx: frozenset[Capability]
    """Runs on any card of at least this capability, once the driver has compiled it."""

    def cover(self, card: Capability) -> bool:
        """Whether a card can run it."""
        ready = any(card[0] == major and card[1] >= minor for major, minor in self.machine)
        return ready or any(card >= least for least in self.ptx)

    def __str__(self) -> str:
        machine = ", ".join(f"sm_{major}{minor}" for major, minor in sorted(self.machine))
        ptx = ", ".join(f"compute_{major}{minor}" for major, minor in sorted(self.ptx))
        return f"machine code {machine or 'none'}; PTX {ptx or 'none'}"


def architectures(library: Path) -> Architectures | None:
    """Of a 64-bit ELF library; None where it holds no fat binary or is no such file.

    Only what all of its kernels have in common counts.
    """
    try:
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            found = [_held(data, *span) for span in _containers(data, *_section(data))]
    except (OSError, ValueError, struct.error, KeyError):
        return None
    if not found:
        return None
    common = frozenset.intersection(*found)
    return Architectures(
        frozenset(card for kind, card in common if kind == MACHINE),
        frozenset(card for kind, card in common if kind == PTX),
    )


def library_of(package: Path) -> Path | None:
    """The CUDA library of an installed FAISS: in its folder, or beside it in `<name>.libs`."""
    folders = [package, *sorted(package.parent.glob("faiss*.libs"))]
    files = [file for folder in folders for file in sorted(folder.glob("*.so*"))]
    return next((file for file in files if architectures(file) is not None), None)


def _section(data: mmap.mmap) -> tuple[int, int]:
    """Where the fat binary lies: first byte, and the one after the last. Raises `KeyError`."""
    if data[:5] != b"\x7fELF\x02":
        raise KeyError("not a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, table + size * i) for i in range(count)]
    start = headers[names][4]
    for name, _, _, _, offset, length in headers:
        if data[start + name : start + name + len(SECTION) + 1] == SECTION + b"\0":
            return offset, offset + length
    raise KeyError("no fat binary")


def _containers(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int]]:
    """The span of each kernel file's code; they lie one after the other, padded to eight bytes."""
    while at + 16 <= end:
        magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
        if magic != MAGIC:
            at += 8
            continue
        yield at + header, at + header + size
        at += header + size


def _held(data: mmap.mmap, at: int, end: int) -> frozenset[tuple[int, Capability]]:
    """Kind and capability of each piece of code in a container."""
    held = set()
    while at < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        (architecture,) = struct.unpack_from("<I", data, at + 28)
        held.add((kind, divmod(architecture, 10)))
        at += header + size
    return frozenset(held)
