"""Named steps whose results are kept, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from mrad.errors import MRADError
from mrad.files import atomic_write_bytes


class Watcher(Protocol):
    """Who shows how far it is."""

    def begin(self, step: str, total: int | None) -> None:
        """A step begins; `total` of what `advance` counts, where it is known."""
        ...

    def advance(self, done: int, total: int | None = None, note: str = "") -> None:
        """So much of the step is done."""
        ...

    def end(self, step: Step) -> None:
        """The step ended: done, found done, or failed."""
        ...


@dataclass(frozen=True)
class Step:
    """What one step took and gave."""

    name: str
    fingerprint: str
    """SHA-256 of everything that decides its result."""
    seconds: float
    cuda_bytes: int
    """Most that PyTorch held on a GPU meanwhile; 0 without one."""
    host_bytes: int
    """Most memory that the process had taken by its end."""
    result: dict[str, Any]
    error: str = ""
    resumed: bool = False
    """Whether an earlier run had done it."""


@dataclass
class Steps:
    """Runs steps and keeps what they gave in `folder`, a JSON file each."""

    folder: Path
    watcher: Watcher
    done: list[Step] = field(default_factory=list)

    def run(
        self,
        name: str,
        decides: Any,
        make: Callable[[], dict[str, Any]],
        *,
        files: Sequence[Path] = (),
        total: int | None = None,
    ) -> Step:
        """Do it, unless an earlier run did with the same `decides` and all `files` are still there.

        An `MRADError` becomes the step's `error`: other steps may still succeed.
        """
        text = json.dumps(decides, sort_keys=True, default=str)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.watcher.begin(name, total)
        step = self._kept(name, fingerprint, files) or self._made(name, fingerprint, make)
        self.done.append(step)
        self.watcher.end(step)
        return step

    def _kept(self, name: str, fingerprint: str, files: Sequence[Path]) -> Step | None:
        try:
            step = Step(**json.loads((self.folder / f"{name}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        if step.fingerprint != fingerprint or step.error or not all(f.exists() for f in files):
            return None
        return Step(**asdict(step) | {"resumed": True})

    def _made(self, name: str, fingerprint: str, make: Callable[[], dict[str, Any]]) -> Step:
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        began, result, error = time.perf_counter(), {}, ""
        try:
            result = make()
        except MRADError as failure:
            error = f"{failure} ({failure.code})"
        step = Step(
            name=name,
            fingerprint=fingerprint,
            seconds=time.perf_counter() - began,
            cuda_bytes=torch.cuda.max_memory_allocated() if on_gpu else 0,
            host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            result=result,
            error=error,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(step), indent=1, default=str)
        atomic_write_bytes(self.folder / f"{name}.json", content.encode())
        return step
