"""Grid -> map -> top score: one separable operator for a batch, against torch and SciPy in turn.

python -m benchmarks maps [--quick]
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from benchmarks.geometry import Geometry
from benchmarks.tables import Table, hardware, middle, paired, ratio
from mrad.maps import anomaly_map, top_mean


def by_scipy(patch: torch.Tensor, grid: int, size: int) -> tuple[np.ndarray, list[float]]:
    """Interpolate, blur and sort, one image after the other."""
    cells = patch.view(-1, 1, grid, grid)
    big = F.interpolate(cells, size=(size, size), mode="bilinear", align_corners=False)
    maps = np.stack([gaussian_filter(one[0].numpy(), sigma=4) for one in big])
    return maps, [float(np.sort(m.ravel())[::-1][: m.size // 100].mean()) for m in maps]


def run(quick: bool) -> list[Table]:
    """Time of a batch's maps and top scores at the paper's size, and the largest difference."""
    geometry = Geometry.tiny() if quick else Geometry.paper()
    grid, size = geometry.size // geometry.patch, geometry.size
    rows, ratios = [], {}
    for batch in (1, 8):
        patch = torch.rand(batch, grid * grid, generator=torch.Generator().manual_seed(batch))

        def ours(patch: torch.Tensor = patch) -> tuple[torch.Tensor, torch.Tensor]:
            maps = anomaly_map(patch, size)
            return maps, top_mean(maps)

        def theirs(patch: torch.Tensor = patch) -> tuple[np.ndarray, list[float]]:
            return by_scipy(patch, grid, size)

        slow, fast = paired(theirs, ours, 2 if quick else 15)
        found, wanted = ours(), theirs()
        off = float(np.abs(found[0].numpy() - wanted[0]).max())
        ratios[f"maps, batch {batch}, against SciPy"] = speed = ratio(slow, fast)
        rows.append([batch, middle(slow), middle(fast), str(speed), off])
    return [
        Table(
            f"Maps of {grid} x {grid} patches at {size} px with their top 1 %, float32",
            [
                "batch",
                "torch + SciPy + sort",
                "one operator",
                "ratio, paired",
                "largest difference",
            ],
            rows,
            [hardware()],
            ratios,
        )
    ]
