"""The nouns of the batcher: its limits, who watches it, and what lies between its stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mrad.encoder.encoder import Features
from mrad_service.scheduler.queue import Item
from mrad_service.scheduler.tiles import TileItem


class Observer(Protocol):
    """Who is told what happens (metrics, tracing)."""

    def stage(self, name: str, seconds: float, items: Sequence[Item]) -> None:
        """Just ended: `decode` or `render` of an image, `encode` or `retrieve` of a batch."""
        ...

    def batch(self, size: int) -> None:
        """A batch went to a device."""
        ...

    def waiting(self, images: int) -> None:
        """So many images are waiting or being worked on."""
        ...


@dataclass(frozen=True)
class Limits:
    """See `Settings`."""

    max_batch: int = 8
    kind: str = "cuda"
    """What devices are: a processor encodes batches side by side (`mrad.encoder.device`)."""
    batch_wait: float = 0.02
    decode_threads: int = 2
    finish_threads: int = 2
    queue_images: int = 256
    queue_seconds: float = 10.0
    max_decoded_bytes: int = 2 << 30
    nearest_every: int = 0
    """Of so many finished groups, one finds its nearest keys unasked (drift); 0: none."""


@dataclass(eq=False)
class Group:
    """Encoded items of one model that want the same."""

    device: int
    items: Sequence[Item]
    features: Features


def split(items: Sequence[Item], features: Features) -> list[tuple[Sequence[Item], Features]]:
    """Runs of neighbours with the same model that all want maps, or none of them."""
    parts, start = [], 0
    for end in range(1, len(items) + 1):
        if end == len(items) or kind(items[start]) != kind(items[end]):
            parts.append((items[start:end], features[start:end]))
            start = end
    return parts


def kind(item: Item) -> tuple[int, bool, bool]:
    """Items of one kind are finished together: the same model, maps or not, tiles or images."""
    return id(item.job.model), item.job.wanted.maps, item.whole is not item


def same_encoder(
    device: int, ready: Iterable[Item], usable: Sequence[int], busy: Sequence[int]
) -> list[Item]:
    """What waits for one encoder of this device; where nothing does, for one that is held up.

    Args:
        device: the one that looks for work.
        ready: decoded items.
        usable: devices that work.
        busy: batches that each device encodes now.
    """
    if usable and device not in usable:
        return []
    own = [item for item in ready if item.device == device]
    if not own:
        own = [item for item in ready if busy[item.device] or item.device not in usable]
    if not own:
        return []
    first = own[0].job.model.detectors[device].encoder
    return [item for item in own if item.job.model.detectors[device].encoder is first]


def least_laden(
    decoding: Sequence[int], ready: Iterable[Item], usable: Sequence[int], busy: Sequence[int]
) -> int:
    """The device with the fewest images before it: there the next one is uploaded.

    Args:
        decoding: images on their way to each device.
        ready: decoded items.
        usable: devices that work, one at least.
        busy: batches that each device encodes now.
    """
    waiting = list(decoding)
    for item in ready:
        waiting[item.device] += 1
    return min(usable, key=lambda device: (waiting[device], busy[device]))


class BatchSize:
    """How many images a device takes at once: fewer after it was out of memory, then more again."""

    def __init__(self, most: int) -> None:
        self.now, self._most, self._clean = most, most, 0

    def shrink(self, size: int) -> None:
        """A batch of so many was all that fitted."""
        self.now, self._clean = max(1, size), 0

    def recover(self) -> None:
        """A batch went well; after fifty of them larger ones are tried again."""
        self._clean += 1
        if self._clean >= 50 and self.now < self._most:
            self.now, self._clean = min(self._most, 2 * self.now), 0


def soon_finished(groups: Sequence[Group], device: torch.device) -> bool:
    """Whether the thread that encoded `groups` had best finish them too, if no image follows.

    It has all of a CPU's cores, which the threads that finish share and have to be woken for: so one
    client that waits has its answer sooner. Not so where maps are written, which may take long, and
    whoever comes meanwhile would wait for it.
    """
    return device.type == "cpu" and not any(
        isinstance(item, TileItem) or item.job.wanted.maps
        for group in groups
        for item in group.items
    )
