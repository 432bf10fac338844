"""The tower on a GPU, recorded as a CUDA graph for each bucket of batch sizes and then replayed.

A tower at batch 1 is some five hundred small kernels, whose launches from Python take longer than the
kernels themselves. Recording asks no compiler; compiling (`compile_blocks`) fuses what lies between
the products as well, and needs Triton and a C compiler where it runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
Record = Callable[[Run, Tensor], Run]
LARGEST = 64
"""Largest recorded batch: launches do not matter above, and each recording holds its memory."""
AGREE = 1e-2
"""How far a replay may lie from the eager result, as a share of its largest value. Other kernels may
be chosen while recording, which rounds elsewhere; a replay of the wrong thing is off by all of it."""
_recording = threading.Lock()
"""One recording at a time in the whole process: CUDA's is a state of the thread and of the allocator."""
logger = logging.getLogger(__name__)


def bucket_of(batch: int) -> int:
    """The power of two that a batch is filled up to."""
    return 1 << (batch - 1).bit_length()


def buckets(largest: int) -> list[int]:
    """The batch sizes that make every bucket of batches up to `largest`: 1, 2, 4, ..., `largest`."""
    return [1 << power for power in range((largest - 1).bit_length())] + [largest]


class Lane:
    """Where a device's recordings are made and replayed: one stream, one pool of memory, one lock.

    The recordings share their memory, so none may run before the outputs of the one before it are
    copied: the lock covers a whole replay, and all of it runs on the one stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.lock = device, threading.Lock()
        self.stream = torch.cuda.Stream(device)
        with torch.cuda.device(device):
            self.pool = torch.cuda.graph_pool_handle()


@lru_cache(maxsize=64)
def lane_of(device: torch.device) -> Lane:
    """The lane of a device, the same for every encoder on it."""
    return Lane(device)


def record(run: Run, pixels: Tensor) -> Run:
    """Record `run` on a batch like `pixels`; what comes back replays it for up to so many images.

    Everything happens on the device of `pixels`, whichever is the current one.
    """
    lane = lane_of(pixels.device)
    lane.stream.wait_stream(torch.cuda.current_stream(lane.device))
    with _recording, lane.lock, torch.cuda.device(lane.device), torch.cuda.stream(lane.stream):
        held = torch.zeros_like(pixels)
        for _ in range(3):  # kernels are chosen and workspaces made before anything counts
            run(held)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on using the device while this one records.
        with torch.cuda.graph(
            graph, pool=lane.pool, stream=lane.stream, capture_error_mode="thread_local"
        ):
            class_feature, patches = run(held)

    def replay(batch: Tensor) -> tuple[Tensor, Tensor]:
        count = len(batch)
        with lane.lock, torch.cuda.device(lane.device):
            callers = torch.cuda.current_stream(lane.device)
            lane.stream.wait_stream(callers)
            with torch.cuda.stream(lane.stream):
                held[:count].copy_(batch)
                graph.replay()
                out = class_feature[:count].clone(), patches[:count].clone()
            callers.wait_stream(lane.stream)
        batch.record_stream(lane.stream)
        for tensor in out:  # made on the lane's stream, read and given back on the caller's
            tensor.record_stream(callers)
        return out

    return replay


class Graphs:
    """Runs a tower by recordings, one for each bucket, made when first asked for. Thread-safe.

    What cannot be recorded, or replays something other than the tower computes, runs as it is, from
    then on, and the log says why.
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
        like = pixels.new_empty(bucket, *pixels.shape[1:])
        try:
            recorded = self._record(self._run, like)
            if not self._agrees(recorded, like):
                raise RuntimeError("its replay is not what the tower computes")
        except torch.OutOfMemoryError:
            raise  # for the caller, who asks again with fewer images
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            logger.warning("batches of %d run without a CUDA graph: %s", bucket, reason)
            return self._run
        logger.info("batches of up to %d images replay a CUDA graph", bucket)
        return recorded

    def _agrees(self, recorded: Run, like: Tensor) -> bool:
        """Whether two different inputs, one after the other, replay as they run."""
        ramp = torch.linspace(-2, 2, like.numel(), device=like.device, dtype=like.dtype)
        first = ramp.sin_().view(like.shape)
        return all(
            bool((found - wanted).abs().max() <= AGREE * wanted.abs().max())
            for pixels in (first, -first.flip(0, 2))
            for found, wanted in zip(recorded(pixels), self._run(pixels))
        )


def compile_blocks(tower: nn.Module, backend: str = "inductor") -> None:
    """`torch.compile` for the blocks that run both paths: one compilation serves all of them."""
    for block in tower.get_submodule("middle").children():
        block.compile(backend=backend, dynamic=False, fullgraph=True)
