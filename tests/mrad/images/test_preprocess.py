"""Image -> tensor: the paper's, on the CPU and as the device does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrad.images.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess, is_grey, planes
from mrad.images.reader import load_image


def test_pixels_are_the_resized_image_less_mean_over_deviation():
    image = Image.fromarray(np.random.default_rng(2).integers(0, 255, (50, 70, 3), np.uint8))
    pixels = Preprocess(28)(image)
    resized = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)) / 255
    wanted = (resized - OPENAI_MEAN) / OPENAI_STD
    assert pixels.shape == (3, 28, 28)
    assert pixels.is_contiguous()
    np.testing.assert_allclose(pixels.numpy(), wanted.transpose(2, 0, 1), atol=1e-6)
    other = Preprocess(28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(image)
    np.testing.assert_allclose(other.numpy(), resized.transpose(2, 0, 1) * 2 - 1, atol=1e-6)


def test_a_grey_image_has_the_numbers_of_its_three_channels():
    levels = np.random.default_rng(3).integers(0, 255, (50, 70), np.uint8)
    grey = Image.fromarray(levels).convert("RGB")
    resized = np.asarray(grey.resize((28, 28), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    pixels = Preprocess(28, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(grey)
    assert torch.equal(pixels, torch.from_numpy(resized.copy()).float() / 255)
    assert pixels.is_contiguous()
    one = Image.fromarray(levels)
    preprocess = Preprocess(28)
    assert torch.equal(preprocess(one), preprocess(grey))
    on_device = preprocess.resize(planes(levels)), preprocess.resize(planes(np.array(grey)))
    assert torch.equal(*on_device)
    assert on_device[0].is_contiguous()
    nearly = grey.copy()
    nearly.putpixel((69, 49), (0, 255, 0))  # far from the middle row
    assert is_grey(grey)
    assert not is_grey(nearly)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(50, 70), (70, 50), (20, 90), (28, 28), (16, 16)])
def test_several_images_are_prepared_as_each_alone(count, size):
    rng, preprocess = np.random.default_rng(count), Preprocess(28)
    grey = [Image.fromarray(rng.integers(0, 255, size, np.uint8)) for _ in range(count)]
    colour = [Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)) for _ in range(count)]
    for images in (grey, colour, [*grey[:-1], colour[0]], [*grey[:-1], grey[0].resize((9, 9))]):
        for one, image in zip(preprocess.several(images), images, strict=True):
            assert torch.equal(one, preprocess(image))
            assert one.is_contiguous()


@pytest.mark.parametrize("side", [96, 264])
def test_resizing_tensors_is_pillows_resizing_within_two_levels(demo_images: Path, side: int):
    files = sorted((demo_images / "query").glob("*/*.*"))[:3]
    rng = np.random.default_rng(0)
    noise = [  # both shrink, rows most; both shrink, columns most; one grows; both grow
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((700, 300), (300, 640), (300, 50), (50, 300), (side, 400), (41, 50))
    ]
    preprocess = Preprocess(side)
    scale = 255 * torch.tensor(preprocess.std).view(3, 1, 1)
    assert files
    for image in [*(load_image(file) for file in files), *noise]:
        levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        apart = ((preprocess.resize(levels) - preprocess(image)) * scale).abs()
        assert float(apart.max()) < 2.01, image.size
        assert float((apart > 0.5).float().mean()) < 0.01, image.size
