"""What the light client and the packages on torch must agree on."""

from __future__ import annotations

import numpy as np
import pytest
from mrad_client.batch import pictures
from PIL import Image, ImageDraw

from mrad import maps
from mrad.maps import overlay


def test_overlays_look_alike_on_both_sides():
    values = np.linspace(0.4, 0.5, 600, dtype=np.float32).reshape(20, 30)
    image = Image.new("RGB", (30, 20), (90, 120, 150))
    here = np.asarray(pictures.overlay(image, values, (0.42, 0.5), alpha=0.6), int)
    there = np.asarray(overlay(image, values, low=0.42, high=0.5, alpha=0.6), int)
    assert np.abs(here - there).max() <= 3


@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.6])
def test_both_sides_frame_the_strongest_place_alike(monkeypatch, fraction):
    """Also where a text's width is no whole number of pixels, as some fonts measure it."""
    measure = ImageDraw.ImageDraw.textbbox

    def textbbox(*given):
        left, top, right, bottom = measure(*given)
        return left, top, right + fraction, bottom + fraction

    monkeypatch.setattr(ImageDraw.ImageDraw, "textbbox", textbbox)
    for size, box in (
        ((60, 40), (5, 5, 9, 9)),
        ((317, 241), (300, 3, 317, 20)),
        ((500, 333), (100, 200, 140, 240)),
        ((1301, 977), (0, 900, 40, 977)),
    ):
        drawn = []
        for side in (maps, pictures):
            picture = Image.new("RGB", size, (90, 120, 150))
            side.mark_strongest(picture, box, size[0] * 2)
            drawn.append(np.asarray(picture))
        np.testing.assert_array_equal(*drawn)
