"""Which retriever a level of the memory gets: exact or approximate, and why."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from mrad.errors import MRADError
from mrad.memory.level import LevelMemory
from mrad.retrieval.approximate.derived import approximate
from mrad.retrieval.base import KeySource, Retriever
from mrad.retrieval.exact import ExactRetriever

logger = logging.getLogger(__name__)

MODES = ("exact", "approximate", "auto")
FEW_PRODUCTS = 4_096 * 1_024
"""n * d up to which all keys cost less than the bookkeeping of cells (the paper's memory fits)."""
SHARP = 32.0
SHARP_PRODUCTS = 100_000 * 1_024


def choose(n_keys: int, d: int, sharpness: float) -> tuple[str, str]:
    """`exact` or `approximate`, and why, for n keys of width d.

    `sharpness`: typical |q| |k|, 1 for TF (`sharpness_of`).
    """
    if n_keys * d <= FEW_PRODUCTS:
        return "exact", f"{n_keys} keys of width {d} are few: exact costs no more than cells"
    if sharpness > SHARP and n_keys * d <= SHARP_PRODUCTS:
        return "exact", (
            f"sharpness {sharpness:.3g} is above {SHARP:g}, where most keys have to be read anyway, "
            f"and exact is affordable for {n_keys} keys of width {d}"
        )
    return "approximate", f"{n_keys} keys of width {d} at sharpness {sharpness:.3g} are many"


def sharpness_of(keys: KeySource, queries: Tensor | None = None, sample: int = 4_096) -> float:
    """Root mean square of |k| times that of |q| (the keys' own, where no queries are at hand)."""
    rows = np.unique(np.linspace(0, keys.shape[0] - 1, sample).astype(np.int64))
    norm = float(np.sqrt(np.square(np.asarray(keys[rows], dtype=np.float64)).sum(axis=1).mean()))
    if queries is None:
        return norm**2
    return norm * float(queries.double().square().sum(dim=1).mean().sqrt())


def make_retriever(
    level: LevelMemory,
    *,
    mode: str = "exact",
    device: torch.device | str = "cpu",
    queries: Tensor | None = None,
) -> Retriever:
    """The retriever of one level of the memory.

    Args:
        mode: `exact`, `approximate`, or `auto`, which logs what it chose and why.
        queries: [M, d], a sample of what will be asked, for the sharpness and the measured error;
            None: the keys stand in.

    Raises `MRADError` for an unknown `mode`, `EmptyLevelError`.
    """
    if mode not in MODES:
        raise MRADError(f"retrieval {mode!r} is unknown; choose {', '.join(MODES)}")
    if mode == "auto":
        sharpness = sharpness_of(level.keys, queries) if len(level) else 0.0
        mode, reason = choose(len(level), level.dim, sharpness)
        logger.info("retrieval is %s: %s", mode, reason)
    if mode == "exact":
        return ExactRetriever(level.keys, level.labels, level.entry, device=device)
    return approximate(level, device=device, queries=queries)
