"""One picture and one mask in many encodings (README.md): what is right for each."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

CASES = Path(__file__).parent
PICTURES = sorted(path for path in (CASES / "images").iterdir() if path.is_file())
MASKS = sorted(path for path in (CASES / "masks").iterdir() if path.is_file())
LOSSY = {
    "antialias.png", "g128_127.jpg", "jp2_lossy.jp2", "jpeg_in_tiff.tif", "jpg01.jpg", "jpg30.jpg",
    "jpg75.jpg", "jpg95.jpg", "jpg_instances.jpg", "jpg_red.jpg", "png_from_jpg.png",
}  # fmt: skip


@cache
def _levels(name: str) -> np.ndarray:
    return np.asarray(Image.open(CASES / "images" / name).convert("RGB")).astype(int)


def close(image: Image.Image, name: str) -> bool:
    """Whether it is the picture of all encodings, within rounding or a lossy codec's reach."""
    wanted = _levels("bw8.png" if name.startswith("bw") else "a_base8.png")
    found = np.asarray(image.convert("RGB")).astype(int)
    if found.shape != wanted.shape:
        return False
    apart = np.abs(found - wanted)
    lossy = name.endswith((".jpg", ".jpe", ".jfif", ".avif"))
    if name == "ycbcr_jpeg.tif":  # two of its samples are at half size
        return bool(apart.mean() < 1)
    if name == "rgba_premul128.png":  # half of its levels are gone
        return bool(apart.max() <= 2)
    return bool(apart.max() <= (10 if lossy else 1) and apart.mean() < 0.5)


def truth() -> np.ndarray:
    """Which pixels the masks mark."""
    return np.asarray(Image.open(CASES / "masks" / "g255.png")) > 0
