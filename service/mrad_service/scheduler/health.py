"""What cannot be healed but by a new process: devices that fail for good, threads that ended."""

from __future__ import annotations

import threading

import torch

OF_DEVICE = (
    "cuda", "cudnn", "cublas", "cusolver", "cusparse", "nccl", "nvrtc", "hip error", "miopen", "rocblas",
    "accelerator", "device-side assert", "execute a primitive", "create a primitive",
)  # fmt: skip
"""In the messages of drivers, their libraries and oneDNN."""


class Health:
    """What is broken for good, for liveness and for whoever gives out work. Thread-safe."""

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._lost: dict[int, str] = {}
        self._ended: dict[str, str] = {}
        self._lock = threading.Lock()

    def lose(self, device: int, reason: str) -> None:
        """Nothing can be computed on it any more."""
        with self._lock:
            self._lost.setdefault(device, reason)

    def end(self, thread: str, reason: str) -> None:
        """A worker thread ended that should have gone on."""
        with self._lock:
            self._ended.setdefault(thread, reason)

    @property
    def usable(self) -> list[int]:
        """The devices that work can be given to."""
        with self._lock:
            return [
                device
                for device in range(self._devices)
                if device not in self._lost and f"device-{device}" not in self._ended
            ]

    @property
    def why(self) -> str:
        """What is broken; empty when nothing is."""
        with self._lock:
            lost = [f"device {device} is lost: {reason}" for device, reason in self._lost.items()]
            ended = [f"thread {name} ended: {reason}" for name, reason in self._ended.items()]
        return "; ".join(lost + ended)


def why_lost(device: torch.device) -> str:
    """Why nothing can be computed on a device any more; empty while something can.

    After an illegal access, a failed assertion or a fault of the card, every later call of CUDA
    fails in this process. Which errors these are differs by driver, so it is tried.
    """
    try:
        float(torch.ones(1, device=device).sum())
    except Exception as error:
        if is_out_of_memory(error):
            return ""
        return str(error).splitlines()[0] if str(error) else repr(error)
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def is_of_device(error: BaseException) -> bool:
    """Whether a device, its driver or its libraries failed, and not the program."""
    if isinstance(error, torch.AcceleratorError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in OF_DEVICE)


def free_memory() -> None:
    """What torch keeps for later may be what is missing now."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
