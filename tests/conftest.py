"""Small things that most tests need: images, a tiny CLIP, its encoder, a bank."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageDraw

from mrad import Detector, Encoder, MemoryBank, Sample

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
DEMO = ROOT / "mrad" / "demo" / "deep_pcb"

MakeImage = Callable[..., tuple[Image.Image, Image.Image | None]]
MakeFolder = Callable[[Path, int], Path]


def draw_image(
    seed: int, size: tuple[int, int] = (80, 64), defect: bool = False
) -> tuple[Image.Image, Image.Image | None]:
    """A striped surface; with `defect`, a dark blob and its mask."""
    rng = np.random.default_rng(seed)
    width, height = size
    stripes = 140 + 40 * np.sin(np.arange(width) / 3 + rng.uniform(0, 6))[None, :]
    noise = rng.normal(0, 8, (height, width))
    image = Image.fromarray(np.clip(stripes + noise, 0, 255).astype(np.uint8)).convert("RGB")
    if not defect:
        return image, None
    side = min(size)
    x, y = rng.uniform(0.1, 0.4, 2) * (width, height)
    box = (x, y, x + side * 0.5, y + side * 0.5)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    ImageDraw.Draw(image).ellipse(box, fill=(20, 10, 10))
    return image, mask


def build_tiny_clip(seed: int = 0, **vision: int) -> torch.nn.Module:
    """An open_clip CLIP with seeded weights that runs in milliseconds."""
    config = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 4, "head_width": 16}
    torch.manual_seed(seed)
    return open_clip.model.CLIP(
        embed_dim=48,
        vision_cfg=open_clip.CLIPVisionCfg(**config | vision),
        text_cfg=open_clip.CLIPTextCfg(width=32, heads=2, layers=4),
    ).eval()


@pytest.fixture(scope="session")
def make_image() -> MakeImage:
    """`make_image(seed, size=(w, h), defect=False)` -> image, mask or None."""
    return draw_image


@pytest.fixture(scope="session")
def make_folder() -> MakeFolder:
    """`make_folder(root, count)` -> root, with good/, defect/ and masks/ of small images."""

    def make(root: Path, count: int) -> Path:
        for name in ("good", "defect", "masks"):
            (root / name).mkdir(parents=True)
        for seed in range(count):
            image, mask = draw_image(seed, (40, 32), defect=seed % 3 == 0)
            image.save(root / ("defect" if mask else "good") / f"{seed:03}.png")
            if mask is not None:
                mask.save(root / "masks" / f"{seed:03}.png")
        return root

    return make


@pytest.fixture(scope="session")
def tiny_clip() -> torch.nn.Module:
    """A CLIP of 4 small blocks, native size 64."""
    return build_tiny_clip()


@pytest.fixture(scope="session")
def tiny_encoder(tiny_clip: torch.nn.Module) -> Encoder:
    """The tiny CLIP at 96 px: its positions are interpolated, as in the paper."""
    return Encoder.from_clip(tiny_clip, image_size=96, name="tiny", device="cpu")


@pytest.fixture(scope="session")
def tiny_samples() -> list[Sample]:
    """Three defective and three good images of different sizes."""
    samples = []
    for seed in range(6):
        image, mask = draw_image(seed, (80 + 8 * seed, 64), defect=seed % 2 == 0)
        defect = "blob" if mask else ""
        samples.append(Sample(image, mask is not None, mask, source=f"{seed}.png", defect=defect))
    return samples


@pytest.fixture(scope="session")
def tiny_bank(tiny_encoder: Encoder, tiny_samples: list[Sample]) -> MemoryBank:
    """A memory of the six samples."""
    return MemoryBank.from_samples(tiny_encoder, tiny_samples, batch_size=4)


@pytest.fixture(scope="session")
def tiny_detector(tiny_encoder: Encoder, tiny_bank: MemoryBank) -> Detector:
    """TF on the tiny bank."""
    return Detector(tiny_encoder, tiny_bank)


@pytest.fixture(scope="session")
def mini_encoder() -> Encoder:
    """The shipped small CLIP, for tests where features must mean something."""
    return Encoder.load("mrad-mini", device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def demo_images() -> Path:
    """The bundled DeepPCB images: memory/ and query/, each with good/, defect/, masks/."""
    return DEMO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The larger image sets beside the checkout; skips where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("the larger image sets (../shared/data) are not beside this checkout")
    return SHARED
