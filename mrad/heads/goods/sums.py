"""What a memory's own images retrieve from the others, as sums that follow lessons.

`tf` judges an image by two sums of exp(cosine) at each level, one over the keys of each class. A new
entry adds its keys to the sums of every image, and one that is forgotten takes its keys away: nothing
else has to be measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrad.encoder.encoder import Features
from mrad.encoder.tower import neighbourhood_average
from mrad.heads import HeadOutput
from mrad.heads.goods import kept
from mrad.memory.level import LevelMemory
from mrad.retrieval.base import at_reference_shares, probability_of
from mrad.retrieval.goods import Views

if TYPE_CHECKING:
    from mrad.memory.bank import MemoryBank

BLOCK = 8_192
"""Keys at a time."""
BATCH = 8
"""Images at a time."""
VERSION = 1
Query = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""Views -> class queries [B, E] and patch queries [B, N, W], L2-normalised."""


@dataclass(frozen=True)
class LeftOutSums:
    """Of every image or tile that the memory holds whole: sums over the keys of the other entries."""

    views: tuple[tuple[str, int], ...]
    """Entry and tile of each of the V views."""
    entries: tuple[str, ...]
    levels: tuple[LevelMemory, LevelMemory]
    """Image and patch level that were summed over."""
    image: Tensor
    """float64 [V, 2], sum of exp(cosine - 1) over the normal and the anomalous keys."""
    patch: Tensor
    """float64 [V, N, 2]."""

    @classmethod
    @torch.inference_mode()
    def measure(
        cls, bank: MemoryBank, views: Views, query: Query, known: LeftOutSums | None = None
    ) -> LeftOutSums:
        """Of the bank as it is; `known`: of an earlier state of it, of which the rest is taken over."""
        entries = tuple(entry.entry_id for entry in bank.entries)
        pairs = tuple(
            (entries[row], tile) for row, tile in zip(views.rows.tolist(), views.tiles.tolist())
        )
        cells = views.normal.shape[1]
        zeros = torch.zeros(len(pairs), 2, dtype=torch.float64)
        made = cls(
            pairs,
            entries,
            (bank.image, bank.patch),
            zeros,
            torch.zeros(len(pairs), cells, 2, dtype=torch.float64),
        )
        old: dict[tuple[str, int], int] = {}
        if known is not None and known.patch.shape[1] == cells:
            old = {pair: view for view, pair in enumerate(known.views)}
        kept = [view for view, pair in enumerate(pairs) if pair in old]
        fresh = [view for view, pair in enumerate(pairs) if pair not in old]
        if known is not None and kept:
            places = [old[pairs[view]] for view in kept]
            made.image[kept], made.patch[kept] = known.image[places], known.patch[places]
            before, now = set(known.entries), set(entries)
            gone = [row for row, entry in enumerate(known.entries) if entry not in now]
            new = [row for row, entry in enumerate(entries) if entry not in before]
            made._add(kept, views, query, known.levels, gone, -1.0)
            made._add(kept, views, query, made.levels, new, 1.0)
        if fresh:
            made._add(fresh, views, query, made.levels, None, 1.0)
        return made

    def _add(
        self,
        chosen: list[int],
        views: Views,
        query: Query,
        levels: tuple[LevelMemory, LevelMemory],
        rows: list[int] | None,
        sign: float,
    ) -> None:
        """Add, or take away, the keys of entries `rows` of `levels`; None: all but a view's own."""
        if rows is not None and not rows:
            return
        picked = [_keys_of(level, rows) for level in levels]
        if not any(len(labels) for _, labels, _ in picked):
            return
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            own = views.rows[batch] if rows is None else torch.full((len(batch),), -1)
            image, patch = query(batch)
            self.image[batch] += sign * _sums(image, *picked[0], own)
            cells = patch.shape[1]
            found = _sums(patch.flatten(0, 1), *picked[1], own.repeat_interleave(cells))
            self.patch[batch] += sign * found.view(len(batch), cells, 2)

    def write(self, path: Path) -> None:
        """Keep it at `path`, or say in the log why not."""
        facts = {"version": VERSION, "views": self.views, "entries": self.entries}
        kept.write(path, {"image": self.image, "patch": self.patch}, facts)

    @classmethod
    def read(cls, path: Path, levels: tuple[LevelMemory, LevelMemory]) -> LeftOutSums | None:
        """What `write` kept of `levels`; None where it is absent, damaged or of another version."""
        found = kept.read(path)
        if found is None or found[1].get("version") != VERSION:
            return None
        tensors, facts = found
        views = tuple((entry, int(tile)) for entry, tile in facts["views"])
        return cls(views, tuple(facts["entries"]), levels, tensors["image"], tensors["patch"])

    def output(self, rows: Tensor) -> HeadOutput:
        """As `tf` judges images of the entries `rows` [V], each without its own keys."""
        count, cells = self.patch.shape[:2]
        patch = probability_of(self.patch.flatten(0, 1).clamp_min(0).log())
        image = probability_of(self.image.clamp_min(0).log())
        own = rows.repeat_interleave(cells)
        return HeadOutput(
            at_reference_shares(patch, self.levels[1], own).view(count, cells),
            at_reference_shares(image, self.levels[0], rows),
        )


