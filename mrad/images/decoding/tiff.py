"""TIFF by the field's own reader (tifffile with imagecodecs): every depth, order and layout."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from PIL import Image

from mrad.errors import ImageError
from mrad.images.decoding.depth import Stated, white_of
from mrad.images.decoding.jp2 import jp2_damage
from mrad.images.decoding.jpeg import jpeg_damage
from mrad.images.decoding.raster import Raster, check_size, truncated, upright
from mrad.images.decoding.runs import zero_tail
from mrad.images.options import ReadOptions

MAX_PAGES = 10_000
LOOKED_AT = 64
"""Pages of the largest size that are looked at for one that is not blank."""
COMPRESSIONS = {
    1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 33003, 33005, 34712, 34887, 34925, 50000, 50001,
}  # fmt: skip
"""None, CCITT, LZW, JPEG, Deflate, PackBits, JPEG 2000, LERC, LZMA, Zstandard, WebP."""
LOSSY = {6, 7, 33003, 33005, 34712, 50001}
CCITT, JPEG, JPEG_2000 = {2, 3, 4}, {6, 7}, {33003, 33005, 34712}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
RAW = {32803, 34892}
"""Colour filter arrays."""
CLEAR = 0.02
"""Share of its depth that a page's values span at least where more than noise is on it."""
ORIENTATION, MAX, SUBSAMPLING, SMIN, SMAX, ICC = 274, 281, 530, 340, 341, 34675


def read_tiff(data: bytes, options: ReadOptions, *, indices: bool = False) -> Raster:
    """The first of the largest pages that is not blank.

    `indices`: a palette's picture as indices, its colours beside. Raises `ImageError`,
    `ImageTooLargeError`.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised or returned
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        pages = _pages(tif, options.name)
        whole = [n for n, page in enumerate(pages) if not _is_reduced(page)] or [0]
        area = {n: int(pages[n].imagewidth) * int(pages[n].imagelength) for n in whole}
        largest = [n for n in whole if area[n] == max(area.values())][:LOOKED_AT]

        def read(number: int) -> Raster:
            page = pages[number]
            check_size((int(page.imagewidth), int(page.imagelength)), options)
            raster = _page(data, page, options, indices)
            inks = int(page.photometric) in (CMYK, CIELAB, 9)
            profile = None if inks else _all(page, ICC, None)
            facts = {"page": number, "pages": len(pages), "profile": profile}
            return Raster(**{**vars(raster), **facts})

        spans: list[float] = []
        for number in largest:
            raster = read(number)
            spans.append(_span(raster))
            if len(largest) == 1 or spans[-1] >= CLEAR:
                return raster
        # All are dark or of few bits: the first on which more than noise is to be seen.
        best = next(n for n, span in zip(largest, spans) if span >= 0.1 * max(spans))
        return read(best)


def _pages(tif: Any, name: str) -> list[Any]:
    """All pages, and pictures below them that are larger (a preview comes first, then)."""
    pages: list[Any] = []
    for page in tif.pages:
        pages.append(page)
        below = page.pages or () if page.subifds else ()
        pages += [sub for sub in below if int(sub.imagewidth) > int(page.imagewidth)]
        if len(pages) > MAX_PAGES:
            raise ImageError(f"{name} has more than {MAX_PAGES} pages: split it")
    if not pages:
        raise ImageError(f"{name} is a TIFF without a page: copy it again")
    return pages


def _is_reduced(page: Any) -> bool:
    """A preview of another page, or its transparency mask."""
    return bool(int(page.subfiletype) & 0b101)


def _span(raster: Raster) -> float:
    """How much of its depth a page's values use, 0 to 1."""
    values = np.asarray(raster.samples)
    if values.dtype == np.bool_:
        return float(values.min() != values.max())
    low, high = float(values.min()), float(values.max())
    full = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else max(1.0, abs(high))
    return (high - low) / float(full)


def _page(data: bytes, page: Any, options: ReadOptions, indices: bool) -> Raster:
    photometric, compression = int(page.photometric), int(page.compression)
    if photometric in RAW:
        raise ImageError(
            f"{options.name} is a camera's raw photograph: develop it, and save it as TIFF"
        )
    if compression not in COMPRESSIONS:
        raise ImageError(
            f"{options.name} is a TIFF compressed by method {compression}, which is not read: save it "
            "uncompressed, or with LZW or Deflate"
        )
    if getattr(page, "imagedepth", 1) not in (0, 1):
        raise ImageError(f"{options.name} is a TIFF of volumes, which is not read: save its slices")
    warnings = _missing(page, len(data), options)
    if compression == 1:
        warnings += tuple(zero_tail(data))
    warnings += _stream_damage(data, page, options)
    orientation = _number(page, ORIENTATION, 1)
    lossy = compression in LOSSY
    if photometric in (CMYK, YCBCR, CIELAB, 9) and not (photometric == YCBCR and compression == 7):
        warnings += _compare(page)
        if photometric == YCBCR and _is_mislabelled(page):
            return Raster(
                _samples(page), orientation=orientation, lossy=lossy,
                warnings=(*warnings, MISLABELLED),
            )  # fmt: skip
        image = _by_pillow(data, page, orientation, options.name)
        return Raster(image, orientation=orientation, lossy=lossy, warnings=warnings)
    array = _samples(page)
    if compression in CCITT:
        _agree(array, data, page, orientation, options.name)
    colour, extra = _split(array, page, options.name)
    if photometric == YCBCR and _is_clipped(colour) and _is_mislabelled(page):
        warnings += (MISLABELLED,)
        colour, _ = _split(_as_stored(page), page, options.name)
    warnings += _left_out(extra, page)
    if photometric == PALETTE:
        return _palette(colour, page, orientation, warnings, indices)
    stated = _stated(page, colour, photometric == WHITE_IS_ZERO)
    alpha, premultiplied = _alpha(extra, page)
    return Raster(
        colour,
        stated,
        alpha,
        premultiplied,
        orientation,
        lossy=lossy,
        warnings=warnings,
    )


