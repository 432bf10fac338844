"""A server that learned and the same memory opened again answer with the same numbers, to the last bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mrad import Detector, Encoder, MemoryBank
from mrad.calibration import Calibration
from mrad.encoder.encoder import Features
from mrad.encoder.tower import neighbourhood_average
from mrad.heads.nn import NEAR_DUPLICATE
from mrad.heads.tf import TFHead
from mrad.memory.entry import Entry, Key
from mrad.memory.growing import GrowingBank
from mrad.memory.keys import Piece, keys_of
from mrad.memory.living import writing
from mrad.memory.operations import Add, Operation, Remove
from mrad.retrieval import patch_index
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.follow import followed
from mrad.thresholds.own import anchored, score_own

HEADS = ("tf", "nn", "combined")
SIDE = (96, 96)
APART = 0.055
"""How far two pictures lie on either side of a third that is a near-duplicate of both, which they are not."""


class Pictures:
    """Pictures of one product, as features."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.cells = encoder, encoder.grid**2
        self.plan = self.noise(0, self.cells, encoder.width)
        self.whole = self.noise(1, encoder.embed_dim)
        self.flaw = self.noise(2, encoder.width)
        self.bridge = 0.3 * self.noise(3, self.cells, encoder.width)

    def noise(self, seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def features(self, seed: int, bad: bool = False, bridge: float | None = None) -> Features:
        raw = self.plan + 0.3 * self.noise(100 + seed, self.cells, self.encoder.width)
        if bridge is not None:  # 0, or on one side of it
            off = self.noise(4, self.cells, self.encoder.width)
            raw = self.plan + self.bridge + bridge * APART * off
        whole = self.whole + 0.3 * self.noise(10_000 + seed, self.encoder.embed_dim)
        if bad:
            raw[: self.cells // 4] += self.flaw
            whole = whole + 0.2
        return Features(whole[None], neighbourhood_average(raw[None], self.encoder.grid), raw[None])

    def lesson(self, seed: int, bad: bool = False, bridge: float | None = None) -> Add:
        features, side = self.features(seed, bad, bridge), self.encoder.image_size
        name = f"{seed}-{int(bad)}-{bridge}"
        entry = Entry(name, int(bad), source=name, width=side, height=side)
        mask = np.zeros((side, side), bool)
        mask[: side // 4] = True
        piece = Piece(0, bad, mask if bad else None)
        return Add(entry, tuple(keys_of(self.encoder, features, 0, entry, piece)))

    def bank(self, good: int, bad: int) -> MemoryBank:
        lessons = [self.lesson(seed) for seed in range(good - 2)]
        lessons += [self.lesson(good, bridge=side) for side in (-1.0, 1.0)]
        lessons += [self.lesson(500 + seed, True) for seed in range(bad)]
        keys: list[Key] = [key for one in lessons for key in one.keys]
        dims = self.encoder.embed_dim, self.encoder.width
        entries = [one.entry for one in lessons]
        return MemoryBank.from_keys(self.encoder.identity, entries, keys, dims=dims)

    def asked(self) -> Features:
        return Features.cat([self.features(900 + seed, seed % 2 == 1) for seed in range(6)])


def answers(detector: Detector, asked: Features, origin: Calibration) -> dict[str, np.ndarray]:
    """Everything that it says of some pictures, of the memory's own, and its thresholds."""
    found = detector.finish(asked, [SIDE] * len(asked))
    scored = score_own(detector, thorough=True)
    held = followed(origin, detector, scored)
    cuts = [cut for cut in (held.image, held.pixel) if cut is not None]
    numbers = [value for cut in cuts for value in (cut.value, cut.low, cut.high)]
    numbers += [held.probability(one.score) or 0.0 for one in found]
    return {
        "scores": np.array([one.score for one in found]),
        "class scores": np.array([one.class_score for one in found]),
        "maps": np.stack([one.anomaly_map for one in found]),
        "own": np.array([scored.score, scored.peak, scored.similarity_image]),
        "thresholds": np.array(numbers),
    }


def steps(pictures: Pictures, seed: int) -> list[list[Operation]]:
    """Teach and forget, in some order; what is compared after each."""
    rng, taught, numbers = np.random.default_rng(seed), [], itertools.count(200)

    def teach(count: int, bad: bool) -> list[Operation]:
        new = [pictures.lesson(next(numbers), bad) for _ in range(count)]
        taught.extend(one.entry.entry_id for one in new)
        return list(new)

    def forget(names: list[str]) -> list[Operation]:
        gone = str(rng.choice(names))
        names.remove(gone)
        return [Remove(gone)]

    built = [f"{number}-0-None" for number in range(8)]
    bridge = pictures.lesson(0, bridge=0.0)
    found = [
        teach(1, False) + teach(1, True),
        [bridge],
        teach(12, False) + teach(2, True),
        forget(taught),
        teach(1, False) + forget(taught) + forget(built),
        [Remove(bridge.entry.entry_id), Remove("500-1-None")],
        forget(built) + forget(built) + teach(1, True),
    ]
    return [found[place] for place in rng.permutation(len(found))] if seed else found


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("good", "bad", "many", "seed"),
    [(13, 4, 8_192, 0), (30, 4, 500, 0), (30, 4, 500, 1), (20, 3, 900, 1), (8, 3, 8_192, 2)],
    ids=["few", "many", "many, other order", "many by lessons", "too few to judge alone"],
)
def test_learned_and_opened_again_are_the_same(
    tiny_encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    head: str,
    good: int,
    bad: int,
    many: int,
    seed: int,
) -> None:
    monkeypatch.setattr(patch_index, "MANY", many)
    monkeypatch.setattr("mrad.thresholds.follow.DRAWS", 5)
    pictures, path = Pictures(tiny_encoder), tmp_path / "bank"
    pictures.bank(good, bad).save(path)
    detector = Detector(tiny_encoder, MemoryBank.load(path), head)
    growing, asked = GrowingBank(detector.bank), pictures.asked()
    scored = score_own(detector, thorough=True)
    origin = anchored(calibrate(detector, scored, draws=10), detector.bank, scored)
    for operations in steps(pictures, seed):
        operations = [one for one in operations if known(one, growing)]
        for one in operations:
            if isinstance(one, Add):
                growing.add(one.entry, one.keys, None)
            else:
                growing.remove(one.entry_id)
        growing.sequence += len(operations)
        with writing(path) as (database, _):
            database.commit(operations)
        before, detector = detector, detector.with_bank(growing.view())
        if isinstance(detector.head, TFHead):
            detector.head.resume(before.head)
        again = Detector(tiny_encoder, MemoryBank.load(path), head)
        assert again.bank.entries == detector.bank.entries
        one, other = (answers(each, asked, origin) for each in (detector, again))
        for name, values in one.items():
            apart = float(np.abs(values - other[name]).max())
            assert apart == 0, f"{name} after {[label(one) for one in operations]}: {apart:.2g}"


def label(operation: Operation) -> str:
    """What it does, in short."""
    if isinstance(operation, Add):
        return f"+{operation.entry.entry_id}"
    return f"-{operation.entry_id}"


def known(operation: Operation, growing: GrowingBank[MemoryBank]) -> bool:
    """Whether it can be done: what was taught later in another order is not there yet."""
    return isinstance(operation, Add) or operation.entry_id in growing.rows


def test_the_pictures_are_such_that_a_lesson_shows_two_of_the_build_to_be_near_duplicates(
    tiny_encoder: Encoder,
) -> None:
    bank = Pictures(tiny_encoder).bank(12, 3)
    detector = Detector(tiny_encoder, bank, "nn")
    assert len(detector.head.groups.unique()) == len(bank.entries)
    bridge = Pictures(tiny_encoder).lesson(0, bridge=0.0)
    after = detector.with_bank(bank.add(bridge.entry, bridge.keys)).head
    assert len(after.groups.unique()) == len(bank.entries) - 1
    assert NEAR_DUPLICATE > 0.99


def test_the_head_is_chosen_by_the_build_so_that_a_restart_does_not_change_it(
    tiny_encoder: Encoder,
) -> None:
    pictures = Pictures(tiny_encoder)
    bank = pictures.bank(8, 0)
    detector = Detector(tiny_encoder, bank)
    assert detector.head.name == "nn"
    for number in range(3):
        lesson = pictures.lesson(200 + number, True)
        bank = bank.add(lesson.entry, lesson.keys)
        detector = detector.with_bank(bank)
    assert detector.head.name == Detector(tiny_encoder, bank).head.name == "nn"
    for entry in bank.entries[:8]:  # nothing of the build is left: the lessons alone decide
        bank = bank.remove(entry.entry_id)
    lesson = pictures.lesson(300)
    bank = bank.add(lesson.entry, lesson.keys)
    assert Detector(tiny_encoder, bank).head.name in HEADS
