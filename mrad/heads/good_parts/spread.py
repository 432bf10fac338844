"""How unlike good patches a patch is, in the directions in which those hardly vary.

The nearest good patch says little where a defect is weak: any patch is about as far from its nearest in
the directions in which good ones vary anyway. The Mahalanobis distance counts each direction by how much
good patches vary in it. Where a memory holds several products, one spread says less of each, so the nearest
patch keeps half the say (`mrad.heads.good_parts.cells`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mrad.encoder.kernels import product
from mrad.heads.good_parts import cache
from mrad.heads.good_parts.classes import APART, FOLDS
from mrad.heads.good_parts.left_out import LeftOutDistances, Query
from mrad.memory.bank import MemoryBank
from mrad.retrieval.good_patches import BLOCK, GoodPatches, Views

VERSION = 3

ENOUGH = 3
"""Good images from which a spread is known when one of them is left out."""
LEAST_RIDGE = 1e-4
"""Of the mean variance, added to every direction: those in which nothing varies count for no more."""
LEAST_VARIANCE = 1e-9
"""Where good patches are all the same; float32 knows a patch's numbers to about 1e-8."""


@dataclass(frozen=True)
class PatchSums:
    """What a spread follows from; images can be taken away again."""

    centre: Tensor
    """[W], what is taken off every patch first: float32 products would round away a small spread."""
    count: int
    total: Tensor
    """float64 [W]."""
    products: Tensor
    """float64 [W, W]."""

    @classmethod
    def none(cls, centre: Tensor) -> PatchSums:
        """Of no patch."""
        total = torch.zeros(len(centre), dtype=torch.float64)
        return cls(centre, 0, total, torch.outer(total, total))

    def plus(self, patches: Tensor) -> PatchSums:
        """With `patches` [n, W], L2-normalised."""
        off = patches - self.centre.to(patches.device)
        total, products = off.sum(dim=0).double().cpu(), (off.T @ off).double().cpu()
        count = self.count + len(patches)
        return PatchSums(self.centre, count, self.total + total, self.products + products)

    def less(self, part: PatchSums) -> PatchSums:
        """Without some of them; of one centre."""
        count, total = self.count - part.count, self.total - part.total
        return PatchSums(self.centre, count, total, self.products - part.products)

    def spread(self, images: int, device: torch.device | str) -> PatchSpread:
        """How the patches of so many `images` vary; the fewer, the more evenly they are taken to."""
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        typical = float(covariance.diagonal().mean().clamp_min(LEAST_VARIANCE))
        even = torch.eye(len(mean), dtype=torch.float64)
        root = torch.linalg.cholesky(covariance + max(LEAST_RIDGE, images**-2) * typical * even)
        factor = torch.linalg.solve_triangular(root, even, upper=False)
        centre = self.centre.double().cpu() + mean
        return PatchSpread(centre.float().to(device), factor.float().contiguous().to(device))


@dataclass(frozen=True)
class PatchSpread:
    """Where good patches lie, and how they vary."""

    mean: Tensor
    """[W]."""
    factor: Tensor
    """[W, W], lower triangular: of what it makes of good patches, every number varies by 1."""

    def distance(self, patches: Tensor) -> Tensor:
        """Mahalanobis distance [...] of patches [..., W] from the mean."""
        found: Tensor = torch.linalg.vector_norm(product(patches - self.mean, self.factor), dim=-1)
        return found

    def apart(self, patches: Tensor, keys: Tensor) -> Tensor:
        """Distance [n] of patches [n, W] from keys [n, W], as `distance` measures, times `APART`."""
        found: Tensor = torch.linalg.vector_norm(product(patches - keys, self.factor), dim=-1)
        return APART * found


