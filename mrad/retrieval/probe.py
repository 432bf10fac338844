"""A small search by FAISS on a GPU, in a process of its own, because FAISS may end its process.

Run as a script with a GPU's index, it ends with 0 when the nearest keys are right. It imports neither
PyTorch nor this package, so it takes about a second.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

SECONDS = 60.0
"""A driver that compiles PTX for a new card does so once, at the first kernel."""
KEYS, QUERIES, WIDTH, NEAREST = 512, 8, 64, 5


def why_not(device: int, seconds: float = SECONDS) -> str:
    """Why FAISS cannot search on that GPU; empty when it can. This process survives in any case."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__)), str(device)],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a trial search took longer than {seconds:g} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    last = lines[-1] if lines else "without a word"
    if done.returncode < 0:
        return f"a trial search was ended by {signal.Signals(-done.returncode).name}: {last}"
    return f"a trial search failed: {last}"


def main(device: int) -> None:
    """Search, and compare with NumPy. Raises `SystemExit` when the answer is wrong."""
    import faiss

    rng = np.random.default_rng(0)
    keys, queries = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (KEYS, QUERIES))
    _, rows = faiss.knn_gpu(
        faiss.StandardGpuResources(),
        queries,
        keys,
        NEAREST,
        metric=faiss.METRIC_INNER_PRODUCT,
        device=device,
    )
    wanted = np.argsort(-(queries @ keys.T), axis=1)[:, :NEAREST]
    if not np.array_equal(rows, wanted):
        raise SystemExit("its neighbours are not the nearest keys")


if __name__ == "__main__":
    main(int(sys.argv[1]))
