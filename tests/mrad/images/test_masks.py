"""Reading masks: every form that people's tools write, one rule for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrad.errors import MaskError
from mrad.images.masks import load_mask


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
