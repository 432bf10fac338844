"""Every picture at hand, read by us and by the field's other readers; who opens what, who differs.

`pytest -m nightly -s tests/mrad/images/test_corpus.py` prints the figures.
"""

from __future__ import annotations

import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from mrad.errors import ImageError
from mrad.images.formats import SUFFIXES
from mrad.images.reader import read_image
from tests.cases import PICTURES

FAR = 16
"""Levels by which a mean may differ: codecs and colour conversions are not alike everywhere."""


def corpus() -> Iterator[Path]:
    """The cases, and the pictures that installed packages and the larger image sets bring."""
    yield from PICTURES
    roots = [Path(sysconfig.get_paths()["purelib"]), Path(__file__).parents[4] / "shared" / "data"]
    for root in roots:
        found = (p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        yield from sorted(found)[:3000]


def ours(path: Path) -> tuple[np.ndarray, bool]:
    read = read_image(path)
    return np.asarray(read.image.convert("RGB")), bool(read.warnings)


def pillows(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def others(path: Path) -> np.ndarray:
    """tifffile for TIFF, OpenCV for the rest."""
    if path.suffix.lower() in (".tif", ".tiff"):
        return np.asarray(tifffile.imread(path))
    found = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError("not read")
    return found[..., ::-1]


@pytest.mark.nightly
def test_what_others_open_we_open_and_differences_are_told():
    counts, unread, differing = Counter[str](), [], []
    for path in corpus():
        counts["files"] += 1
        found: dict[str, np.ndarray] = {}
        doubtful = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found["ours"], doubtful = ours(path)
            except ImageError as error:
                unread.append(f"{path}: {error}")
            for name, read in (("Pillow", pillows), ("tifffile, OpenCV", others)):
                try:
                    found[name] = read(path)
                except Exception:  # whatever they raise
                    continue
        counts.update(found.keys())
        if "ours" not in found or "Pillow" not in found or found["Pillow"].dtype != np.uint8:
            continue
        same = found["ours"].shape == found["Pillow"].shape
        if not same or abs(found["ours"].mean() - found["Pillow"].mean()) > FAR:
            counts["differing"] += 1
            if not doubtful:
                differing.append(path)
    print("\n", dict(counts), f"differing without a warning: {[p.name for p in differing]}")
    print("\n".join(text[:200] for text in unread))
    assert counts["ours"] >= max(counts["Pillow"], counts["tifffile, OpenCV"])
    stated = {  # Pillow reads these wrongly; they state what they are
        "tif12packed.tif", "tif12in16_max.tif", "png12in16_sbit.png", "rgb16_planar.tif",
        "rgba_unspecified.tif", "png16.png", "png16_cv.png", "tif16.tif", "tif16_be.tif",
        "tif16_ori6.tif", "pgm12.pgm", "pgm16.pgm", "pgm16_cv.pgm", "u32_full.tif", "f32_01.tif",
    }  # fmt: skip
    strangers = [path for path in differing if path.name not in stated]
    assert not strangers
