"""What the light client and the packages on torch must agree on."""

from __future__ import annotations

import numpy as np
from mrad_client.batch import pictures
from PIL import Image

from mrad.maps import overlay


def test_overlays_look_alike_on_both_sides():
    values = np.linspace(0.4, 0.5, 600, dtype=np.float32).reshape(20, 30)
    image = Image.new("RGB", (30, 20), (90, 120, 150))
    here = np.asarray(pictures.overlay(image, values, (0.42, 0.5), alpha=0.6), int)
    there = np.asarray(overlay(image, values, low=0.42, high=0.5, alpha=0.6), int)
    assert np.abs(here - there).max() <= 3
