"""What a file is, by its first bytes: the formats that are read, and names for those that are not.

One list for the library, the command line and the server; the page's and the client's own lists are
compared with it by tests/mrad/images/test_one_reader.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import PurePath

SUFFIXES = frozenset(
    """
    .png .apng .jpg .jpeg .jpe .jfif .bmp .dib .tif .tiff .btf .webp .gif .ppm .pgm .pbm
    .pnm .pfm .pam .jp2 .j2k .jpx .avif .heic .heif .tga .pcx .ico .dcm .dicom
    """.split()  # noqa: SIM905
)
"""Of the files that a folder is searched for. What a file holds decides how it is read."""

PILLOW = {
    "png": ("PNG",),
    "jpeg": ("JPEG",),  # MPO, two pictures in one file, is read as its first
    "webp": ("WEBP",),
    "bmp": ("BMP",),
    "dib": ("DIB",),
    "gif": ("GIF",),
    "pnm": ("PPM",),
    "jp2": ("JPEG2000",),
    "avif": ("AVIF",),
    "ico": ("ICO",),
    "pcx": ("PCX",),
    "tga": ("TGA",),
    "tiff": ("TIFF",),
}
"""Kind -> the one decoder of Pillow that may see it: EPS, for one, would go to Ghostscript."""

KINDS = (*PILLOW, "dicom", "heic")

_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def kind_of(data: bytes, name: str = "") -> str | None:
    """One of `KINDS` by content; None for what is not read.

    `name`: only TGA, which has no mark of its own, is believed by its name.
    """
    head = data[:32]
    if data[128:132] == b"DICM":  # whatever stands before it: some are TIFF files as well
        return "dicom"
    for kind, starts in _MARKS.items():
        if head.startswith(starts):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        brands = _brands(data)
        if brands & {b"avif", b"avis"}:
            return "avif"
        return "heic" if brands & set(_HEIC) else None
    if head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3].isspace():
        return "pnm"
    if len(head) >= 3 and head[0] == 10 and head[1] in (0, 2, 3, 5) and head[2] == 1:
        return "pcx"
    if _is_dib(head):
        return "dib"
    return "tga" if _is_tga(data, name) else None


_MARKS: dict[str, tuple[bytes, ...]] = {
    "png": (b"\x89PNG\r\n\x1a\n",),
    "jpeg": (b"\xff\xd8\xff",),
    "gif": (b"GIF87a", b"GIF89a"),
    "bmp": (b"BM",),
    "tiff": _TIFF,
    "jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "ico": (b"\0\0\1\0",),
}


def _brands(data: bytes) -> set[bytes]:
    size = min(struct.unpack(">I", data[:4])[0], 256, len(data))
    return {data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))}


def _is_dib(head: bytes) -> bool:
    if len(head) < 16:
        return False
    size, planes, bits = struct.unpack("<I", head[:4])[0], *struct.unpack("<HH", head[12:16])
    return size in (40, 52, 56, 64, 108, 124) and planes == 1 and bits in (1, 4, 8, 16, 24, 32)


def _is_tga(data: bytes, name: str) -> bool:
    """By its foot, by its name, or by a header that explains every byte of the file."""
    if len(data) < 19:
        return False
    colours, kind = data[1], data[2]
    length, entry = struct.unpack("<H", data[5:7])[0], data[7]
    width, height, depth = struct.unpack("<HHB", data[12:17])
    sound = (
        (kind in (1, 9) and colours == 1) or (kind in (2, 3, 10, 11) and colours in (0, 1))
    ) and depth in (8, 15, 16, 24, 32)
    if not sound or not width or not height:
        return False
    if data[-18:] == b"TRUEVISION-XFILE.\0" or PurePath(name).suffix.lower() == ".tga":
        return True
    body = width * height * ((depth + 7) // 8) + colours * length * ((entry + 7) // 8)
    return kind in (1, 2, 3) and len(data) == 18 + data[0] + body


def describe(data: bytes) -> str:
    """What a file is that is not read, and the way out, as the end of a sentence: "is ..."."""
    for test, text in _STRANGERS:
        if test(data[:512]):
            return text
    return (
        "is no picture in a format that is read here (PNG, JPEG, TIFF, WebP, AVIF, BMP, GIF, PNM, "
        "JPEG 2000, TGA, PCX, ICO, DICOM, HEIC): export it as PNG or TIFF"
    )


def _begins(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(starts)


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\r\n\f" or 32 <= byte < 127 for byte in head)


_CONVERT = "export it as PNG or TIFF"
_STRANGERS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (lambda head: not head, "is empty (0 bytes): copy it again"),
    (
        _begins(b"version https://git-lfs"),
        "is a Git LFS pointer, not the picture itself: run `git lfs pull`",
    ),
    (
        lambda head: not head.strip(b"\0"),
        "holds zeros only: it was not copied whole; copy it again",
    ),
    (_begins(b"%PDF"), f"is a PDF document: {_CONVERT}"),
    (_begins(b"%!PS", b"\xc5\xd0\xd3\xc6"), f"is PostScript (EPS): {_CONVERT}"),
    (_begins(b"8BPS"), f"is a Photoshop document: {_CONVERT}"),
    (_begins(b"gimp xcf"), f"is a GIMP document: {_CONVERT}"),
    (_begins(b"\xff\x0a", b"\0\0\0\x0cJXL "), f"is a JPEG XL picture, not read here: {_CONVERT}"),
    (_begins(b"\x76\x2f\x31\x01"), f"is an OpenEXR picture, not read here: {_CONVERT}"),
    (_begins(b"#?RADIANCE", b"#?RGBE"), f"is a Radiance HDR picture, not read here: {_CONVERT}"),
    (_begins(b"SIMPLE  ="), f"is a FITS file: {_CONVERT}"),
    (_begins(b"\x89HDF"), f"is an HDF5 file: {_CONVERT}"),
    (_begins(b"\x93NUMPY"), "is a NumPy array: load it and pass the array, or save it as PNG"),
    (_begins(b"PK\3\4"), "is a ZIP archive: unpack it"),
    (_begins(b"\x1f\x8b"), "is compressed by gzip: unpack it"),
    (_begins(b"7z\xbc\xaf", b"Rar!"), "is an archive: unpack it"),
    (
        lambda head: head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:11] == b"AVI"),
        "is a film: export its frames as pictures",
    ),
    (
        lambda head: b"<svg" in head.lower() or (b"<?xml" in head and b"svg" in head),
        f"is an SVG drawing: {_CONVERT}",
    ),
    (
        lambda head: head.lstrip().lower().startswith((b"<!doctype html", b"<html")),
        "is a web page, not the picture itself: download it again",
    ),
    (lambda head: head.lstrip()[:1] in (b"{", b"[") and _is_text(head), "is JSON text, no picture"),
    (_is_text, "is a text file, no picture"),
)
