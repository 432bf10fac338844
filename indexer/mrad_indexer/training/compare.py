"""Whether a training was worth it: the new head beside the train-free ones, on images kept aside."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mrad.detector import Detector
from mrad.encoder.encoder import Encoder
from mrad.errors import MRADError
from mrad.memory.bank import MemoryBank
from mrad_indexer.datasets import Dataset, Record
from mrad_indexer.evaluation.runner import Evaluation, evaluate
from mrad_indexer.known import rows_by_features

LEAST = 5
"""Images of each class; fewer say nothing."""
RIVALS = ("tf", "nn")
"""Heads that need no training."""


@dataclass(frozen=True)
class Comparison:
    """Heads on images that neither training nor the memory knows."""

    evaluation: Evaluation
    left_out: dict[str, str] = field(default_factory=dict)
    """Train-free heads that this memory cannot serve, and why."""

    @property
    def best(self) -> str:
        """The head with the highest image AUROC; the trained one comes first where they are equal."""
        candidates = self.evaluation.candidates
        return max(candidates, key=lambda item: item.mean("image", "auroc") or 0.0).name


def keep_aside(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Records to train on and records kept aside: `share` of each object's good and bad ones.

    With fewer than `LEAST` of a class to keep, none is kept. The choice depends on the images'
    names alone.
    """
    groups: dict[tuple[str, bool], list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.source, str(record.image))):
        groups.setdefault((record.object_name, record.anomalous), []).append(record)
    rng, kept = random.Random(0), set()
    for group in groups.values():
        kept.update(id(record) for record in rng.sample(group, round(share * len(group))))
    aside = [record for record in records if id(record) in kept]
    bad = sum(record.anomalous for record in aside)
    if min(bad, len(aside) - bad) < LEAST:
        return list(records), []
    return [record for record in records if id(record) not in kept], aside


def compare(
    head: str,
    checkpoint: Path,
    encoder: Encoder,
    bank: MemoryBank,
    aside: Sequence[Record],
) -> Comparison:
    """Judge images with the trained head and with each train-free one, on one memory.

    Args:
        head: `ft` or `clip`.
        checkpoint: of that head.
        encoder: that it was trained on.
        bank: the memory; it must not hold these images (see `without`).
        aside: the images.
    """
    detectors = {f"{head}:{checkpoint.stem}": Detector(encoder, bank, head, checkpoint=checkpoint)}
    left_out = {}
    for name in RIVALS:
        try:
            detectors[name] = Detector(encoder, bank, name)
        except MRADError as error:
            left_out[name] = str(error)
    images = Dataset("kept aside", aside[0].image.parent, tuple(aside))
    return Comparison(evaluate(detectors, images), left_out)


def without(bank: MemoryBank, encoder: Encoder, records: Sequence[Record]) -> MemoryBank:
    """The bank without the entries of these images, which would retrieve themselves."""
    detector = Detector(encoder, bank)
    known = {(entry.source, entry.object_name): entry.entry_id for entry in bank.entries}
    own = set()
    for record in records:
        features = detector.encode([detector.decode(record.image)])
        row = rows_by_features(features, bank)[0]
        if row >= 0:
            own.add(bank.entries[row].entry_id)
        elif (record.source, record.object_name) in known:
            own.add(known[record.source, record.object_name])
    for entry_id in own:
        bank = bank.remove(entry_id)
    return bank
