"""A batch that fails runs again in halves: what is out of memory fits, what is broken is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import structlog
import torch

from mrad.errors import MRADError
from mrad_service.errors import DeviceError, DeviceMemoryError

T = TypeVar("T")
R = TypeVar("R")
log = structlog.get_logger(__name__)


def in_halves(
    items: Sequence[T], run: Callable[[Sequence[T]], R]
) -> Iterator[tuple[Sequence[T], R | MRADError]]:
    """`run(items)`; if that fails, the same for each half. At one item the error stands.

    Yields the parts in order, each with its result, or with `DeviceMemoryError`, `DeviceError` or
    the method's own error.
    """
    told: MRADError | None = None
    try:
        result = run(items)
    except Exception as error:
        told = _told(error)
        if len(items) == 1:
            log.error("an image failed on the device", code=told.code, exc_info=error)
    if told is None:
        yield items, result
        return
    # Out of the except block, whose traceback would hold on to the tensors that did not fit.
    _free_memory()
    if len(items) == 1:
        yield items, told
        return
    log.warning("a batch failed and runs again in halves", size=len(items), detail=str(told))
    middle = (len(items) + 1) // 2
    yield from in_halves(items[:middle], run)
    yield from in_halves(items[middle:], run)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def _told(error: Exception) -> MRADError:
    if is_out_of_memory(error):
        return DeviceMemoryError("the device has no memory for even one image; try again later")
    if isinstance(error, MRADError):
        return error
    return DeviceError(f"the device failed: {error!r}")


def _free_memory() -> None:
    """What torch keeps for later may be what is missing now."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