class GoodSpread:
    """The spread of a memory's good patches, of all images and without some."""

    def __init__(
        self,
        good_patches: GoodPatches,
        views: Views,
        settled: Tensor,
        known: LeftOutSpread | None = None,
    ) -> None:
        """
        Args:
            good_patches: the good patches.
            views: the images that the memory holds whole.
            settled: bool [V], which of them say what is usual; of those, the good ones do.
            known: of the same spread; its sums are taken over.
        """
        self.good_patches = good_patches
        usual = torch.zeros(len(good_patches.groups), dtype=torch.bool)
        usual[views.rows[views.good & settled]] = True
        self._usual = usual.to(good_patches.keys.device)
        self.of_build = self._usual[good_patches.entry]
        """bool [n]: the good patches that say what is usual."""
        groups = (
            good_patches.group[self.of_build].unique().cpu()
        )  # a picture may have no patch of interest
        self.images = len(groups)
        folds = torch.tensor_split(groups, min(FOLDS, max(1, self.images)))
        self._fold = {group: fold for fold in folds for group in fold.tolist()}
        self.enough = self.images >= ENOUGH
        self.sums: PatchSums | None = None
        if self.enough:
            self.sums = self._of(self.of_build) if known is None else known.sums
        self._whole: PatchSpread | None = None
        self._last: tuple[Tensor, PatchSpread] | None = None

    def _of(self, keys: Tensor) -> PatchSums:
        """Of some `keys` bool [n], a block at a time: float32 adds few numbers exactly enough."""
        if self.sums is None:
            found = PatchSums.none(self.good_patches.keys[keys][:BLOCK].mean(dim=0))
        else:
            found = PatchSums.none(self.sums.centre)
        for rows in keys.nonzero()[:, 0].split(BLOCK):
            found = found.plus(self.good_patches.keys[rows])
        return found

    def whole(self) -> PatchSpread:
        """Of all images that say what is usual."""
        assert self.sums is not None, "too few images"
        if self._whole is None:
            self._whole = self.sums.spread(self.images, self.good_patches.keys.device)
        return self._whole

    def without(self, row: int) -> PatchSpread:
        """Of those of other groups than an entry's; -1: all. Of many groups several are left out at once."""
        fold = self._fold.get(int(self.good_patches.groups[row])) if row >= 0 else None
        if fold is None or self.sums is None:
            return self.whole()
        last, device = self._last, self.good_patches.group.device
        if last is not None and last[0] is fold:
            return last[1]
        left = torch.isin(self.good_patches.group, fold.to(device)) & self.of_build
        found = self.sums.less(self._of(left)).spread(self.images - len(fold), device)
        self._last = fold, found
        return found

    def taught(self, entry: Tensor) -> Tensor:
        """Which of the entry rows [n], -1 for none, are good ones that do not say what is usual."""
        return (entry >= 0) & ~self._usual[entry.long().clamp_min(0).to(self._usual.device)].to(
            entry.device
        )

    def distance(self, patches: Tensor, key: Tensor | None = None, row: int = -1) -> Tensor:
        """Distance [n], on the CPU, of patches [n, W]; a taught good patch calms what is like it.

        Args:
            patches: L2-normalised.
            key: int64 [n], the nearest good patch of each, of those that may be asked; None: nothing calms.
            row: the entry that is left out, with its group; -1: none.
        """
        spread = self.without(row)
        found = spread.distance(patches)
        if key is None:
            return found.cpu()
        entry = self.good_patches.entry[key.clamp_min(0)].where(key >= 0, -1)
        taught = self.taught(entry)
        if bool(taught.any()):
            near = spread.apart(patches[taught], self.good_patches.keys[key[taught]])
            found[taught] = torch.minimum(found[taught], near)
        return found.cpu()


@dataclass(frozen=True)
class LeftOutSpread:
    """Of every patch of every stored image: its distance by the spread of the other images.

    A lesson does not change what is usual, once the build has some good images (`mrad.heads.nn.FEW`), so
    old images are not measured again.
    """

    views: tuple[tuple[str, int], ...]
    """Entry and tile of each of the V views."""
    groups: tuple[tuple[str, ...], ...]
    """Entries that each view was not measured by."""
    usual: tuple[tuple[str, int, int], ...]
    """The views that say what is usual, each with the number of its group among theirs: a lesson may show that
    two of them are near-duplicates, and which are left out together changes."""
    sums: PatchSums
    values: Tensor
    """float32 [V, N]."""

    @classmethod
    @torch.inference_mode()
    def measure(
        cls,
        spread: GoodSpread,
        measured: LeftOutDistances,
        views: Views,
        query: Query,
        usual: tuple[tuple[str, int, int], ...],
        known: LeftOutSpread | None,
    ) -> LeftOutSpread:
        """Of the views of `measured`.

        Args:
            spread: of the memory's good patches; there are enough of them.
            measured: names the views and their groups.
            views: the images that the memory holds whole.
            query: the patches of a view.
            usual: the views that say what is usual (`usual_views`).
            known: what was measured of an earlier state with the same spread; what holds is taken over.
        """
        assert spread.sums is not None, "too few images"
        values = torch.empty(len(measured.views), views.normal.shape[1])
        old = {} if known is None else {pair: at for at, pair in enumerate(known.views)}
        for view, pair in enumerate(measured.views):
            at = old.get(pair)
            if known is not None and at is not None and known.groups[at] == measured.groups[view]:
                values[view] = known.values[at]
            else:
                values[view] = spread.distance(query(view), None, int(views.rows[view]))
        return cls(measured.views, measured.groups, usual, spread.sums, values)

    def calmed(
        self, spread: GoodSpread, measured: LeftOutDistances, views: Views, query: Query
    ) -> Tensor:
        """The values [V, N] with what good images that were taught since calm; arguments as of `measure`."""
        found = self.values.clone()
        for view, nearest in enumerate(measured.nearest):
            taught = spread.taught(nearest)
            if bool(taught.any()):
                row, patches = int(views.rows[view]), query(view)[taught]
                _, key = spread.good_patches.nearest(
                    patches, row, spread.taught(spread.good_patches.entry)
                )
                found[view, taught] = spread.distance(patches, key, row)
        return found

    def write(self, path: Path) -> None:
        """Keep it at `path`, or say in the log why not."""
        cache.write(path, VERSION, vars(self))

    @classmethod
    def read(cls, path: Path) -> LeftOutSpread | None:
        """What `write` kept; None where it is absent, damaged or of another version."""
        fields = cache.read(path, VERSION, sums=PatchSums)
        return None if fields is None else cls(**fields)


def usual_views(
    measured: LeftOutDistances, usual: Tensor, group: Tensor
) -> tuple[tuple[str, int, int], ...]:
    """Entry, tile and number of the group of the views that `usual` bool [V] marks.

    `group`: int64 [V], of images that are left out together.
    """
    own = group[usual].unique(return_inverse=True)[1].tolist()
    marked = [pair for pair, used in zip(measured.views, usual.tolist()) if used]
    return tuple((entry, tile, number) for (entry, tile), number in zip(marked, own))


def stored_at(bank: MemoryBank) -> Path | None:
    """Where a bank that lies on disk keeps it; None for one in memory, or that learned."""
    return cache.place(bank, "spread", VERSION, [bank.local])
