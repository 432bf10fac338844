"""What every benchmark gives back: tables with their hardware and date, medians and paired ratios.

A benchmark is a module with `run(quick: bool) -> list[Table]`; `quick` is a small
size that checks the script, whose figures mean nothing.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

DATA = Path(__file__).parents[2] / "shared" / "data"
"""The larger image sets, beside the checkout."""
Cell = str | int | float | None
Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How many times faster, run by run: both sides of a pair ran one right after the other."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        if self.runs == 1:
            return f"{self.median:.2f}x (one run)"
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f}, {self.runs} runs)"


@dataclass(frozen=True)
class Table:
    """One table of a benchmark."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    """Sentences below the table: what was measured, on what, what it does not show."""
    ratios: dict[str, Ratio] = field(default_factory=dict)
    """Named ratios for a regression guard: they travel between machines, seconds do not."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells for {len(self.columns)} columns")

    def markdown(self) -> str:
        """The table as benchmarks/results/ holds it."""
        cells = [list(self.columns), *([shown(cell) for cell in row] for row in self.rows)]
        widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(self.columns))]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"### {self.title}", "", *lines, *([""] if notes else []), *notes, ""])

    def as_json(self) -> dict[str, Any]:
        """The same, with every digit."""
        return asdict(self)


def shown(cell: Cell) -> str:
    """A cell for people: three significant digits, thin separators in large counts."""
    if cell is None:
        return "-"
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}".replace(",", " ")
    if cell == 0 or 1e-3 <= abs(cell) < 1e5:
        digits = 3 if abs(cell) < 1 else 2 if abs(cell) < 10 else 1 if abs(cell) < 100 else 0
        return f"{cell:.{digits}f}"
    return f"{cell:.1e}"


def hardware() -> str:
    """The machine and the versions that figures depend on, with the date, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{cores} cores {_cpu()}, {gib:.0f} GiB, {gpu}; torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads; {datetime.now(UTC).date().isoformat()}"
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                flags = " (AVX-512 bf16)" if "avx512_bf16" in info.read_text() else ""
                return name + flags
    return platform.processor() or platform.machine()


def seconds(work: Work) -> float:
    """Wall-clock seconds of one run, to the end of what it started on a GPU."""
    gc.collect()
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Work, runs: int, *, warm: bool = True) -> list[float]:
    """Seconds of each of `runs` runs, after one that does not count."""
    if warm:
        work()
    return [seconds(work) for _ in range(runs)]


def paired(baseline: Work, ours: Work, runs: int, *, warm: bool = True) -> tuple[list[float], ...]:
    """Seconds of both sides, run by run in turn and in alternating order, after a warm-up each.

    Whatever slows the machine down for a while slows both halves of a pair.
    """
    if warm:
        baseline()
        ours()
    first: list[float] = []
    second: list[float] = []
    for run in range(runs):
        order = [(baseline, first), (ours, second)]
        for work, times in order if run % 2 == 0 else reversed(order):
            times.append(seconds(work))
    return first, second


def ratio(baseline: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Median, smallest and largest of the paired ratios baseline / ours."""
    ratios = [slow / fast for slow, fast in zip(baseline, ours, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios), len(ratios))


def middle(times: Sequence[float]) -> str:
    """Median with the spread of the runs, in a unit that reads well."""
    unit, scale = ("s", 1.0) if median(times) >= 1 else ("ms", 1e3)
    low, mid, high = (value * scale for value in (min(times), median(times), max(times)))
    return f"{shown(mid)} {unit}" + ("" if len(times) == 1 else f" ({shown(low)}-{shown(high)})")
