"""Boards of the demo, for tests of what is taught."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from mrad import Encoder, MemoryBank, Sample


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return Image.open(buffer).convert("RGB")


def bank_of_boards(mini_encoder: Encoder, demo_images: Path) -> MemoryBank:
    """Six good boards and four defective ones."""
    folder = demo_images / "memory"
    samples = [Sample(path, False) for path in sorted((folder / "good").glob("*.png"))[:6]]
    samples += [
        Sample(path, True, folder / "masks" / path.name)
        for path in sorted((folder / "defect").glob("*.png"))[:4]
    ]
    return MemoryBank.from_samples(mini_encoder, samples)
