"""MRAD-TF: train-free; cosine similarity to every key of the memory (docs/method.md)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.errors import HeadError
from mrad.heads import HeadOutput, NoSettings
from mrad.heads.choose import check_two_classes
from mrad.heads.good_parts.sums import LeftOutSums, stored_at, stored_features
from mrad.memory.bank import MemoryBank
from mrad.retrieval.good_patches import Views
from mrad.retrieval.lessons import built_entries, judged, retriever_of


class TFHead:
    """Retrieval with the frozen features alone."""

    name = "tf"
    Config = NoSettings

    def __init__(
        self, encoder: Encoder, config: NoSettings, state: Mapping[str, Tensor] | None = None
    ) -> None:
        if state:
            raise HeadError("tf is train-free: it takes no checkpoint")
        self.encoder = encoder
        self._sums: LeftOutSums | None = None

    def attach(self, bank: MemoryBank, mode: str = "exact") -> None:
        """Index both levels; exact or approximate retrieval by `mode`. What was taught since the build counts
        near itself (`mrad.retrieval.lessons`)."""
        check_two_classes(bank, self.name)
        self.bank, self.levels = bank, (bank.image, bank.patch)
        entries = built_entries(bank)
        self.image, self.patch = (
            retriever_of(level, entries, mode=mode, device=self.encoder.device)
            for level in self.levels
        )

    def __call__(self, features: Features, exclude: Tensor | None = None) -> HeadOutput:
        """See `mrad.heads.Head`."""
        query = features.patch_query()
        batch, cells, width = query.shape
        rows = None if exclude is None else exclude.repeat_interleave(cells)
        patch = judged(self.patch, self.levels[1], query.reshape(-1, width), rows)
        image = judged(self.image, self.levels[0], features.class_query(), exclude)
        return HeadOutput(patch.view(batch, cells), image)

    def left_out_output(self, views: Views) -> HeadOutput:
        """As `__call__` judges the images that the memory holds whole, each without its own keys."""
        place, known = stored_at(self.bank), self._sums
        if known is None and place is not None:
            known = LeftOutSums.read(place, self.levels)
        stored = stored_features(self.bank, views, self.encoder.device)
        self._sums = LeftOutSums.measure(self.bank, views, stored, known)
        if known is None and place is not None:
            self._sums.write(place)
        return self._sums.output(views.rows)

    def resume(self, other: TFHead) -> None:
        """Go on from what another one measured of this memory, or of an earlier state of it."""
        self._sums = self._sums or other._sums

    def forget_sums(self) -> None:
        """What was measured of the memory's own images does not hold for the next memory."""
        self._sums = None
