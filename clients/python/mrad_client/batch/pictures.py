"""Maps and overlays as files."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mrad_client.types import FloatArray, Result

if TYPE_CHECKING:
    from mrad_client.batch.runner import Options

STOPS = np.array([[0, 0, 60], [0, 90, 200], [0, 200, 160], [250, 220, 40], [220, 20, 20]], float)
"""Colours from calm to hot, evenly spaced."""


def save_pictures(name: str, data: bytes, result: Result, options: Options) -> dict[str, Any]:
    """Write what was asked for; returns the columns that say where."""
    columns = {}
    if options.maps is not None and result.map is not None:
        columns["map"] = _save(options.maps, name, ".png", result.map.bytes())
    if options.overlays is not None:
        picture = overlay(Image.open(io.BytesIO(data)), result.anomaly_map)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        columns["overlay"] = _save(options.overlays, name, ".jpg", buffer.getvalue())
    return columns


def overlay(image: Image.Image, values: FloatArray, alpha: float = 0.5) -> Image.Image:
    """The map as colours over the image; spread between the map's own least and largest value.

    Raw probabilities of one image lie close together, so a fixed scale would show nothing; compare
    images by their scores, not by their colours.
    """
    base = ImageOps.exif_transpose(image).convert("RGB")
    low, high = float(values.min()), float(values.max())
    heat = colours((values - low) / (high - low or 1.0)).resize(base.size)
    return Image.blend(base, heat, alpha)


def colours(values: npt.NDArray[Any]) -> Image.Image:
    """Values in [0, 1], [H, W], as RGB."""
    at = np.linspace(0, 1, len(STOPS))
    channels = [np.interp(values, at, STOPS[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _save(folder: Path, name: str, suffix: str, data: bytes) -> str:
    """Below the folder whatever the name holds; whole or not at all."""
    parts = [part for part in Path(name).parts if part not in ("..", "/", "\\")]
    tag = (
        ""
        if list(Path(name).parts) == parts
        else "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    )
    # The old suffix stays: a.png and a.jpg are two images.
    path = folder.joinpath(*parts[:-1], parts[-1] + tag + suffix)
    write_atomic(path, data)
    return path.as_posix()


def write_atomic(path: Path, data: bytes) -> None:
    """A file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).chmod(0o644)
    os.replace(file.name, path)  # noqa: PTH105