def _missing(page: Any, size: int, options: ReadOptions) -> tuple[str, ...]:
    """Strips and tiles that are said to lie beyond the file's end would be read as black."""
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts)]
    absent = sum(count == 0 for count in page.databytecounts)
    if not ends:
        raise ImageError(f"{options.name}: the file ends early: it has no strip; copy it again")
    late = sum(end > size for end in ends) + absent
    text = f"the file ends early: {late} of {len(ends)} strips of it are missing"
    return (truncated(text, options),) if late else ()


def _stream_damage(data: bytes, page: Any, options: ReadOptions) -> tuple[str, ...]:
    """Of strips that are streams of another format, whose decoders would go on in silence."""
    compression = int(page.compression)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    notes: list[str] = []
    for offset, count in zip(page.dataoffsets, page.databytecounts):
        part = data[offset : offset + count]
        if compression == 7 and int(bits) == 8 and count:
            tables = page.jpegtables
            whole = part if tables is None else tables[:-2] + part[2:]
            notes.append(jpeg_damage(whole, options))
        elif compression in JPEG_2000 and count:
            notes += jp2_damage(part, options)
    return tuple(note for note in notes if note)[:1]


def _compare(page: Any) -> tuple[str, ...]:
    """Pillow goes on over damaged strips; tifffile raises."""
    if int(page.compression) in JPEG or tuple(_all(page, SUBSAMPLING, (1, 1))) != (1, 1):
        return ()
    _samples(page)
    return ()


def _agree(array: Any, data: bytes, page: Any, orientation: int, name: str) -> None:
    """A fax's lines have no checksum: two decoders agree where nothing is garbled."""
    try:
        other = np.asarray(_by_pillow(data, page, orientation, name).convert("L")) > 127
    except ImageError:
        return
    mine = array.astype(bool) ^ (int(page.photometric) == WHITE_IS_ZERO)
    if other.shape == mine.shape and (other != mine).any():
        raise ImageError(f"{name}: the file is damaged: its lines cannot be decoded; copy it again")


def _samples(page: Any) -> Any:
    """[H, W] or [H, W, S] in native byte order."""
    array = page.asarray()
    axes = str(page.axes)
    if "S" in axes:
        array = np.moveaxis(array, axes.index("S"), -1)
    height, width = int(page.imagelength), int(page.imagewidth)
    array = array.reshape(height, width, -1)
    if array.shape[2] == 1:
        array = array[..., 0]
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _split(array: Any, page: Any, name: str) -> tuple[Any, Any]:
    """Colour samples, and the others: [H, W, X] or None."""
    if array.dtype.kind == "c":
        raise ImageError(f"{name} is a TIFF of complex numbers: save their magnitude")
    if array.ndim == 2:
        return array, None
    count = 3 if int(page.photometric) in (RGB, YCBCR) else 1
    if array.shape[2] < count:
        raise ImageError(f"{name} is a TIFF of colours with {array.shape[2]} samples, not 3")
    colour = array[..., :count] if count == 3 else array[..., 0]
    return np.ascontiguousarray(colour), array[..., count:] if array.shape[2] > count else None


def _left_out(extra: Any, page: Any) -> tuple[str, ...]:
    """Samples beside the colours that hold something and are no transparency."""
    if extra is None:
        return ()
    kinds = [int(kind) for kind in page.extrasamples]
    held = [
        n for n in range(extra.shape[2])
        if not (n < len(kinds) and kinds[n] in (1, 2)) and extra[..., n].min() != extra[..., n].max()
    ]  # fmt: skip
    if not held:
        return ()
    count = extra.shape[2] + (3 if int(page.photometric) in (RGB, YCBCR) else 1)
    return (
        f"samples_ignored: of {count} samples of each pixel {count - len(held)} are read; the file "
        "does not say what the others are: save it as grey or RGB",
    )


