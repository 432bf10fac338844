"""What a memory can be asked, what that is good for, and which command comes next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrad.memory.bank import MemoryBank

HEADS = ("nn", "combined", "tf", "ft", "clip")
FEW = 10
"""Good images: a good beginning."""


def heads_of(bank: MemoryBank) -> dict[str, Any]:
    """The head that is asked unless told, why, and which heads cannot serve, with what would do."""
    from mrad.errors import MRADError
    from mrad.heads.choose import default_head, problem

    unfit = {name: str(found) for name in HEADS if (found := problem(bank, name)) is not None}
    try:
        choice = default_head(bank)
    except MRADError as error:
        return {"default": None, "why": str(error), "unfit": unfit}
    return {"default": choice.head, "why": choice.why, "unfit": unfit}


def worth(bank: MemoryBank, head: str) -> str:
    """What verdicts of this memory rest on."""
    from mrad.types import ANOMALOUS

    good = sum(entry.label != ANOMALOUS for entry in bank.entries)
    bad = len(bank.entries) - good
    if head == "nn":
        told = "it tells how far a picture is from the good ones, and where"
    elif head == "combined":
        told = "it tells how far a picture is from the good ones, where, and how like the defects"
    else:
        told = "it tells which of the known good ones and defects a picture is more like, and where"
    if good == 1 and not bad:
        return f"{told}. With a single good image there is no threshold: add good ones, ten are a good beginning"
    if good < FEW:
        told += f". {good} good images are few, ten are a good beginning"
    return told


def next_step(bank: MemoryBank, path: Path) -> str:
    """The command that comes next."""
    from mrad.types import ANOMALOUS

    if len(bank.entries) == 1:
        return f"mrad score PHOTOS --bank {path}"
    needs = "" if any(e.label == ANOMALOUS for e in bank.entries) else " (no defect is needed)"
    return f"mrad calibrate {path}, for a threshold{needs}; then mrad score PHOTOS --bank {path}"
