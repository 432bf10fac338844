"""Canvases whose patch probabilities are a known function of the place."""

from __future__ import annotations

import numpy as np
import torch

from mrad.tiled import Canvas, Rules

RULES = Rules(grid=6, image_size=96, sigma=4.0, top=0.01, fusion=0.7)


def look(canvas: Canvas, field) -> Canvas:
    """The canvas, each of its tiles seen with `field(x, y)` at its patches' centres."""
    for tile in canvas.places.tiles:
        left, top, right, bottom = tile.box
        x = left + (np.arange(6) + 0.5) * (right - left) / 6
        y = top + (np.arange(6) + 0.5) * (bottom - top) / 6
        patch = torch.tensor(field(x[None, :], y[:, None]), dtype=torch.float32).expand(6, 6)
        canvas.add(tile, patch.flatten(), 0.5, (torch.zeros(3), torch.zeros(36, 4)))
    return canvas