def stored_at(bank: MemoryBank) -> Path | None:
    """Where a bank that lies on disk keeps its sums; None for one in memory, or that learned."""
    return kept.place(bank, "sums", VERSION, [bank.local, bank.image, bank.patch])


def stored_query(bank: MemoryBank, views: Views, device: torch.device | str) -> Query:
    """The queries of the images that a bank holds whole, from what it holds of them."""
    cells, grid = views.normal.shape[1], round(views.normal.shape[1] ** 0.5)
    raw = torch.from_numpy(bank.local.keys).view(-1, cells, bank.local.dim)
    place = {
        pair: row
        for row, pair in enumerate(zip(bank.image.entry.tolist(), bank.image.tile.tolist()))
    }
    pairs = list(zip(views.rows.tolist(), views.tiles.tolist()))
    keys = torch.from_numpy(bank.image.keys)

    def ask(chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        whole = keys[torch.tensor([place[pairs[view]] for view in chosen])].to(device)
        part = raw[torch.tensor(list(chosen))].to(device)
        features = Features(whole, neighbourhood_average(part, grid))
        return features.class_query(), features.patch_query()

    return ask


def _keys_of(
    level: LevelMemory, rows: list[int] | None
) -> tuple[Tensor, npt.NDArray[np.uint8], Tensor]:
    """Keys, labels and entries of those entries; None: all."""
    chosen = slice(None) if rows is None else np.flatnonzero(np.isin(level.entry, rows))
    keys = torch.from_numpy(np.ascontiguousarray(level.keys[chosen]))
    return keys, level.labels[chosen], torch.from_numpy(level.entry[chosen])


def _sums(
    queries: Tensor, keys: Tensor, labels: npt.NDArray[np.uint8], entry: Tensor, own: Tensor
) -> Tensor:
    """float64 [M, 2]: sums of exp(cosine - 1) over keys of each class, but of the entry `own` [M]."""
    found = torch.zeros(len(queries), 2, dtype=torch.float64)
    leave = bool((own >= 0).any())
    for start in range(0, len(labels), BLOCK):
        part = slice(start, start + BLOCK)
        weights = (queries @ keys[part].to(queries.device).T).sub_(1).exp_()
        if leave:
            banned = entry[part][None] == own[:, None]
            weights.masked_fill_(banned.to(weights.device), 0.0)
        for label in (0, 1):
            mine = torch.from_numpy(labels[part] == label)
            if bool(mine.any()):
                total = weights[:, mine.to(weights.device)].sum(dim=1, dtype=torch.float64)
                found[:, label] += total.cpu()
    return found
