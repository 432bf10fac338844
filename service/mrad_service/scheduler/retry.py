"""What fails runs again: in halves, so that what is out of memory fits and what is broken is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import structlog
import torch

from mrad.errors import MRADError
from mrad_service.errors import DeviceError, DeviceLostError, DeviceMemoryError, InternalError
from mrad_service.scheduler.health import (
    free_memory,
    is_of_device,
    is_out_of_memory,
    why_lost,
)

T = TypeVar("T")
R = TypeVar("R")
log = structlog.get_logger(__name__)


def in_halves(
    items: Sequence[T], run: Callable[[Sequence[T]], R], device: torch.device
) -> Iterator[tuple[Sequence[T], R | MRADError]]:
    """`run(items)`; if that fails, the same for each half. At one item the error stands.

    Yields the parts in order, each with its result, or with `DeviceMemoryError`, `DeviceError`,
    `InternalError` or the method's own error; all of them at once with `DeviceLostError` where `device` fails for good.
    """
    problem: MRADError | None = None
    try:
        result = run(items)
    except Exception as error:
        problem = _known_error(error, device)
        final = len(items) == 1 or isinstance(problem, DeviceLostError)
        if final:
            log.error("an image failed", code=problem.code, detail=repr(error))
    if problem is None:
        yield items, result
        return
    # Out of the except block, whose traceback would hold on to the tensors that did not fit.
    if not isinstance(problem, DeviceLostError):
        free_memory()
    if final:
        yield items, problem
        return
    log.warning("a batch failed and runs again in halves", size=len(items), detail=str(problem))
    middle = (len(items) + 1) // 2
    yield from in_halves(items[:middle], run, device)
    yield from in_halves(items[middle:], run, device)


def once_more(run: Callable[[], R], device: torch.device) -> R | MRADError:
    """`run()`, and again where memory was short; its result, or an error as of `in_halves`."""
    problem = None
    for last in (False, True):
        try:
            return run()
        except MRADError as error:
            return error
        except Exception as error:
            problem = _known_error(error, device)
            if last or not isinstance(problem, DeviceMemoryError):
                log.error("an image could not be prepared", code=problem.code, detail=repr(error))
                break
        free_memory()
    assert problem is not None
    return problem


def _known_error(error: Exception, device: torch.device) -> MRADError:
    if is_out_of_memory(error):
        return DeviceMemoryError("the device has no memory for even one image; try again later")
    if isinstance(error, MRADError):
        return error
    if reason := why_lost(device):
        return DeviceLostError(f"{device} fails for good: {reason}; start the server again")
    found: MRADError = (
        DeviceError(f"the device failed: {error!r}")
        if is_of_device(error)
        else InternalError(f"an image could not be judged: {error!r}")
    )
    found.__cause__ = error  # whoever answers logs it, beside the request's id
    return found
