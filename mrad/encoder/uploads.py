"""Images onto a GPU while it computes: pinned memory, a stream of their own, resized there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrad.images.preprocess import Preprocess, planes

LARGEST = 1 << 24
"""Pixels above which Pillow resizes: on the device an image takes 24 bytes a pixel for a moment."""


class Uploads:
    """Images -> pixels on the device. For the threads that decode; thread-safe.

    A call returns when its own image has arrived, whatever else the device is doing; several threads
    keep it fed.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self.preprocess, self.device = preprocess, device
        self.stream = torch.cuda.Stream(device)

    def __call__(self, image: Image.Image) -> Tensor:
        """L or RGB of any size -> float32 [3, S, S] on the device."""
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            if image.width * image.height > LARGEST:
                pixels = self._sent(self.preprocess(image))
            else:
                pixels = self.preprocess.resize(self._sent(planes(np.array(image))))
            self.stream.record_event().synchronize()
        return pixels

    def _sent(self, values: Tensor) -> Tensor:
        return values.pin_memory().to(self.device, non_blocking=True)


def gather(pixels: Sequence[Tensor], device: torch.device) -> Tensor:
    """Images [3, S, S] from wherever they are -> [B, 3, S, S] on `device`."""
    batch = torch.stack([one.to(device) for one in pixels])
    for one in pixels:
        if one.is_cuda:
            keep(one)
    return batch


def keep(one: Tensor) -> None:
    """Made on another stream: its memory is not used again before this stream has read it."""
    one.record_stream(torch.cuda.current_stream(one.device))
