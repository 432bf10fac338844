"""Reading masks: every form that people's tools write, one rule for all."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from mrad_indexer.datasets import Record
from PIL import Image

from mrad.errors import MaskError
from mrad.images.masks import read_mask


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
        np.testing.assert_array_equal(read_mask(source, (9, 6)).anomalous, wanted)


def test_masks_that_do_not_belong_to_the_image_are_refused(tmp_path):
    with pytest.raises(MaskError, match=r"the mask is \(9, 6\) but its image is \(6, 9\)"):
        read_mask(np.zeros((6, 9), bool), (6, 9))
    for bad in (b"nonsense", tmp_path / "gone.png"):
        with pytest.raises(MaskError, match="cannot be read"):
            read_mask(bad, (6, 9))
    with pytest.raises(MaskError):
        read_mask(np.zeros((2, 2, 2, 2)), (2, 2))


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


def test_borders_of_other_tools_belong_to_neither_class():
    wanted = np.zeros((40, 40), bool)
    wanted[10:20, 10:20] = True
    ring = np.zeros_like(wanted)
    ring[8:22, 8:22] = True
    ring &= ~wanted
    voc = Image.fromarray(np.where(wanted, 15, np.where(ring, 255, 0)).astype(np.uint8), "P")
    voc.putpalette([0, 0, 0, *[0] * 42, 192, 128, 128, *[0] * 717, 224, 224, 192])
    wide = np.where(wanted, 1, np.where(ring, 65535, 0)).astype(np.uint16)
    for source in (voc, wide):
        mask = read_mask(source, (40, 40))
        np.testing.assert_array_equal(mask.anomalous, wanted)
        np.testing.assert_array_equal(mask.ignore, ring)
        assert mask.warnings[-1].startswith("mask_ignored")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_masks_are_cut_and_faint_ones_told(kind):
    wanted = np.zeros((64, 64), bool)
    wanted[20:40, 16:48] = True
    for level, code in ((255, ()), (2, ("mask_soft",))):
        buffer = io.BytesIO()
        Image.fromarray((wanted * level).astype(np.uint8)).convert("RGB").save(buffer, kind)
        mask = read_mask(buffer.getvalue(), (64, 64))
        assert tuple(text.partition(":")[0] for text in mask.warnings) == code
        if level == 255:
            assert (mask.anomalous & wanted).sum() / (mask.anomalous | wanted).sum() > 0.97


def test_a_palette_whose_numbers_and_colours_disagree_is_told():
    index = np.zeros((20, 20), np.uint8)
    index[:12] = 1
    picture = Image.fromarray(index, "P")
    picture.putpalette([255, 0, 0, 0, 0, 0])  # black is not its first colour
    codes = [text.partition(":")[0] for text in read_mask(picture, (20, 20)).warnings]
    assert codes == ["mask_palette", "mask_mostly"]
