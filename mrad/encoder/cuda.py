"""The tower on a GPU, recorded as a CUDA graph for each bucket of batch sizes and then replayed.

A tower at batch 1 is some five hundred small kernels, whose launches from Python take longer than the
kernels themselves. Recording asks no compiler; compiling (`compile_blocks`) fuses what lies between
the products as well, and needs Triton and a C compiler where it runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
Record = Callable[[Run, Tensor], Run]
LARGEST = 64
"""Largest recorded batch: launches do not matter above, and each recording holds its memory."""
logger = logging.getLogger(__name__)


def bucket_of(batch: int) -> int:
    """The power of two that a batch is filled up to."""
    return 1 << (batch - 1).bit_length()


def record(run: Run, pixels: Tensor) -> Run:
    """Record `run` on a batch like `pixels`; what comes back replays it for up to so many images."""
    held = torch.zeros_like(pixels)
    side = torch.cuda.Stream(pixels.device)
    side.wait_stream(torch.cuda.current_stream(pixels.device))
    with torch.cuda.stream(side):  # kernels are chosen and workspaces made before anything counts
        for _ in range(3):
            run(held)
    torch.cuda.current_stream(pixels.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads go on using the device while this one records.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        class_feature, patches = run(held)

    def replay(batch: Tensor) -> tuple[Tensor, Tensor]:
        count = len(batch)
        held[:count].copy_(batch)
        graph.replay()
        return class_feature[:count].clone(), patches[:count].clone()

    return replay


class Graphs:
    """Runs a tower by recordings, one for each bucket, made when first asked for. Thread-safe.

    What cannot be recorded runs as it is, from then on, and the log says why.
    """

    def __init__(self, run: Run, record: Record = record) -> None:
        self._run, self._record = run, record
        self._recorded: dict[int, Run] = {}
        self._lock = threading.Lock()

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As the tower: pixels [B, 3, S, S] -> class features [B, E], patch features [B, N, W]."""
        bucket = bucket_of(len(pixels))
        if bucket > LARGEST:
            return self._run(pixels)
        with self._lock:  # a recording has one place for its input
            if bucket not in self._recorded:
                self._recorded[bucket] = self._made(bucket, pixels)
            return self._recorded[bucket](pixels)

    def _made(self, bucket: int, pixels: Tensor) -> Run:
        try:
            recorded = self._record(self._run, pixels.new_empty(bucket, *pixels.shape[1:]))
        except torch.OutOfMemoryError:
            raise  # for the caller, who asks again with fewer images
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            logger.warning("batches of %d run without a CUDA graph: %s", bucket, reason)
            return self._run
        logger.info("batches of up to %d images replay a CUDA graph", bucket)
        return recorded


def compile_blocks(tower: nn.Module, backend: str = "inductor") -> None:
    """`torch.compile` for the blocks that run both paths: one compilation serves all of them."""
    for block in tower.get_submodule("middle").children():
        block.compile(backend=backend, dynamic=False, fullgraph=True)
