"""Maps and overlays as files."""

from __future__ import annotations

import io
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries

from mrad.maps import overlay
from mrad.types import FloatArray
from mrad_indexer.scoring.judge import Judge

MapFormat = Literal["none", "png16", "npy"]
OUTLINE = (60, 255, 120)


def draw(image: Image.Image, values: FloatArray, judge: Judge) -> Image.Image:
    """Heat map over the image in the judge's colours; the pixel threshold as a green line."""
    picture = overlay(image, values, low=judge.low, high=judge.high, alpha=0.6)
    if judge.pixel_threshold is None:
        return picture
    inside = values >= judge.pixel_threshold
    if not inside.any() or inside.all():
        return picture
    pixels = np.asarray(picture).copy()
    thick = max(image.size) > 800  # a line of one pixel vanishes on a large picture
    pixels[find_boundaries(inside, mode="thick" if thick else "inner")] = OUTLINE
    return Image.fromarray(pixels)


def jpeg(picture: Image.Image) -> bytes:
    """As people send it."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def encode_map(values: FloatArray, kind: MapFormat) -> tuple[bytes, str]:
    """A map's bytes and suffix. png16: value / 65535 = probability; npy: float32."""
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, values)
        return buffer.getvalue(), ".npy"
    Image.fromarray(np.round(values * 65535).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def place(folder: Path, name: str, suffix: str) -> Path:
    """Where the picture of `name` goes: below the folder, whatever the name holds."""
    whole = Path(name)
    parts = [part for part in whole.parts if part not in ("..", whole.anchor)]
    # ../a.png and a.png are two images, as are a.png and a.jpg: nothing that tells them apart goes.
    tag = "" if len(parts) == len(whole.parts) else f"~{sha256(name.encode()).hexdigest()[:8]}"
    return folder.joinpath(*parts[:-1], parts[-1] + tag + suffix)


def write(path: Path, data: bytes) -> None:
    """A file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
