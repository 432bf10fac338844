"""Start: processor time of commands against `import torch`, and what `mrad score` imports, by cost."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.service_worker import DEMO, samples
from benchmarks.tables import Cell, Ratio, Table, main, ratio
from mrad import Encoder, MemoryBank

NAME = "start"
RUNS = 7
TREE = 0.02
"""Seconds that a module takes with what it imports, to have a line of the tree."""
MRAD = [sys.executable, "-c", "from mrad_indexer.cli.main import app; app()"]
LINE = re.compile(r"import time: +(\d+) \| +(\d+) \|( +)(\S+)")
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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


def tree(bank: Path, folder: Path) -> list[Table]:
    """What `mrad score` imports, as `python -X importtime` has it: packages, then modules."""
    image = str(next((DEMO / "query" / "good").iterdir()))
    arguments = ["score", image, "--bank", str(bank), "--out", str(folder / "scores"), "--restart"]
    command = [sys.executable, "-X", "importtime", *MRAD[1:], *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    packages: Counter[str] = Counter()
    lines: list[tuple[float, int, str]] = []
    for own, total, indent, name in LINE.findall(done.stderr):
        packages[name.partition(".")[0]] += int(own)
        lines.append((int(total) / 1e6, len(indent) // 2, name))
    # A module is listed after what it imports: read from the end, its importer comes before it.
    shown: list[list[Cell]] = []
    hidden = 99
    for seconds, depth, name in reversed(lines):
        if depth > hidden:
            continue
        hidden = depth if name.partition(".")[0] == "torch" or seconds < TREE else 99
        if seconds >= TREE:
            shown.append([f"{'. ' * depth}`{name}`", 1000 * seconds])
    total = sum(packages.values())
    rows: list[list[Cell]] = [["all", total / 1000]]
    rows += [[f"`{name}`", own / 1000] for name, own in packages.most_common(12)]
    note = "`python -X importtime`, which itself slows imports; torch is not followed inside."
    return [
        Table("What mrad score imports, by package", ["package", "ms"], rows),
        Table("The same as a tree, from 20 ms", ["module", "ms with its imports"], shown, [note]),
    ]


def run(quick: bool) -> list[Table]:
    """All tables."""
    with tempfile.TemporaryDirectory(prefix="mrad-start-") as scratch:
        folder = Path(scratch)
        MemoryBank.from_samples(Encoder.load("mrad-mini", device="cpu"), samples()).save(
            folder / "bank"
        )
        return [
            started(folder / "bank", folder, 1 if quick else RUNS),
            *tree(folder / "bank", folder),
        ]


if __name__ == "__main__":
    main(run)
