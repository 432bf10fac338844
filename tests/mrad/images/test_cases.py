"""Every encoding of `tests/cases`: right, or warned of, or refused; which of them, is pinned here."""

from __future__ import annotations

import numpy as np
import pytest

from mrad.errors import ImageError, MaskError
from mrad.images.guard import code_of
from mrad.images.masks import read_mask
from mrad.images.reader import read_image
from tests.cases import CASES, LOSSY, MASKS, PICTURES, close, truth

WARNED = {
    "f32_255.tif": "bit_depth_assumed",
    "i16_neg.tif": "signed_assumed",
    "i32_16.tif": "bit_depth_assumed",
    "i32_8bitvalues.tif": "bit_depth_assumed",
    "i8.tif": "bit_depth_assumed",
    "ico.ico": "page_chosen",
    "multipage_first_small.tif": "page_chosen",
    "p_trns.png": "transparency",
    "png10in16.png": "bit_depth_assumed",
    "png12in16.png": "bit_depth_assumed",
    "rgb12in16.tif": "bit_depth_assumed",
    "rgb_trns.png": "transparency",
    "rgba_alpha0.png": "alpha_ignored",
    "rgba_assoc.tif": "alpha_ignored",
    "rgba_premul128.png": "premultiplied",
    "tif12in16.tif": "bit_depth_assumed",
    "ycbcr_jpeg.tif": "colours_doubtful",
}
"""Of the pictures; everything else says of itself how it is to be read, and is right."""
NOT_RIGHT = {"ico.ico", "p_trns.png", "rgb_trns.png"}
"""Warned of, and not the picture: smaller, laid over white."""

MASK_WARNED = {
    "_image.png": "mask_mostly",
    "empty.png": "mask_empty",
    "full.png": "mask_full",
    "ignore255.png": "mask_ignored",
    "inverted.png": "mask_mostly",
    "jpg01.jpg": "mask_soft",
    "prob_map.png": "mask_soft",
    "rgb_bluebg.png": "mask_colours",
}
MASK_REFUSED = {"half_size.png": r"\(80, 80\)", "rgb_overlay.png": "paint on it"}


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_right_and_what_it_leaves_open_is_said(path):
    for source in (path, path.read_bytes()):
        read = read_image(source)
        assert [code_of(text) for text in read.warnings] == [
            code for name, code in WARNED.items() if name == path.name
        ]
        assert (path.name in NOT_RIGHT) is not close(read.image, path.name)


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.name)
def test_a_mask_marks_what_it_marks_and_what_it_leaves_open_is_said(path):
    for source in (path, path.read_bytes()):
        if path.name in MASK_REFUSED:
            with pytest.raises(MaskError, match=MASK_REFUSED[path.name]):
                read_mask(source, (160, 160))
            continue
        mask = read_mask(source, (160, 160))
        assert [code_of(text) for text in mask.warnings] == [
            code for name, code in MASK_WARNED.items() if name == path.name
        ]
        marked = truth()
        if path.name in {"_image.png", "empty.png", "full.png", "inverted.png", "prob_map.png"}:
            continue
        shared = (mask.anomalous & marked).sum() / (mask.anomalous | marked).sum()
        assert shared == 1 or (path.name in LOSSY and shared >= 0.97)


def test_the_ring_of_a_mask_belongs_to_neither_class():
    mask = read_mask(CASES / "masks" / "ignore255.png", (160, 160))
    assert mask.ignore.sum() == 408
    assert not (mask.ignore & mask.anomalous).any()


@pytest.mark.parametrize("path", [*PICTURES, *MASKS], ids=lambda path: path.name)
def test_half_a_file_is_refused_and_named(path):
    data = path.read_bytes()
    with pytest.raises(ImageError):
        read_image(data[: len(data) // 2])


def test_a_16_bit_white_is_zero_is_the_same_picture():
    reports = CASES / "reports"
    one = read_image(reports / "09_white_is_zero_16.tif")
    other = read_image(reports / "09_same_picture.png")
    assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
