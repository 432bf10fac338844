"""Pictures to look at: what the server sent, and what overlays are drawn on."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

FORMATS = (
    "PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "TGA", "PCX", "ICO",
)  # fmt: skip
"""No vector formats, which Pillow would hand to Ghostscript."""


def open_picture(source: bytes | Path) -> Image.Image:
    """Not decoded yet. Raises `OSError`, `SyntaxError`."""
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
