"""The one way to a picture: a file, bytes, an array or a picture of Pillow's -> upright, 8 bit, grey or RGB.

Every picture that this project opens comes through here (a test over the code forbids other opens).
"""

from __future__ import annotations

import errno
import io
import warnings as python_warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from mrad.errors import ImageError, ImageTooLargeError, MissingPackageError
from mrad.images.decoding.common import from_pillow, orientation_of, read_common
from mrad.images.decoding.depth import Assumed, Stated
from mrad.images.decoding.profile import profile_note
from mrad.images.decoding.raster import Raster, check_size, to_grey_or_rgb
from mrad.images.decoding.switch import SWITCH
from mrad.images.formats import PILLOW, describe, kind_of
from mrad.images.options import DEFAULT_MAX_PIXELS, ReadOptions
from mrad.types import ImageInput

Result = TypeVar("Result")
HEAD = 1 << 12
"""Bytes of a file that tell its kind."""
SAMPLED = 128
"""Side of the grid of pixels that brightness and contrast are measured on."""
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the machine has too little of: no file is to blame."""
FLAT = 1.0
"""Standard deviation of the levels below which a picture says nothing."""


@dataclass(frozen=True)
class Picture:
    """A picture, and what was taken for granted on the way to it."""

    image: Image.Image
    """Upright; RGB, or L where there is no colour: a third of the work for all who look at it."""
    warnings: tuple[str, ...] = ()
    """`code: what was assumed or is odd, and what to do`; codes are stable (docs/images.md)."""
    orientation: int = 1
    """The tag that turned it, as EXIF numbers it; 1: none did."""
    assumed: Assumed | None = None
    """The depth that the file does not state."""
    page: int = 0
    pages: int = 1
    brightness: float = 0.0
    """Mean level, 0 to 255."""
    contrast: float = 0.0
    """Standard deviation of the levels."""
    full: tuple[int, int] | None = None
    """Width, height of the upright picture where `image` is a stand-in."""

    @property
    def size(self) -> tuple[int, int]:
        """Width, height of the upright picture."""
        return self.full or self.image.size

    @property
    def levels(self) -> tuple[float, float]:
        """Their mean and their deviation."""
        return self.brightness, self.contrast


def read_image(source: ImageInput, *, options: ReadOptions | None = None) -> Picture:
    """Decode anything image-like, by the rules of docs/images.md.

    Upright by its orientation tag; palettes and inks become RGB, 16 bit become 8; of several
    pages the first of the largest that is not blank is read; transparency that varies is laid over
    white. Arrays: [H, W], [H, W, 1|3|4]; uint8, uint16, bool or float in [0, 1].

    Raises `ImageTooLargeError` above `options.max_pixels` (before decoding), `ImageError` for
    everything that is not a whole, readable image, and what `guarded` raises.
    """
    options = named(options, source)
    return guarded(lambda: _picture(read_raster(source, options), options, source), options.name)


def load_image(image: ImageInput, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """`read_image` without what it has to say: upright RGB."""
    found = read_image(image, options=ReadOptions(max_pixels)).image
    return found if found.mode == "RGB" else found.convert("RGB")


def read_size(path: Path) -> tuple[int, int]:
    """Width, height of the upright picture: by its header where that tells, else by decoding.

    Raises `ImageError`.
    """

    (width, height), turned = _header(path, ("tiff", "ico", "tga"))
    return (height, width) if turned >= 5 else (width, height)


def read_orientation(path: Path) -> int:
    """The tag that turns the picture, as EXIF numbers it; 1 for none. Raises `ImageError`."""
    return _header(path, ("tiff",))[1]


def _header(path: Path, decoded: tuple[str, ...]) -> tuple[tuple[int, int], int]:
    """Size as stored and orientation tag, by the header alone but for kinds that are to be `decoded`."""

    def read() -> tuple[tuple[int, int], int]:
        with path.open("rb") as file:
            kind = kind_of(file.read(HEAD), str(path))
        if kind not in PILLOW or kind in decoded:
            picture = read_image(path)
            (width, height), turned = picture.size, picture.orientation
            return (height, width) if turned >= 5 else (width, height), turned
        with Image.open(path, formats=PILLOW[kind]) as opened:
            return opened.size, orientation_of(opened)

    return guarded(read, str(path))


def pixels_stated(data: bytes) -> int:
    """Pixels of a picture by its header alone; 0 where that does not tell, which decoding does."""

    def read() -> int:
        kind = kind_of(data)
        if kind == "tiff":
            import tifffile

            with tifffile.TiffFile(io.BytesIO(data)) as tif:
                return max(_area(page) for page in tif.pages)
        if kind not in PILLOW:
            return 0
        width, height = Image.open(io.BytesIO(data), formats=PILLOW[kind]).size
        return width * height

    try:
        return guarded(read, "the image")
    except ImageError:
        return 0


def _area(page: Any) -> int:
    return int(page.imagewidth) * int(page.imagelength)


def named(
    options: ReadOptions | None, source: ImageInput, default: str = "the image"
) -> ReadOptions:
    """The options with what errors call the picture."""
    options = options or ReadOptions()
    path = str(source) if isinstance(source, str | Path) else ""
    return replace(options, name=path or options.name or default)


def read_raster(source: ImageInput, options: ReadOptions, *, indices: bool = False) -> Raster:
    """The samples as stored, by options with a name (`named`); `indices`: of a palette, its colours beside."""
    with SWITCH.strict():
        return _raster(source, options, indices)


def _raster(source: ImageInput, options: ReadOptions, indices: bool) -> Raster:
    if isinstance(source, np.ndarray):
        return _array(source, options)
    if isinstance(source, Image.Image):
        check_size(source.size, options)
        source.load()
        return from_pillow(source, indices=indices)
    if not isinstance(source, bytes | str | Path):
        raise ImageError(
            f"{type(source).__name__} is no picture: give a path, a file's bytes, an array or a "
            "picture of Pillow's"
        )
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    kind = kind_of(data, options.name)
    if kind is None:
        raise ImageError(f"{options.name} {describe(data)}")
    if kind == "tiff":
        from mrad.images.decoding.tiff import read_tiff

        return read_tiff(data, options, indices=indices)
    if kind in ("dicom", "heic"):
        from mrad.images.decoding.special import read_dicom, read_heic

        return (read_dicom if kind == "dicom" else read_heic)(data, options)
    return read_common(kind, data, options, indices=indices)


def guarded(read: Callable[[], Result], name: str) -> Result:
    """Whatever a broken file makes decoders raise -> `ImageError`, with the file's name.

    What is this installation's or this machine's is not blamed on the file: raises
    `MissingPackageError`, and passes on `MemoryError` and the `OSError` of too many open files.
    """
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # max_pixels decides; decoders' remarks are not ours
        try:
            return read()
        except (ImageError, MemoryError):
            raise
        except ImportError as error:
            raise MissingPackageError.of(error, f"{name} cannot be read") from error
        except Image.DecompressionBombError as error:
            raise ImageTooLargeError(f"{name}: {error}") from error
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{name} begins like a picture but cannot be read: it is damaged, or of a variant "
                "that is not read here; export it as PNG or TIFF"
            ) from error
        except FileNotFoundError as error:
            raise ImageError(f"{name}: no such file") from error
        except IsADirectoryError as error:
            raise ImageError(f"{name} is a folder, not a picture") from error
        except PermissionError as error:
            raise ImageError(f"{name} may not be read: {error.strerror}") from error
        except Exception as error:  # a decoder may raise anything
            if "requires the 'imagecodecs' package" in str(error):  # how tifffile says it
                missing = ImportError("No module named 'imagecodecs'", name="imagecodecs")
                raise MissingPackageError.of(missing, f"{name} cannot be read") from error
            if isinstance(error, OSError) and error.errno is not None:  # the system's, no decoder's
                if error.errno in SHORT:
                    raise
                raise ImageError(f"{name} cannot be read: {error.strerror}") from error
            raise ImageError(f"{name} cannot be decoded: {_said(error)}") from error


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the file ends early ({text}); copy it again"
    return f"{text or type(error).__name__}; it is damaged, or of a variant that is not read"


def _array(array: np.ndarray, options: ReadOptions) -> Raster:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"an image array must be [H, W] or [H, W, 1|3|4], not {array.shape}")
    check_size((array.shape[1], array.shape[0]), options)
    if array.dtype == np.bool_:
        return Raster(array, Stated(high=255))
    wide = np.issubdtype(array.dtype, np.floating)
    if array.dtype not in (np.uint8, np.uint16) and not wide:
        raise ImageError(f"an image array must be uint8, uint16, bool or float, not {array.dtype}")
    if wide and (not np.isfinite(array).all() or array.min() < 0 or array.max() > 1):
        raise ImageError("a float image must be finite and within [0, 1]")
    stated = Stated() if array.dtype == np.uint16 else Stated(high=1.0 if wide else 255.0)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if array.ndim == 2 or array.shape[2] == 3:
        return Raster(array, stated)
    white = {"u1": 255.0, "u2": 65535.0}.get(array.dtype.str[1:], 1.0)
    alpha = np.round(array[..., 3] / white * 255).astype(np.uint8)
    return Raster(np.ascontiguousarray(array[..., :3]), stated, alpha)


def _picture(raster: Raster, options: ReadOptions, source: ImageInput) -> Picture:
    image, notes, assumed = to_grey_or_rgb(raster, options)
    own = image is not source and not image.readonly  # pixels of an array are still the array's
    if not own or type(image) is not Image.Image:  # the caller may go on with its own
        image = image.copy()
    if image.width < 1 or image.height < 1:
        raise ImageError(f"{options.name} has no pixels")
    small = (min(SAMPLED, image.width), min(SAMPLED, image.height))
    values = np.asarray(image.resize(small, Image.Resampling.NEAREST).convert("L"), dtype=float)
    size = image.size
    if raster.full is not None:  # as stored
        width, height = raster.full
        size = (height, width) if 5 <= raster.orientation <= 8 else (width, height)
    picture = Picture(
        image,
        notes,
        raster.orientation if 1 <= raster.orientation <= 8 else 1,
        assumed,
        raster.page,
        raster.pages,
        float(values.mean()),
        float(values.std()),
        size,
    )
    said = profile_note(picture.image, raster.profile)
    return replace(picture, warnings=(*notes, *said, *_flat(picture)))


def _flat(picture: Picture) -> list[str]:
    if picture.contrast >= 2 * FLAT:
        return []
    counts = np.array(picture.image.convert("L").histogram(), dtype=float)  # no copy as floats
    levels = np.arange(len(counts))
    mean = (counts * levels).sum() / counts.sum()
    if (counts * (levels - mean) ** 2).sum() / counts.sum() >= FLAT**2:
        return []
    return [
        f"uniform: the picture is of one level, {mean:.0f} of 255, or nearly so: there is "
        "nothing to judge; look at the camera, the file and its bit depth"
    ]
