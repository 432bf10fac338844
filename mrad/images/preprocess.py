"""Image -> tensor, exactly the paper's (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops
from torch import Tensor

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Image, L or RGB -> normalised float32 [3, S, S]: bicubic with antialiasing, whatever the aspect."""

    image_size: int
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD

    def __call__(self, image: Image.Image) -> Tensor:
        """`image`: L or RGB of any size. Returns float32 [3, S, S] on the CPU."""
        side = (self.image_size, self.image_size)
        if image.mode != "L" and is_grey(image):  # a third of the work, the same numbers
            image = image.getchannel(0)
        resized = planes(np.array(image.resize(side, Image.Resampling.BICUBIC)))
        # In order first, then as floats: a third of the time, the same numbers.
        return self._normalised(resized.contiguous().float())

    def several(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """As one by one, but grey ones of one size are channels of one image: three quarters of the time."""
        mode = {3: "RGB", 4: "CMYK"}.get(len(images))
        if (
            mode is None
            or len({(one.mode, one.size) for one in images}) > 1
            or images[0].mode != "L"
        ):
            return [self(one) for one in images]
        side = (self.image_size, self.image_size)
        resized = Image.merge(mode, images).resize(side, Image.Resampling.BICUBIC)
        return list(self._normalised(planes(np.array(resized)).contiguous().float()[:, None]))

    def resize(self, image: Tensor) -> Tensor:
        """The same on whatever device `image`, uint8 [1 or 3, H, W], is on: float32 [3, S, S] there.

        As in Pillow, one direction comes first and is rounded to whole levels, then the other. Its
        weights are fixed-point, so a value next to a half may round the other way: at most two
        levels of 255 apart, and any apart on less than a hundredth of the values
        (tests/mrad/test_preprocess.py).
        """
        (height, width), side = image.shape[1:], self.image_size
        # Pillow 13 takes the rows first where that costs less; before, it never did.
        rows_first = height > side and height - side > 2 * (width - side)
        first = (side, width) if rows_first else (height, side)
        values = image.float()[None]
        for size in (first, (side, side)):
            values = F.interpolate(values, size, mode="bicubic", antialias=True)
            values = values.add_(0.5).floor_().clamp_(0, 255)
        return self._normalised(values[0])

    def levels(self, pixels: Tensor) -> npt.NDArray[np.uint8]:
        """Inverse: what was resized, uint8 [S, S, C], of float32 [3, S, S]; C is 1 for a grey picture, else 3."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        values = pixels.detach().cpu().permute(1, 2, 0) * std + mean
        levels = (values * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        grey = bool((levels == levels[..., :1]).all())
        return np.ascontiguousarray(levels[..., :1] if grey else levels)

    def _normalised(self, levels: Tensor) -> Tensor:
        """Levels 0..255, float32 [..., 1 or 3, S, S], overwritten -> [..., 3, S, S]."""
        mean = torch.tensor(self.mean, device=levels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=levels.device).view(3, 1, 1)
        return levels.div_(255).sub(mean).div_(std).contiguous()


def planes(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Pixels [H, W] or [H, W, C] as a tensor [1 or C, H, W] of the same memory."""
    found = torch.from_numpy(pixels)
    return found[None] if found.ndim == 2 else found.permute(2, 0, 1)


def is_grey(image: Image.Image) -> bool:
    """Whether the three channels of an RGB image are the same; of most others one row tells."""
    middle = image.height // 2
    return _alike(image.crop((0, middle, image.width, middle + 1))) and _alike(image)


def _alike(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))
