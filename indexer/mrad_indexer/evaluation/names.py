"""What each detector of a comparison is called: its head, checkpoint and bank, as short as can be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mrad_indexer.loading import HeadChoice


def candidate_names(
    choices: Sequence[tuple[HeadChoice, Path]],
) -> dict[tuple[HeadChoice, Path], str]:
    """Name of every head on its bank, in this order; what is given twice is there once.

    A checkpoint is named wherever there is one, a bank where there are several; of paths that end
    alike, as much is said as tells them apart.
    """
    checkpoints = shortest(head.checkpoint for head, _ in choices if head.checkpoint is not None)
    folders = shortest(bank for _, bank in choices)
    several = len(set(folders.values())) > 1
    names = {}
    for head, bank in choices:
        known = head.checkpoint and checkpoints[head.checkpoint]
        name = f"{head.name}:{known.removesuffix('.safetensors')}" if known else head.name
        names[head, bank] = f"{name} on {folders[bank]}" if several else name
    return names


def shortest(paths: Iterable[Path]) -> dict[Path, str]:
    """Each path -> so many of its last parts that no two different places are called alike."""
    places = {path: Path(os.path.abspath(path)).parts for path in paths}  # noqa: PTH100 - resolves `..`, not links
    for length in range(1, 1 + max(map(len, places.values()), default=0)):
        tails = {path: "/".join(parts[-length:]) for path, parts in places.items()}
        if len(set(tails.values())) == len(set(places.values())):
            return tails
    return {path: path.as_posix() for path in places}
