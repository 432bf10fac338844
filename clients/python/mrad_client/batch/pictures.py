"""Maps and overlays as files and within a page."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mrad_client.batch.names import place
from mrad_client.errors import InputError

if TYPE_CHECKING:
    from mrad_client.types import FloatArray

Draw = Callable[[], tuple[bytes, str]]
"""Makes a picture's file: its bytes and its suffix. Raises `InputError` where it cannot be drawn."""
STOPS = np.array(
    [[0, 0, 64], [90, 0, 140], [200, 30, 90], [250, 110, 30], [255, 200, 40], [255, 255, 190]],
    float,
)
"""Colours from cold to hot, evenly spaced: those of `mrad score` and of the server."""
SPOT = (95, 242, 255)
"""Colour of the frame around the strongest place."""
SIDE = 180
"""Longer side of a picture within a page, pixels."""


@dataclass(frozen=True)
class Places:
    """Where the pictures of a run go, and the folder from which its rows name them."""

    maps: Path | None = None
    overlays: Path | None = None
    base: Path = Path()

    @property
    def folders(self) -> list[Path]:
        """Those that take pictures."""
        return [folder for folder in (self.maps, self.overlays) if folder is not None]

    @property
    def wanted(self) -> bool:
        """Whether there is anything to draw."""
        return self.maps is not None or self.overlays is not None

    def save(self, name: str, pictures: Mapping[str, Draw], tag: str = "") -> dict[str, str]:
        """Draw and write the pictures of one image; the columns `map` and `overlay` of its row.

        What cannot be drawn leaves a `code` and an `error` in the row instead.

        Args:
            name: of the image.
            pictures: `map` and `overlay`; those without a folder here are left out.
            tag: comes before the suffix, to tell pictures of one name apart.
        """
        columns = {}
        for kind, folder in (("map", self.maps), ("overlay", self.overlays)):
            if folder is None or kind not in pictures:
                continue
            try:
                data, suffix = pictures[kind]()
            except InputError as error:
                columns |= {"code": "no_picture", "error": str(error)}
                continue
            path = place(folder, name, tag + suffix)
            write_atomic(path, data)
            columns[kind] = _seen_from(self.base, path)
        return columns


def _seen_from(base: Path, path: Path) -> str:
    try:
        return path.relative_to(base).as_posix()
    except ValueError:
        return path.as_posix()


def overlay(
    image: Image.Image,
    values: FloatArray,
    colours: tuple[float, float] | None = None,
    alpha: float = 0.6,
) -> Image.Image:
    """The map as colours over the image; cold places stay transparent.

    Args:
        image: as opened; it is turned as its EXIF says.
        values: float32 [H, W], the image's map.
        colours: values of the coldest and the hottest colour, which make pictures of several images
            comparable; None: the map's own smallest and largest, which show where, not how much.
        alpha: how far the hottest place hides the image.
    """
    base = _rgb(ImageOps.exif_transpose(image))
    low, high = colours or (float(values.min()), float(values.max()))
    heat = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    at = np.linspace(0, 1, len(STOPS))
    painted = np.stack([np.interp(heat, at, STOPS[:, channel]) for channel in range(3)], axis=-1)
    weight = Image.fromarray((255 * alpha * np.sqrt(heat)).astype(np.uint8)).resize(base.size)
    return Image.composite(
        Image.fromarray(painted.astype(np.uint8)).resize(base.size), base, weight
    )


def mark_strongest(picture: Image.Image, box: Sequence[int], width: int) -> None:
    """As `mrad.maps.mark_strongest` frames it: this package stands alone.

    `box`: [x_min, y_min, x_max, y_max) of an image that is `width` pixels wide.
    """
    scale, pen = picture.width / width, ImageDraw.Draw(picture)
    left, top, right, bottom = (round(scale * edge) for edge in box)
    thick = 1 + max(picture.size) // 500
    pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, SPOT, thick)
    font, text = ImageFont.load_default(max(11, max(picture.size) // 45)), "strongest place"
    wide, high = (math.ceil(edge) for edge in pen.textbbox((0, 0), text, font)[2:])
    if wide > picture.width or high > picture.height:
        return
    above = top - high - thick
    y = above if above >= 0 else min(bottom + thick, picture.height - high)
    at = min(left, picture.width - wide), y
    pen.rectangle((*at, at[0] + wide, at[1] + high), (0, 0, 0))
    pen.text(at, text, SPOT, font)


def _rgb(image: Image.Image) -> Image.Image:
    """8 bits a channel; Pillow itself clips 16-bit grey to white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def jpeg(picture: Image.Image) -> bytes:
    """As people send it."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def shrink(image: Image.Image) -> Image.Image:
    """A copy whose longer side is `SIDE`."""
    factor = SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def data_uri(image: Image.Image) -> str:
    """JPEG within the page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image)).decode()


def write_atomic(path: Path, data: bytes) -> None:
    """A file that is never seen half written."""
    with atomic_file(path, durable=False) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file that appears under its name once it is whole; its folders are made.

    `durable`: a power cut after that does not take it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
