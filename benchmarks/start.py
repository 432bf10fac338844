"""Start: processor time of commands against `import torch`."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.load import free_port
from benchmarks.service_worker import DEMO, samples
from benchmarks.tables import Cell, Ratio, Table, ratio
from mrad import Encoder, MemoryBank

RUNS = 7
MRAD = [sys.executable, "-c", "from mrad_indexer.cli.main import app; app()"]
Cost = tuple[float, float]
"""Seconds: wall clock, processor."""


def environment() -> dict[str, str]:
    """As a user has it: with compiled modules kept."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def whole(command: Sequence[str]) -> Cost:
    """One run of a command to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    wall = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def until_ready(command: Sequence[str]) -> Cost:
    """A server's start, until it answers that it is ready; then it is ended."""
    port = free_port()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and time.perf_counter() - began < 120:
            with (
                suppress(OSError),
                urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/health/ready", timeout=1
                ) as answer,
            ):
                if answer.status == 200:
                    break
            time.sleep(0.02)
        wall = time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(bank: Path, folder: Path) -> dict[str, Callable[[], Cost]]:
    """What is started."""
    image = str(next((DEMO / "query" / "good").iterdir()))
    scored = [*MRAD, "score", image, "--bank", str(bank), "--out", str(folder / "scores")]
    for kind in ("good", "defect"):
        (folder / "two" / kind).mkdir(parents=True, exist_ok=True)
        chosen = min((DEMO / "memory" / kind).iterdir())
        shutil.copy(chosen, folder / "two" / kind)
    fresh = count()
    built = [*MRAD, "build", str(folder / "two"), "--out"]
    return {
        "import torch": lambda: whole([sys.executable, "-c", "import torch"]),
        "mrad --help": lambda: whole([*MRAD, "--help"]),
        "mrad bank inspect": lambda: whole([*MRAD, "bank", "inspect", str(bank)]),
        "mrad score, one image": lambda: whole([*scored, "--restart"]),
        "mrad build, 2 images": lambda: whole([*built, str(folder / f"built{next(fresh)}")]),
        "mrad serve, until ready and ended": lambda: until_ready(
            [*MRAD, "serve", "--bank", str(bank), "--no-auth"]
        ),
    }


def started(bank: Path, folder: Path, runs: int) -> Table:
    """Every command in turn, `runs` times, after one that is not counted."""
    steps = commands(bank, folder)
    taken: dict[str, list[Cost]] = {name: [] for name in steps}
    for turn in range(runs + 1):
        for name, step in steps.items():
            cost = step()
            if turn:
                taken[name].append(cost)
    base = taken["import torch"]
    rows: list[list[Cell]] = []
    ratios: dict[str, Ratio] = {}
    for name, costs in taken.items():
        beyond = median(cost[1] - torch[1] for cost, torch in zip(costs, base))
        rows.append([name, *(median(cost[i] for cost in costs) for i in (0, 1)), beyond])
        if name.startswith("mrad score"):
            ratios["import torch against mrad score"] = ratio(
                [cost[1] for cost in base], [cost[1] for cost in costs]
            )
    notes = [
        f"Medians of {runs} rounds of all commands in turn; mrad-mini, {len(samples())} images in the "
        "memory; files in the page cache.",
        "Scoring and building encode on as many threads as there are cores; that is in the processor time.",
    ]
    columns = ["", "wall s", "processor s", "beyond import torch, processor s"]
    return Table("Start of a command", columns, rows, notes, ratios)


def run(quick: bool) -> list[Table]:
    """One table."""
    with tempfile.TemporaryDirectory(prefix="mrad-start-") as scratch:
        folder = Path(scratch)
        MemoryBank.from_samples(Encoder.load("mrad-mini", device="cpu"), samples()).save(
            folder / "bank"
        )
        return [started(folder / "bank", folder, 1 if quick else RUNS)]
