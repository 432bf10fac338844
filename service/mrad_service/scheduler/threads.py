"""Worker threads: each with its share of the cores, and never ending unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
import torch

from mrad_service.scheduler.health import Health

log = structlog.get_logger(__name__)


def start_worker(
    name: str, loop: Callable[[], None], cores: int, health: Health
) -> threading.Thread:
    """Run `loop` in a thread whose tensor operations take so many cores.

    Left alone, each would take them all: pools of several threads would then wait for one another,
    spinning. Returns once the thread runs; one that fails is told to `health`.
    """
    ready = threading.Event()

    def run() -> None:
        torch.set_num_threads(cores)
        ready.set()
        try:
            loop()
        except BaseException as error:
            log.critical("a worker thread ended", thread=name, exc_info=error)
            health.end(name, repr(error))

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    ready.wait()
    return thread
