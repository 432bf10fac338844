"""Image -> tensor, exactly the paper's, for every image that real life sends (docs/method.md)."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mrad.errors import ImageError, ImageTooLargeError, MaskError
from mrad.types import BoolArray, ImageInput

# Loaded where tensors are made: decoding, as to check a dataset, needs none.
if TYPE_CHECKING:
    import torch

DEFAULT_MAX_PIXELS = 100_000_000
TILED_MAX_PIXELS = 500_000_000
"""Of an image that is cut into tiles: 2,048 x 244,000, say."""
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# Raster formats only: Pillow would hand EPS to Ghostscript. MPO is read as JPEG, by one opener.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")


def load_image(image: ImageInput, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode anything image-like to an upright RGB image.

    EXIF orientation is applied, so that maps and boxes match what people see. Animations give
    their first frame, transparency is laid over white, CMYK and palettes become RGB, 16-bit grey
    keeps its full range (0..65535 -> 0..255). Arrays: [H, W], [H, W, 1|3|4]; uint8, uint16, bool
    or float in [0, 1].

    Raises `ImageTooLargeError` above `max_pixels` (checked before decoding) and `ImageError` for
    everything that is not a whole, readable image.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, max_pixels)
    name = str(image) if isinstance(image, str | Path) else "the image"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
        try:
            opened = image if isinstance(image, Image.Image) else _open(image)
            _check_size(opened.size, max_pixels, name)
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
        except Image.DecompressionBombError as error:
            raise ImageTooLargeError(f"{name}: {error}") from error
        except UnidentifiedImageError as error:
            raise ImageError(f"{name} is not an image in a known format {FORMATS}") from error
        except FileNotFoundError as error:
            raise ImageError(f"{name}: no such file") from error
        except (
            OSError,
            ValueError,
            SyntaxError,
            EOFError,
            OverflowError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            NotImplementedError,
            RuntimeError,
            ArithmeticError,
            MemoryError,
        ) as error:  # whatever a broken file makes codecs do
            raise ImageError(
                f"{name} cannot be decoded: {error or type(error).__name__}"
            ) from error


def _open(image: bytes | str | Path) -> Image.Image:
    source = io.BytesIO(image) if isinstance(image, bytes) else Path(image)
    return Image.open(source, formats=FORMATS)


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name} has {width} x {height} pixels, more than the limit of {max_pixels}; "
            "scale it down or raise max_pixels"
        )


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"an image array must be [H, W] or [H, W, 1|3|4], not {array.shape}")
    _check_size((array.shape[1], array.shape[0]), max_pixels, "the image")
    return _to_rgb(Image.fromarray(_to_uint8(array)))


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.round(array / 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ImageError("a float image must be finite and within [0, 1]")
        return np.round(array * 255).astype(np.uint8)
    raise ImageError(f"an image array must be uint8, uint16, bool or float, not {array.dtype}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "L"):
        return image.convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_wide_grey(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _wide_grey(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "F":
        return _to_uint8(values)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("32-bit grey values outside 0..65535: scale the image to 16 bit first")
    return _to_uint8(values.astype(np.uint16))


def load_mask(mask: ImageInput, size: tuple[int, int]) -> BoolArray:
    """Decode a mask of an image of `size` (width, height) to bool [height, width]; > 0 is anomalous.

    Raises `MaskError` when its size differs from the image's, or when it cannot be read.
    """
    if isinstance(mask, np.ndarray):
        array = mask
    else:
        try:
            opened = mask if isinstance(mask, Image.Image) else _open(mask)
            _check_size(opened.size, DEFAULT_MAX_PIXELS, "the mask")
            array = np.asarray(opened if opened.mode != "P" else opened.convert("RGB"))
        except (
            ImageError,
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            name = mask if isinstance(mask, str | Path) else "the mask"
            raise MaskError(f"{name} cannot be read: {error}") from error
    if array.ndim == 3:
        array = array[..., :3].max(axis=2)  # an alpha channel marks nothing
    if array.ndim != 2 or array.shape[::-1] != tuple(size):
        raise MaskError(f"the mask is {array.shape[::-1]} but its image is {tuple(size)} (w, h)")
    return np.asarray(array.astype(np.float64) > 0)


@dataclass(frozen=True)
class Preprocess:
    """RGB image -> normalised float32 [3, S, S]: bicubic with antialiasing, whatever the aspect."""

    image_size: int
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """`image`: RGB of any size. Returns float32 [3, S, S] on the CPU."""
        import torch

        side = (self.image_size, self.image_size)
        resized = np.asarray(image.resize(side, Image.Resampling.BICUBIC))
        return self._normalised(torch.from_numpy(resized.copy()).permute(2, 0, 1).float())

    def resize(self, image: torch.Tensor) -> torch.Tensor:
        """The same on whatever device `image`, uint8 [3, H, W], is on: float32 [3, S, S] there.

        As in Pillow, one direction comes first and is rounded to whole levels, then the other. Its
        weights are fixed-point, so a value next to a half may round the other way: at most two
        levels of 255 apart, and any apart on less than a hundredth of the values
        (tests/mrad/test_preprocess.py).
        """
        import torch.nn.functional as F

        (height, width), side = image.shape[1:], self.image_size
        # Pillow 13 takes the rows first where that costs less; before, it never did.
        rows_first = height > side and height - side > 2 * (width - side)
        first = (side, width) if rows_first else (height, side)
        values = image.float()[None]
        for size in (first, (side, side)):
            values = F.interpolate(values, size, mode="bicubic", antialias=True)
            values = values.add_(0.5).floor_().clamp_(0, 255)
        return self._normalised(values[0])

    def _normalised(self, levels: torch.Tensor) -> torch.Tensor:
        """Levels 0..255, float32 [3, S, S], overwritten."""
        import torch

        mean = torch.tensor(self.mean, device=levels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=levels.device).view(3, 1, 1)
        return levels.div_(255).sub_(mean).div_(std).contiguous()
