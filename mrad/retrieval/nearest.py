"""The nearest keys among tensors that stay where they are: FAISS on a GPU, else PyTorch."""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from importlib import import_module
from typing import Any

import faiss
import torch
from torch import Tensor

from mrad.retrieval import probe

logger = logging.getLogger(__name__)
MOST = 2_048
"""FAISS selects no more than this many on a GPU."""
TEMPORARY = 256 << 20
"""Bytes of a GPU that FAISS may hold on to; the rest is PyTorch's to give."""
BLOCK = 65_536
"""Keys at a time without FAISS."""
_lock = threading.Lock()


def nearest(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k keys of largest inner product: similarities float32 and rows int64, [M, k], best first.

    `queries` [M, d] and `keys` [n, d], float32 on one device, k <= n; nothing leaves the device.
    FAISS works on PyTorch's stream and reads the keys in place. Without a FAISS that can use the card,
    above `MOST` and where FAISS finds no memory, PyTorch does it, and the log says so.
    """
    resources = resources_of(keys.device) if keys.is_cuda and k <= MOST else None
    if resources is not None:
        try:
            with _lock, torch.cuda.device(keys.device):  # one search at a time for each resources
                return _by_faiss(resources, queries.contiguous(), keys.contiguous(), k)
        except RuntimeError as error:
            logger.warning("FAISS on %s failed, PyTorch searches instead: %s", keys.device, error)
    return by_blocks(queries, keys, k)


@lru_cache(maxsize=64)
def resources_of(device: torch.device) -> Any:
    """FAISS's streams and memory on a GPU; None where it cannot search there, and the log says why.

    FAISS ends the process on a card that it has no code for, so a process of its own tries a search first.
    """
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        logger.warning(
            "this FAISS has no GPU support (the extra `gpu` has): PyTorch finds neighbours"
        )
        return None
    if reason := probe.why_not(device.index or 0):
        logger.warning("FAISS is not used on %s: %s; PyTorch finds neighbours", device, reason)
        return None
    import_module("faiss.contrib.torch_utils")  # teaches FAISS tensors and PyTorch's stream

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(TEMPORARY)
    return resources


def _by_faiss(resources: Any, queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    similarity, rows = faiss.knn_gpu(
        resources,
        queries,
        keys,
        k,
        metric=faiss.METRIC_INNER_PRODUCT,
        device=keys.device.index or 0,
    )
    return similarity, rows


def by_blocks(queries: Tensor, keys: Tensor, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """As `nearest`, in PyTorch, with [M, block] products at a time."""
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(keys), block):
        scores = queries @ keys[start : start + block].T
        found, places = scores.topk(min(k, scores.shape[1]), dim=1)
        merged, rows = torch.cat([best, found], 1), torch.cat([rows, places + start], 1)
        best, order = merged.topk(min(k, merged.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return best, rows
