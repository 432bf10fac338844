"""Which device, how exact its float32 is, what memory it keeps, how batches share it, and which process may use it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any, TypeVar

import torch

from mrad.errors import EncoderError, ForkedProcessError

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
LANES = 4
"""Batches at once, at most: each needs the memory of one."""
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""As glibc numbers them (malloc.h)."""
KEPT, SINGLE = 64 << 20, 32 << 20
"""Bytes that are free at the end of a heap up to which they are kept; the largest block that lies in one."""
OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Set to 1, it makes cuBLAS and cuDNN use TF32 whatever a program asks for."""


def resolve_device(device: str) -> torch.device:
    """`auto` -> the first GPU, else the CPU; a GPU always comes with its index.

    Float32 products on a GPU are made exact (`exact_float32`); on a CPU freed memory is kept
    (`keep_freed_memory`). Raises `EncoderError` for a device
    that is not there.
    """
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EncoderError(f"device {device!r} cannot be used here: {reason}") from error
    found = torch.device(device)
    if found.type == "cpu":
        keep_freed_memory()
    if found.type == "cuda":
        exact_float32()
        if found.index is None:
            found = torch.device("cuda", torch.cuda.current_device())
    return found


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Have glibc keep what a batch has freed, for the next one; other libraries are left as they are.

    Else it may give some back after each batch, by how blocks happen to lie, and the kernel hands it out again
    page by page: up to 13 MB a tile, a seventh of its time. There is a heap for each core, not eight, which would
    each keep their own. An environment that says how memory is to be handled is followed.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        if not told:
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(TRIM_THRESHOLD, KEPT)
            mallopt(MMAP_THRESHOLD, SINGLE)
            mallopt(ARENA_MAX, os.cpu_count() or 1)


def exact_float32(exact: bool = True) -> None:
    """The one place where TF32 is decided, for the whole process: off, unless a benchmark asks.

    Cards since Ampere can round the factors of a float32 product to 10 bits (TF32). PyTorch leaves
    that off for matrix products and on for cuDNN's convolutions. Two images' probabilities differ
    in the third or fourth digit (docs/method.md), so none of it is wanted here; for speed there
    is `precision="bf16"`, which the tower is built for.
    """
    backends: Any = torch.backends
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = not exact
    # PyTorch since 2.9 has other switches as well, which these do not undo; in this order they agree.
    for part in (
        backends.cuda.matmul,
        *(getattr(backends.cudnn, n, None) for n in ("conv", "rnn")),
    ):
        if hasattr(part, "fp32_precision"):
            part.fp32_precision = "ieee" if exact else "tf32"
    if exact and os.environ.get(OVERRIDE) == "1":
        logger.warning("%s=1 forces TF32: scores differ in the third digit; unset it", OVERRIDE)


class Owner:
    """The process that loaded something: a forked child has its memory, but not its threads.

    PyTorch's and FAISS's worker threads do not survive a fork, nor does a CUDA context: what waits
    for them waits for ever.
    """

    def __init__(self) -> None:
        self._process = os.getpid()

    def check(self) -> None:
        """Raise `ForkedProcessError` in any other process."""
        if os.getpid() != self._process:
            raise ForkedProcessError(
                f"process {os.getpid()} was forked after process {self._process} had loaded the "
                "detector, and its threads are not here: load it in each process, start workers by "
                "multiprocessing's 'spawn' or 'forkserver', and gunicorn without a loaded detector "
                "under --preload"
            )

    def __reduce__(self) -> tuple[type[Owner], tuple[()]]:
        return Owner, ()  # unpickled elsewhere it belongs there


@dataclass(frozen=True)
class Lanes:
    """How batches share a device.

    Threads that share one batch wait for each other at every layer, and all of them for whatever else
    takes a core meanwhile. Two batches on a core each are done sooner than one after the other on both.
    """

    count: int
    cores: int

    @classmethod
    def of(cls, device: torch.device | str, cores: int) -> Lanes:
        """`cores` of one device: a processor has lanes, anything else has one."""
        most = LANES if torch.device(device).type == "cpu" else 1
        return cls(max(1, min(most, cores)), max(1, cores))

    @property
    def share(self) -> int:
        """Cores of one batch where every lane has one; one that is alone may have all."""
        return self.cores // self.count

    def part(self, ready: int, busy: int) -> int:
        """How many of the items that are `ready` one lane takes, where `busy` others are at work."""
        return math.ceil(ready / max(1, self.count - busy))


def side_by_side(
    device: torch.device, work: Callable[[list[T]], list[R]], items: Iterable[T], size: int
) -> Iterator[R]:
    """What `work` makes of items, in order, `size` of them at a time; several threads may run it.

    Each lane has its part of them; where only one has any, the caller's thread works, on all cores.
    """
    lanes, stream = Lanes.of(device, torch.get_num_threads()), iter(items)
    pool: ThreadPoolExecutor | None = None
    try:
        while batch := list(islice(stream, size)):
            part = lanes.part(len(batch), 0)
            parts = [batch[start : start + part] for start in range(0, len(batch), part)]
            if len(parts) == 1:
                yield from work(batch)
                continue
            if pool is None:
                cores = partial(torch.set_num_threads, lanes.share)
                pool = ThreadPoolExecutor(lanes.count, "lane", cores)
            for found in pool.map(work, parts):
                yield from found
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
