"""Formats that need an extra: DICOM (`mrad[dicom]`) and HEIC photographs (`mrad[heic]`)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from mrad.errors import ImageError
from mrad.images.decoding.common import from_pillow
from mrad.images.decoding.depth import Stated, white_of
from mrad.images.decoding.raster import Raster, check_size
from mrad.images.decoding.runs import LONG_RUN, zero_run
from mrad.images.options import ReadOptions

LOOKED_AT = 64
"""Frames that are looked at for one that is not blank."""


def read_heic(data: bytes, options: ReadOptions) -> Raster:
    """A telephone's photograph. Raises `ImageError` where the decoder is not installed."""
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            f"{options.name} is a HEIC photograph: pip install 'mrad[heic]', or save it as JPEG"
        ) from error
    opened = pillow_heif.open_heif(io.BytesIO(data))
    check_size(opened.size, options)
    notes = zero_run(data, "HEIC", LONG_RUN)
    raster = from_pillow(opened.to_pillow()).with_warnings(*notes)  # upright already
    return Raster(**{**vars(raster), "profile": opened.info.get("icc_profile") or None})


def read_dicom(data: bytes, options: ReadOptions) -> Raster:
    """A medical picture as a viewer shows it: VOI LUT or window, MONOCHROME1 inverted.

    Raises `ImageError` where the reader is not installed, or for what it cannot decode.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise ImageError(
            f"{options.name} is a DICOM picture: pip install 'mrad[dicom]', or save it as PNG"
        ) from error
    found = pydicom.dcmread(io.BytesIO(data))
    if "Rows" not in found or "PixelData" not in found:
        raise ImageError(f"{options.name} is a DICOM file without a picture")
    check_size((int(found.Columns), int(found.Rows)), options)
    frames = int(found.get("NumberOfFrames", 1) or 1)
    number, values = _frame(found, frames)
    space = str(found.get("PhotometricInterpretation", "MONOCHROME2"))
    facts: dict[str, Any] = {"page": number, "pages": frames}
    if values.ndim == 3:
        return Raster(np.asarray(values), Stated(high=white_of(int(found.BitsStored))), **facts)
    low, high = _range(found)
    inverted = space == "MONOCHROME1"
    linear = np.asarray(apply_modality_lut(values, found))
    if "WindowCenter" in found or "VOILUTSequence" in found:
        shown = np.asarray(apply_voi_lut(linear, found), dtype=np.float64)
        ends = np.asarray(apply_voi_lut(_ends(found), found), dtype=np.float64)
        return Raster(shown, _span(ends.min(), ends.max(), inverted), **facts)
    ends = np.asarray(apply_modality_lut(np.array([low, high]), found), dtype=np.float64)
    return Raster(linear.astype(np.float64), _span(ends.min(), ends.max(), inverted), **facts)


def _span(low: float, high: float, inverted: bool) -> Stated:
    return Stated(float(low), float(high) if high > low else float(low) + 1, inverted)


def _frame(found: Any, frames: int) -> tuple[int, Any]:
    """The first frame that is not blank."""
    from pydicom.pixels.utils import pixel_array

    first = pixel_array(found, index=0)  # colours as RGB
    if frames == 1 or first.min() != first.max():
        return 0, first
    for number in range(1, min(frames, LOOKED_AT)):
        values = pixel_array(found, index=number)
        if values.min() != values.max():
            return number, values
    return 0, first


def _range(found: Any) -> tuple[int, int]:
    """Lowest and highest value that can be stored."""
    bits = int(found.BitsStored)
    if int(found.get("PixelRepresentation", 0)):
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def _ends(found: Any) -> Any:
    """Values beyond any window, as the modality's LUT gives them: what becomes black and white."""
    from pydicom.pixels.processing import apply_modality_lut

    low, high = _range(found)
    given = np.asarray(apply_modality_lut(np.array([low, high]), found))
    if "VOILUTSequence" in found:
        first = found.VOILUTSequence[0]
        count, start = int(first.LUTDescriptor[0]) or 65536, int(first.LUTDescriptor[1])
        return np.arange(start, start + count)
    return given.astype(np.float64) + np.array([-1e9, 1e9])
