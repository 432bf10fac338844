"""Everything that a memory knows: how far good parts are (`nn`), and which class is nearer (`tf`, `ft`
or `clip`), each in spreads of the memory's own good images, left out.

Where a level holds good keys alone, `nn` judges it alone, so this serves any memory that `nn` serves. With
few labelled defects the other head counts for little, the more the more there are (`mrad.heads.good_parts.standard.trust`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mrad.encoder.encoder import Encoder, Features
from mrad.heads import Head, HeadOutput, head_class
from mrad.heads.choose import check_good_parts
from mrad.heads.good_parts.standard import Scale, trust
from mrad.heads.good_parts.sums import stored_features
from mrad.heads.nn import LeftOut, NNHead
from mrad.heads.tf import TFHead
from mrad.memory.bank import MemoryBank
from mrad.memory.level import LevelMemory

LEAST, MOST = 1e-6, 1 - 1e-6


class CombinedConfig(BaseModel):
    """Which head stands beside `nn`; a checkpoint says so itself."""

    model_config = ConfigDict(extra="forbid")
    base: str = "tf"
    base_config: dict[str, Any] = {}


class CombinedHead(NNHead):
    """See the module."""

    name = "combined"
    Config = CombinedConfig
    takes = ("ft", "clip")
    """Heads whose checkpoint it takes."""

    def __init__(
        self, encoder: Encoder, config: CombinedConfig, state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Raises what the head beside `nn` raises."""
        super().__init__(encoder, config)
        cls = head_class(config.base)
        self.base: Head = cls(encoder, cls.Config.model_validate(config.base_config), state)

    @torch.inference_mode()
    def attach(self, bank: MemoryBank, mode: str = "exact") -> None:
        """As `NNHead.attach`; the other head joins at each level that holds both classes."""
        check_good_parts(bank)
        before = getattr(self, "patch_level", None)
        self.image_level, self.patch_level = both(bank.image), both(bank.patch)
        self.base = copy.copy(self.base)
        if isinstance(self.base, TFHead) and before != self.patch_level:
            self.base.forget_sums()  # they hold a stand-in, or lack one
        if self.image_level:
            self.base.attach(bank if self.patch_level else with_patches_of_images(bank), mode)
        super().attach(bank, mode)

    def left_out(self) -> LeftOut:
        """As `NNHead.left_out`, with the other head's values of the same images."""
        found = super().left_out()
        if not self.image_level:
            return found
        self._output = output = self._base_left_out()
        cells, parts = found.cells, found.parts
        if self.patch_level:
            known = self.views.normal & found.good[:, None]
            odds = log_odds(output.patch)
            usual = odds[known & self.settled[:, None]]
            self.patch_scale = Scale.of(usual, distance=False)
            marked = self.views.rows[self.views.anomalous.any(dim=1) & self.settled].unique()
            fine = self.views.rows[found.good & self.settled].unique()
            self.patch_share = trust(len(fine), len(marked))
            extra = self.patch_share * self.patch_scale(odds)
            cells = cells + extra.where(~(found.good[:, None] & ~known), 0.0)
        return LeftOut(cells, torch.cat([parts, log_odds(output.image)[None].double()]), found.good)

    def _base_left_out(self) -> HeadOutput:
        """What the other head says of the images in `views`, each without its own keys."""
        if isinstance(self.base, TFHead):
            return self.base.left_out_output(self.views)
        stored = stored_features(self.bank, self.views, self.encoder.device)
        rows = self.views.rows
        found = [self.base(stored([view]), rows[view : view + 1]) for view in range(len(rows))]
        patch, image = (
            torch.cat([getattr(one, name) for one in found]) for name in ("patch", "image")
        )
        return HeadOutput(patch.cpu(), image.cpu())

    def left_out_measures(self) -> tuple[Tensor, Tensor]:
        """See `NNHead.left_out_measures`."""
        cells, parts = super().left_out_measures()
        return self._joined(cells, parts, self._output) if self.image_level else (cells, parts)

    def measure(self, features: Features, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `NNHead.measure`."""
        cells, parts = super().measure(features, exclude)
        if not self.image_level:
            return cells, parts
        return self._joined(cells, parts, self.base(features, exclude))

    def _joined(self, cells: Tensor, parts: Tensor, output: HeadOutput) -> tuple[Tensor, Tensor]:
        """What `nn` measured with what the other head says."""
        if self.patch_level:
            cells = cells + self.patch_share * self.patch_scale(log_odds(output.patch.cpu()))
        return cells, torch.cat([parts, log_odds(output.image.cpu())[None].double()])


def both(level: LevelMemory) -> bool:
    """Whether a level holds keys of both classes."""
    return all(level.counts)


def log_odds(probability: Tensor) -> Tensor:
    """Of probabilities, kept finite; float64, for TF's differ in the third or fourth digit."""
    return torch.logit(probability.double().clamp(LEAST, MOST))


def with_patches_of_images(bank: MemoryBank) -> MemoryBank:
    """The bank for a head that wants two classes at the patch level, where only good ones are known.

    The anomalous key is a stand-in that is never read: the caller drops the patch level's answer.
    """
    patch = bank.patch
    first = slice(0, 1)
    extra = replace(
        patch,
        keys=np.zeros((1, patch.dim), np.float32),
        labels=np.ones(1, np.uint8),
        entry=patch.entry[first],
        region=np.array(["anomalous"], "U9"),
        size=patch.size[first],
        tile=patch.tile[first],
    )
    return replace(bank, patch=patch.join(extra))
