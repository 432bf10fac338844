"""The nouns of the batcher: its limits, who watches it, and what lies between its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mrad.encoder.encoder import Features
from mrad_service.errors import QueueFullError
from mrad_service.scheduler.queue import Item


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
        if end == len(items) or not alike(items[start], items[end]):
            parts.append((items[start:end], features[start:end]))
            start = end
    return parts


def alike(one: Item, other: Item) -> bool:
    return kind(one) == kind(other)


def kind(item: Item) -> tuple[int, bool, bool]:
    """Items of one kind are finished together: the same model, maps or not, tiles or images."""
    return id(item.job.model), item.job.wanted.maps, item.whole is not item


def admit(images: int, inside: int, ahead: int, rate: float | None, limits: Limits) -> None:
    """Raise `QueueFullError` where so many more images do not fit, with when to come back.

    Args:
        images: of the job that wants in.
        inside: images waiting or being worked on. An empty queue takes any job: their number is
            bounded by the request's own limit.
        ahead: images and tiles that come before the job's last.
        rate: images and tiles a second; None before anything was measured.
        limits: `queue_images` and `queue_seconds`.
    """
    over = inside + images - limits.queue_images
    if inside and over > 0:
        raise QueueFullError(
            f"{inside} images are waiting and {images} more do not fit "
            f"({limits.queue_images} at most)",
            retry_after=over / rate if rate else 1.0,
        )
    if rate and ahead / rate > limits.queue_seconds:
        raise QueueFullError(
            f"{ahead} images come first, about {ahead / rate:.1f} s of work "
            f"({limits.queue_seconds:g} s at most)",
            retry_after=ahead / rate - limits.queue_seconds,
        )
