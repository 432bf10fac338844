"""Which heads a memory can serve, and which one answers unless another is named: the same for library, command line and server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrad.encoder.identity import EncoderName
from mrad.errors import EmptyLevelError, MRADError, NoGoodPartsError
from mrad.memory.bank import MemoryBank
from mrad.memory.entry import REGIONS
from mrad.memory.level import LEVELS
from mrad.types import ANOMALOUS, NORMAL

AUTO = "auto"
TRAINED = ("ft", "clip")
GOOD_PARTS_ALONE = frozenset({"nn", "combined"})
"""Heads for which the patches of good images are enough."""

MOST, NEARLY = 0.5, 0.8
"""Share of a picture above which a mask says nothing of where the defect is; share of such masks among
all above which no mask decides which head is asked."""
BOTH = "both levels of the memory hold both classes"
ENOUGH = 5
"""Good parts from which `combined` tells more than `tf`, by the mean over sets (`benchmarks good_parts`)."""


@dataclass(frozen=True)
class Choice:
    """A head, and why it."""

    head: str
    why: str


def problem(bank: MemoryBank, head: str) -> MRADError | None:
    """Why a memory cannot serve a head that comes with mrad, as the error to raise; None if it can."""
    try:
        if head in GOOD_PARTS_ALONE:
            check_good_parts(bank)
        elif head in ("tf", *TRAINED):
            check_two_classes(bank, head)
        if head == "clip":
            EncoderName.parse(bank.identity.architecture).check_text()
    except MRADError as error:
        return error
    return None


def check_two_classes(bank: MemoryBank, head: str) -> None:
    """Raise `EmptyLevelError`, `OneClassError` unless both levels hold both classes."""
    bank.image.check_classes("image", head)
    bank.patch.check_classes("patch", head)


def check_good_parts(bank: MemoryBank) -> None:
    """Raise `NoGoodPartsError` unless the bank holds the patches of good images."""
    if bool((bank.local.labels == NORMAL).any()):
        return
    if bool((bank.image.labels == NORMAL).any()):
        raise NoGoodPartsError(
            "the bank does not hold the patches of its good images, as banks built before 0.2.0 and "
            "imported ones do not; build it again from the images, or use head tf"
        )
    raise NoGoodPartsError(
        "the memory holds no good image, and heads nn and combined compare with good ones: add some, "
        "ten are a good beginning"
    )


def default_head(bank: MemoryBank, checkpoint: str | Path | None = None) -> Choice:
    """The head that a memory is asked by unless another is named.

    Its calibration's, where it was calibrated for one head alone. With masked defects: `combined` where
    the memory knows enough good parts of one product, else the paper's `tf`, which also judges what no
    memory knows. `combined` too where only whole images are known to be defective, so that `tf` has no
    map, where masks say nothing, and where every defect is another product's; `nn` where the memory
    holds good images alone. A checkpoint is asked itself. Raises what keeps every head from it.

    What was taught since the build has no say, while the head that suits the build serves: a server goes on
    with its head when it learns, and the memory must be judged by the same one when it is opened again.
    """
    if checkpoint is not None:
        from mrad.heads.checkpoint import load_checkpoint

        trained = load_checkpoint(Path(checkpoint)).head
        return Choice(trained, "the checkpoint is this head's")
    plain = [
        name
        for name, facts in (bank.calibration or {}).items()
        if name not in TRAINED and not (facts.get("settings") or {}).get("checkpoint")
    ]
    if len(plain) == 1 and problem(bank, plain[0]) is None:
        return Choice(plain[0], "the bank is calibrated for it")
    if bank.settled < len(bank.entries):
        try:
            found = default_head(_as_built(bank))
        except MRADError:  # the build alone serves none
            pass
        else:
            if problem(bank, found.head) is None:
                return found
    if not len(bank.image):
        raise EmptyLevelError("the memory holds no image; add good ones, ten are a good beginning")
    no_good_parts, compares = problem(bank, "nn"), problem(bank, "tf") is None
    if no_good_parts is not None:
        if compares:
            return Choice("tf", BOTH)
        raise no_good_parts
    if not compares and all(bank.image.counts):
        return Choice("combined", "the memory holds good images, and defects without masks")
    if not compares:
        return Choice("nn", "the memory holds good images alone")
    if alone := _without_defects(bank):
        return Choice("combined", f"of {alone} the memory knows no defect: only good ones")
    if useless := _useless_masks(bank):
        return Choice("combined", useless)
    if (good := _own_good_parts(bank)) >= ENOUGH:
        return Choice("combined", f"defects, and {good} good images of one product")
    return Choice("tf", BOTH)


def _as_built(bank: MemoryBank) -> MemoryBank:
    """What is left of what it was built of; nothing is copied."""
    levels: dict[str, Any] = {
        name: level.take(slice(None, int((level.entry < bank.settled).sum())))
        for name, level in zip(LEVELS, (bank.image, bank.patch, bank.local))
    }
    return replace(bank, entries=bank.entries[: bank.settled], **levels)


def _own_good_parts(bank: MemoryBank) -> int:
    """Good images that are held whole, where all images are of one product or of none that is named.

    A memory of several products is one for products that it does not know, whose good parts lie far
    from all of these.
    """
    if len({entry.object_name for entry in bank.entries}) > 1:
        return 0
    return len(np.unique(bank.local.entry[bank.local.labels == NORMAL]))


def _useless_masks(bank: MemoryBank) -> str:
    """Why the masks of the defects say nothing of where they are; empty where they do."""
    level = bank.patch if bank.patch_keys == REGIONS else bank.local
    cells, entries = np.asarray(level.size, np.float64), len(bank.entries)
    marked, clear = (
        np.bincount(level.entry[own], cells[own], entries)
        for own in (level.region == "anomalous", level.region == "normal")
    )
    defects = np.array([entry.label == ANOMALOUS for entry in bank.entries]) & (marked > 0)
    most = int((marked[defects] > MOST * (marked + clear)[defects]).sum())
    if not most or most < NEARLY * defects.sum():
        return ""
    return (
        f"{most} of {defects.sum()} masks mark most of their picture (inverted?), so they do not say "
        "where defects are: correct them, or leave them out"
    )


def _without_defects(bank: MemoryBank) -> str:
    """A product of which the memory holds good images alone, beside others; empty for none.

    Images that name no product may be of any.
    """
    bad = {entry.object_name for entry in bank.entries if entry.label != NORMAL}
    good = dict.fromkeys(e.object_name for e in bank.entries if e.label == NORMAL)
    return next((name for name in good if name and name not in bad), "")
