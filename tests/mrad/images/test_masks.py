"""Reading masks: every form that people's tools write, one rule for all."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from mrad_indexer.datasets import Record
from PIL import Image

from mrad.errors import MaskError
from mrad.images.masks import load_mask, read_mask


def test_masks_are_true_above_zero_in_every_form(tmp_path):
    wanted = np.zeros((6, 9), bool)
    wanted[2:4, 3:7] = True
    grey = (wanted * 3).astype(np.uint8)
    alpha = np.dstack([grey] * 3 + [np.full((6, 9), 255, np.uint8)])
    palette = Image.fromarray(wanted.astype(np.uint8), "L").convert("P")
    path: Path = tmp_path / "mask.png"
    Image.fromarray(grey).save(path)
    wide = Image.fromarray(wanted.astype(np.uint16) * 300)
    sources = [wanted, grey, wanted.astype(float), alpha, Image.fromarray(alpha)]
    for source in (*sources, path, path.read_bytes(), Image.fromarray(wanted), palette, wide):
        np.testing.assert_array_equal(load_mask(source, (9, 6)), wanted)


def test_masks_that_do_not_belong_to_the_image_are_refused(tmp_path):
    with pytest.raises(MaskError, match=r"the mask is \(9, 6\) but its image is \(6, 9\)"):
        load_mask(np.zeros((6, 9), bool), (6, 9))
    for bad in (b"nonsense", tmp_path / "gone.png"):
        with pytest.raises(MaskError, match="cannot be read"):
            load_mask(bad, (6, 9))
    with pytest.raises(MaskError):
        load_mask(np.zeros((2, 2, 2, 2)), (2, 2))


def turned(size: tuple[int, int], tag: int) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.new("L", size).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def test_a_mask_on_stored_pixels_is_turned_with_its_image(tmp_path):
    stored = np.zeros((6, 9), bool)
    stored[1, 2] = True
    upright = np.rot90(stored, -1)  # tag 6
    for drawn in (stored, upright):  # the sides tell which
        mask = read_mask(drawn, (6, 9), image_orientation=6)
        np.testing.assert_array_equal(mask.anomalous, upright)
        assert not mask.warnings
    square = np.zeros((6, 6), bool)
    square[1, 2] = True
    found = read_mask(square, (6, 6), image_orientation=6)
    np.testing.assert_array_equal(found.anomalous, square)
    assert found.warnings[0].startswith("mask_orientation")
    for asked, wanted in (("upright", square), ("stored", np.rot90(square, -1))):
        found = read_mask(square, (6, 6), image_orientation=6, orientation=asked)
        np.testing.assert_array_equal(found.anomalous, wanted)
        assert not found.warnings
    (tmp_path / "image.png").write_bytes(turned((9, 6), 6))
    Image.fromarray(stored).save(tmp_path / "mask.png")
    record = Record(tmp_path / "image.png", True, tmp_path / "mask.png")
    np.testing.assert_array_equal(record.read_mask((6, 9)), upright)
