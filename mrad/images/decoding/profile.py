"""Colour profiles and gamma: pictures are read without them, as by the method; where that matters, it is said."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SIDE = 64
"""Side of the grid of pixels that are looked at."""
APART = 10.0
"""Levels in the mean by which a picture may differ from what its profile says."""
DISPLAY = 2.2
"""Gamma of a display; 1 / 2.2 in a file is none at all."""


def profile_note(image: Image.Image, profile: bytes | float | None) -> list[str]:
    """What to say of a picture, L or RGB.

    `profile`: an ICC profile, or the exponent of PNG's gAMA; None: the file has none.
    """
    if not profile:
        return []
    small = image.resize((SIDE, SIDE), Image.Resampling.NEAREST).convert("RGB")
    levels = np.asarray(small, dtype=np.float64)
    if isinstance(profile, bytes):
        meant = _by_profile(small, profile)
    else:
        meant = (levels / 255) ** (1 / (DISPLAY * profile)) * 255
    apart = 0.0 if meant is None else float(np.abs(meant - levels).mean())
    if apart <= APART:
        return []
    kind = "colour profile" if isinstance(profile, bytes) else f"gamma of {profile:g}"
    return [
        f"colour_profile: the file has a {kind} by which its levels are others, by {apart:.0f} of 255 in the "
        "mean; the levels are read as they are stored: write memory and images alike, best as sRGB"
    ]


def _by_profile(image: Image.Image, profile: bytes) -> np.ndarray | None:
    """None for a profile that cannot be used."""
    try:
        mode, change = _transform(profile)
        shown = ImageCms.applyTransform(image.convert(mode), change)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if shown is None else np.asarray(shown, dtype=np.float64)


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform]:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = "L" if opened.profile.xcolor_space.strip() == "GRAY" else "RGB"
    screen = ImageCms.createProfile("sRGB")
    return mode, ImageCms.buildTransform(opened, screen, mode, "RGB")
