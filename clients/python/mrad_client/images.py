"""Whatever a caller calls an image, as a file to upload."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

from mrad_client._pictures import open_picture
from mrad_client.errors import InputError, UnreadableFileError

ImageInput = str | Path | bytes | Image.Image | npt.NDArray[np.generic]
"""A path, an encoded file's bytes, a PIL image, or an array.

Arrays: uint8 or uint16 [H, W], uint8 [H, W, 3] RGB or [H, W, 4] RGBA, bool [H, W] for masks.
"""
Upload = tuple[str, bytes, str]
"""File name, bytes, content type: what httpx takes."""

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
TIFF_MODES = {"CMYK", "YCbCr", "LAB"}
"""What PNG has no place for; the server makes RGB of it, as it does for files."""
SAME = {"PA": "RGBA", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA"}
"""Modes that hold the same picture as one that PNG has."""


def upload(image: ImageInput, default_name: str = "image.png") -> Upload:
    """One input as an upload. Files and bytes travel as they are, those of a PIL image that was opened
    from them and not changed too; the rest lossless, as PNG or TIFF.

    Raises `InputError`; `UnreadableFileError` for a path.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        try:
            return path.name, path.read_bytes(), "application/octet-stream"
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise UnreadableFileError(f"{path} cannot be read: {reason}") from error
    if isinstance(image, bytes):
        return default_name, image, "application/octet-stream"
    if isinstance(image, np.ndarray):
        image = from_array(image)
    if isinstance(image, Image.Image):
        if (stored := _file_of(image)) is not None:
            return default_name, stored, "application/octet-stream"
        if image.mode in TIFF_MODES:
            return default_name, encode_tiff(image), "image/tiff"
        return default_name, encode_png(image), "image/png"
    raise InputError(
        f"{type(image).__name__} is not an image: give a path, the bytes of an image file, a PIL "
        "image or a numpy array"
    )


def _file_of(image: Image.Image) -> bytes | None:
    """The file that a PIL image was opened from, if it is still that picture."""
    if not isinstance(image, ImageFile.ImageFile) or image.tell():
        return None  # computed, or another page was chosen
    try:
        if name := image.filename:
            data = Path(os.fsdecode(name)).read_bytes()
        else:
            source = image.fp
            if source is None:  # loaded, and closed
                return None
            place = source.tell()
            source.seek(0)
            data = source.read()
            source.seek(place)
        with open_picture(data) as again:
            same = (again.mode, again.size, again.format) == (image.mode, image.size, image.format)
            unchanged = same and again.tobytes() == image.tobytes()
    except (OSError, ValueError, SyntaxError):
        return None
    return data if unchanged else None


def from_array(array: npt.NDArray[np.generic]) -> Image.Image:
    """An array of one of the kinds named at `ImageInput`. Raises `InputError`.

    Floats are refused: nobody can tell [0, 1] from [0, 255] by looking.
    """
    shape, kind = array.shape, array.dtype
    if array.size == 0:
        raise InputError(f"the array is empty: {shape}")
    if kind == np.bool_ and array.ndim == 2:
        return Image.fromarray(array.astype(np.uint8) * 255)
    grey = array.ndim == 2 and kind in (np.uint8, np.uint16)
    colour = array.ndim == 3 and shape[2] in (3, 4) and kind == np.uint8
    if not (grey or colour):
        raise InputError(
            f"an array of {kind} {list(shape)} is not an image: give uint8 [H, W, 3] (RGB), "
            "uint8 or uint16 [H, W], or bool [H, W] for a mask"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def encode_png(image: Image.Image) -> bytes:
    """PNG at the fastest compression, EXIF orientation applied, as the server does for files.

    Raises `InputError` for a mode that PNG cannot hold without loss.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") and image.mode != "I;16":  # other byte orders
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    image = image.convert(SAME[image.mode]) if image.mode in SAME else image
    if image.mode not in PNG_MODES:
        if image.mode in ("F", "I"):
            raise InputError(
                f"a PIL image of mode {image.mode} has no defined white: convert it to L, I;16 "
                "or RGB first"
            )
        raise InputError(
            f"a PIL image of mode {image.mode} cannot be sent without loss: convert it to RGB first"
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, exif=b"")
    return buffer.getvalue()


def encode_tiff(image: Image.Image) -> bytes:
    """TIFF without loss, EXIF orientation applied."""
    buffer = io.BytesIO()
    ImageOps.exif_transpose(image).save(buffer, "TIFF", exif=b"")
    return buffer.getvalue()
