"""Which device, how exact its float32 is, and which process may use what was loaded on it."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from mrad.errors import EncoderError, ForkedProcessError

logger = logging.getLogger(__name__)
OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Set to 1, it makes cuBLAS and cuDNN use TF32 whatever a program asks for."""


def resolve_device(device: str) -> torch.device:
    """`auto` -> the first GPU, else the CPU; a GPU always comes with its index.

    Float32 products on a GPU are made exact (`exact_float32`). Raises `EncoderError` for a device
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
    if found.type == "cuda":
        exact_float32()
        if found.index is None:
            found = torch.device("cuda", torch.cuda.current_device())
    return found


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
