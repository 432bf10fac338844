"""What a memory can be asked, what that is good for, and which command comes next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrad.words import counted

if TYPE_CHECKING:
    from mrad.memory.bank import MemoryBank

HEADS = ("nn", "combined", "tf", "ft", "clip")
FEW = 10
"""Good images: a good beginning."""
ELSEWHERE = 0.612
"""Image AUROC of a memory of the bundled boards on another product, magnetic tiles: `python -m benchmarks
mini`. A coin has 0.5."""
BUNDLED = 81
"""Boards that come with mrad."""
SHOWN = 3


def heads_of(bank: MemoryBank) -> dict[str, Any]:
    """The head that answers by default, why, and which heads cannot serve, with what would do."""
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
        text = "it tells how far a picture is from the good ones, and where"
    elif head == "combined":
        text = "it tells how far a picture is from the good ones, where, and how like the defects"
    else:
        text = "it tells which of the known good ones and defects a picture is more like, and where"
    if good == 1 and not bad:
        return f"{text}. With a single good image there is no threshold: add good ones, ten are a good beginning"
    if good < FEW:
        text += f". {counted(good, 'good image')}: few, ten are a good beginning"
    bound = within_bound(bank) if head in ("nn", "combined") else ""
    return f"{text}. {bound}" if bound else text


def within_bound(bank: MemoryBank) -> str:
    """How many good images, or tiles, `nn` compares with; empty where the memory's bound leaves none out."""
    from mrad.memory.contents import LOCAL_KEYS
    from mrad.types import ANOMALOUS

    held = set(zip(bank.local.entry.tolist(), bank.local.tile.tolist()))
    good = [
        (row, tile)
        for row, tile in zip(bank.image.entry.tolist(), bank.image.tile.tolist())
        if bank.entries[row].label != ANOMALOUS
    ]
    kept = sum(pair in held for pair in good)
    if kept == len(good):
        return ""
    what = "good image" if bank.layout.plain else "good tile"
    return (
        f"It compares with the patches of {kept:,} of {counted(len(good), what)}, those that cover the others "
        f"best: a memory holds {LOCAL_KEYS:,} single patches at most"
    )


def next_step(bank: MemoryBank, path: Path) -> str:
    """The command that comes next."""
    from mrad.types import ANOMALOUS

    if len(bank.entries) == 1:
        return f"mrad score PHOTOS --bank {path}"
    needs = "" if any(e.label == ANOMALOUS for e in bank.entries) else " (no defect is needed)"
    return f"mrad calibrate {path}, for a threshold{needs}; then mrad score PHOTOS --bank {path}"


def without_memory(sources: Sequence[str]) -> list[str]:
    """What to say to who scores without a memory: what comes with mrad, its worth, and what to do."""
    photo = sources[0] if sources else "photo.jpg"
    photo = shlex.quote(photo)
    if found := banks_below(Path.cwd()):
        commands = [
            f"  mrad score {photo} --bank {shlex.quote(str(path))}" for path in found[:SHOWN]
        ]
        return ["Nothing was judged: say which memory to ask. Here are some:", *commands]
    return [
        "Nothing was judged: there is no memory to compare with, and none comes with mrad.",
        f"What comes with it are {BUNDLED} pictures of circuit boards, of which `mrad demo` makes a memory to "
        "look at. It is worth nearly nothing on another product: it tells good from defective magnetic tiles "
        f"with an AUROC of {ELSEWHERE:.2f}, and a coin has 0.50.",
        "Ten photographs of good parts of yours change everything; no defect, no mask, no training. Put them "
        "into a folder, then:",
        "  mrad build good-parts --out banks/parts",
        f"  mrad score {photo} --bank banks/parts",
        "That gives scores and heat maps; `mrad calibrate banks/parts` between the two gives verdicts.",
    ]


def banks_below(folder: Path) -> list[Path]:
    """Banks that lie in a folder, or one or two below it, as `banks/parts`."""
    from mrad.memory.store import MANIFEST

    found = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{MANIFEST}")]
    return sorted(path.relative_to(folder) for path in found if not path.name.startswith("."))
