"""Batches side by side on a processor's cores.

Threads that share one batch wait for each other at every layer, and all of them for whatever else takes
a core meanwhile. Two batches on a core each are done sooner than one after the other on both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
LANES = 4
"""Batches at once, at most: each needs the memory of one."""


@dataclass(frozen=True)
class Lanes:
    """How batches share a device."""

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