def _alpha(extra: Any, page: Any) -> tuple[Any, bool]:
    """The first extra sample that is named alpha, as 0..255; and whether colours hold it already."""
    kinds = [int(kind) for kind in page.extrasamples]
    named = [n for n, kind in enumerate(kinds) if kind in (1, 2)]
    if extra is None or not named or named[0] >= extra.shape[2]:
        return None, False
    values = extra[..., named[0]]
    white = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
    bits = page.bitspersample
    if values.dtype.kind == "u" and isinstance(bits, int):
        white = white_of(bits)
    levels = np.round(np.clip(values / white, 0, 1) * 255).astype(np.uint8)
    return levels, kinds[named[0]] == 1


def _stated(page: Any, colour: Any, inverted: bool) -> Stated:
    bits = page.bitspersample
    bits = int(bits) if isinstance(bits, int) else int(max(bits))
    if colour.dtype == np.bool_:
        return Stated(high=255, inverted=inverted)
    if colour.dtype.kind == "f":
        low, high = _number(page, SMIN, None), _number(page, SMAX, None)
        if high is not None and np.isfinite(high) and high > (low or 0):
            return Stated(low, high, inverted)
        return Stated(inverted=inverted)
    top = _number(page, SMAX, None)
    if top is None and colour.dtype.kind == "u":
        top = _number(page, MAX, None)
    if colour.dtype.kind == "u":
        full = white_of(bits)
        if top is not None and 0 < top < full and _is_full(top):
            return Stated(high=float(top), inverted=inverted)
        if bits not in (
            16,
            32,
            64,
        ):  # 8, and packed 10, 12, 14, 24 bits: the container is the depth
            return Stated(high=full, inverted=inverted)
    return Stated(inverted=inverted)


def _all(page: Any, code: int, default: Any) -> Any:
    tag = page.tags.get(code)
    return default if tag is None else tag.value


def _is_full(top: float) -> bool:
    """Whether it is a depth's white (4095), not the largest value that happens to occur."""
    return top >= 255 and (int(top) & (int(top) + 1)) == 0


def _number(page: Any, code: int, default: Any) -> Any:
    tag = page.tags.get(code)
    if tag is None:
        return default
    value = tag.value
    value = value[0] if isinstance(value, tuple | list) and value else value
    try:
        return float(value) if code != ORIENTATION else int(value)
    except (TypeError, ValueError):
        return default


MISLABELLED = (
    "colours_doubtful: the file says that it holds YCbCr, but its samples are no colours as such; "
    "they are read as RGB: write it again as RGB"
)
FAR = 24
"""Levels beyond black and white that no rounding and no JPEG explains."""


def _is_clipped(rgb: Any) -> bool:
    return bool(((rgb == 0) | (rgb == 255)).any(axis=2).mean() > 0.1)


def _is_mislabelled(page: Any) -> bool:
    """Programs that store RGB and call it YCbCr: as such, many pixels would be beyond white."""
    try:
        values = _as_stored(page)
    except (ImportError, MemoryError):
        raise
    except Exception:  # subsampled: those are what they say
        return False
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype != np.uint8:
        return False
    light, blue, red = np.moveaxis(values[::2, ::2].astype(np.float32), -1, 0)
    blue, red = blue - 128, red - 128
    rgb = np.stack([light + 1.402 * red, light - 0.344 * blue - 0.714 * red, light + 1.772 * blue])
    return bool(((rgb < -FAR) | (rgb > 255 + FAR)).any(axis=0).mean() > 0.2)


def _as_stored(page: Any) -> Any:
    """The samples of a page that says YCbCr, unconverted."""
    import tifffile

    page.parent.filehandle.seek(0)
    with tifffile.TiffFile(io.BytesIO(page.parent.filehandle.read())) as tif:
        same: Any = next(each for each in _pages(tif, "") if each.offset == page.offset)
        same.photometric, same.is_jfif = RGB, False  # then nothing is converted
        return _samples(same)


def _palette(
    index: Any, page: Any, orientation: int, warnings: tuple[str, ...], indices: bool
) -> Raster:
    table = np.asarray(page.colormap, dtype=np.uint32).reshape(3, -1).T
    if table.max() > 255:  # else written with 8 bits where 16 belong
        table = np.round(table / 257)
    colours = table.astype(np.uint8)[np.minimum(index, len(table) - 1)]
    if indices:
        return Raster(
            index, orientation=orientation, warnings=warnings, colours=colours,
            stated=Stated(high=255),
        )  # fmt: skip
    return Raster(colours, orientation=orientation, warnings=warnings)


def _by_pillow(data: bytes, page: Any, orientation: int, name: str) -> Image.Image:
    """Inks and colour spaces, which Pillow converts; as stored: Pillow has turned it already."""
    opened = Image.open(io.BytesIO(data), formats=("TIFF",))
    if page.index is None or not isinstance(page.index, int):
        raise ImageError(f"{name} holds its picture below a preview: save it as one page")
    opened.seek(page.index)
    opened.load()
    return upright(opened.convert("RGB"), {6: 8, 8: 6}.get(orientation, orientation))
